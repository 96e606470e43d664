"""Calibration against a slow loop over single tokens, and what becomes of its numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from supernets.calibration import calibrate
from supernets.expert_bank import MoeLayer, moe_layers
from supernets.routing_statistics import POWERS, LayerStatistics, RoutingStatistics, tensors_of
from tests.toy_moe import CONFIGS, toy_batches, toy_moe

BATCHES = toy_batches()
DEAD = 3


class SlowLoop:
    """Everything one layer's statistics hold, one token after another, from what went into the stock block."""

    def __init__(self, layer: MoeLayer, residual_TD: Tensor, x_TD: Tensor) -> None:
        count, bank = layer.count, layer.bank()
        logits_TE, gates_Tk, chosen_Tk = layer.router(x_TD)
        self.powers = {power: [0.0] * count for power in POWERS}
        self.gates, self.easy_ep, self.largest = [0.0] * count, [0.0] * count, [0.0] * count
        self.outputs = torch.zeros(count, x_TD.shape[1], dtype=torch.float64)
        self.pairs = torch.zeros(count, count, dtype=torch.float64)
        self.gram = torch.stack([torch.outer(z, z) for z in logits_TE.double()]).sum(0)
        for h_D, x_D, gates, chosen in zip(residual_TD, x_TD, gates_Tk.tolist(), chosen_Tk.tolist(), strict=True):
            answers = [bank.outputs(expert, x_D[None])[0] for expert in chosen]
            y_D = sum(gate * f_D for gate, f_D in zip(gates, answers, strict=True))
            weight = max(0.0, 1 - float(functional.cosine_similarity(h_D, h_D + y_D, dim=0)))
            for gate, expert, f_D in zip(gates, chosen, answers, strict=True):
                norm = float(f_D.norm())
                for alpha, beta in POWERS:
                    self.powers[alpha, beta][expert] += (gate / sum(gates)) ** alpha * norm**beta
                self.gates[expert] += gate
                self.easy_ep[expert] += gate * norm * weight
                self.largest[expert] = max(self.largest[expert], float(f_D.abs().max()))
                self.outputs[expert] += f_D
                for partner in chosen:
                    self.pairs[expert, partner] += 1


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_sums_are_those_of_a_slow_loop(kind: str) -> None:
    model = toy_moe(kind)
    layer = moe_layers(model)[-1]
    seen: list[Tensor] = []
    norm = model.get_submodule(layer.residual_name)
    handles = [norm.register_forward_pre_hook(lambda _, a: seen.append(a[0])) for _ in range(1)]
    handles += [layer.block.register_forward_pre_hook(lambda _, a: seen.append(a[0]))]
    for batch in BATCHES:
        model(**batch)
    for handle in handles:
        handle.remove()
    slow = SlowLoop(layer, torch.cat(seen[::2]).flatten(0, 1), torch.cat(seen[1::2]).flatten(0, 1))
    found = calibrate(model, BATCHES).layer(layer.index)
    wanted = {
        "power_sums_SE": torch.tensor(list(slow.powers.values())),
        "gate_sums_E": torch.tensor(slow.gates),
        "easy_ep_E": torch.tensor(slow.easy_ep),
        "output_sums_ED": slow.outputs,
        "largest_outputs_E": torch.tensor(slow.largest),
        "pairs_EE": slow.pairs,
        "logit_gram_EE": slow.gram,
    }
    for name, tensor in wanted.items():
        torch.testing.assert_close(getattr(found, name), tensor.double(), rtol=2e-4, atol=2e-4)
    assert int(found.tokens) == 192
    assert len(found.sample_RD) == 192


@torch.no_grad()
def test_the_model_is_left_as_it_was() -> None:
    model = toy_moe("qwen3_moe").train()
    before = model(**BATCHES[0]).logits
    calibrate(model, BATCHES)
    assert model.training
    assert torch.equal(before, model(**BATCHES[0]).logits)


def same(one: LayerStatistics, other: LayerStatistics, *, ordered: bool = True) -> None:
    for name, tensor in tensors_of(one).items():
        if ordered or not name.startswith("sample"):
            torch.testing.assert_close(tensor, getattr(other, name), rtol=1e-4, atol=1e-5)


def test_batches_do_not_matter() -> None:
    model = toy_moe("olmoe")
    whole = [{"input_ids": torch.cat([batch["input_ids"] for batch in BATCHES])}]
    same(calibrate(model, BATCHES).layer(0), calibrate(model, whole).layer(0), ordered=False)


@pytest.mark.parametrize("kind", ["qwen2_moe", "gpt_oss"])
def test_padding_does_not_count(kind: str) -> None:
    model, ids = toy_moe(kind), BATCHES[0]["input_ids"]
    padded = torch.cat([ids, torch.zeros_like(ids[:, :5])], dim=1)
    mask = torch.ones_like(padded)
    mask[:, ids.shape[1] :] = 0
    found = calibrate(model, [{"input_ids": padded, "attention_mask": mask}]).layer(1)
    same(found, calibrate(model, [{"input_ids": ids}]).layer(1), ordered=False)
    assert len(found.sample_RD) == ids.numel()
    nothing = {"input_ids": ids, "attention_mask": torch.zeros_like(ids)}
    same(calibrate(model, [{"input_ids": ids}, nothing]).layer(1), found, ordered=False)


def test_the_sample_is_drawn_from_all_batches_and_repeats() -> None:
    model = toy_moe("mixtral")
    one, again, other = (calibrate(model, BATCHES, sample=20, seed=seed).layer(0) for seed in (1, 1, 2))
    everything = calibrate(model, BATCHES).layer(0).sample_RD
    assert one.sample_RD.shape == (20, 24)
    assert torch.equal(one.sample_RD, again.sample_RD)
    assert not torch.equal(one.sample_RD, other.sample_RD)
    at = [int((everything - row).abs().sum(1).argmin()) for row in one.sample_RD]
    assert len(set(at)) == 20
    _, gates_Rk, chosen_Rk = moe_layers(model)[0].router(one.sample_RD)
    assert torch.equal(chosen_Rk, one.sample_chosen_Rk)
    torch.testing.assert_close(gates_Rk.detach(), one.sample_gates_Rk)


def test_an_expert_that_no_token_reaches_scores_and_answers_zero() -> None:
    model = toy_moe("gpt_oss")
    with torch.no_grad():
        moe_layers(model)[1].router.bias[DEAD] = -100.0
    found = calibrate(model, BATCHES).layer(1)
    for b in (0, 1):
        for alpha, beta in POWERS:
            assert found.score(b, alpha, beta)[DEAD] == 0
    assert not found.mean_outputs_ED[DEAD].any()
    assert found.output_variances_E[DEAD] == 0
    assert found.output_variances_E.isfinite().all()
    assert found.logit_similarity_EE.isfinite().all()


def test_one_layer_on_request() -> None:
    model = toy_moe("mixtral")
    found = calibrate(model, BATCHES, layers=[1])
    assert set(found.layers) == {1}
    same(found.layer(1), calibrate(model, BATCHES).layer(1))
    with pytest.raises(ValueError, match=r"layer 0 has no routing statistics; calibrated layers are \[1\]"):
        found.layer(0)
    with pytest.raises(ValueError, match=r"layers \[7\] have no experts to observe; those that do are \[0, 1\]"):
        calibrate(model, BATCHES, layers=[1, 7])


@pytest.mark.parametrize(("layer", "found"), [(1, {(1, 5)}), (3, set[tuple[int, int]]())])
def test_super_experts_are_few_and_early(layer: int, found: set[tuple[int, int]]) -> None:
    model = toy_moe("mixtral", num_hidden_layers=4)
    with torch.no_grad():
        moe_layers(model)[layer].experts.down_proj[5] *= 400.0
    assert calibrate(model, BATCHES).super_experts() == found
    assert calibrate(model, BATCHES, layers=[]).super_experts() == set()


def test_saved_and_loaded_and_never_half(tmp_path: Path) -> None:
    statistics = calibrate(toy_moe("deepseek_v3"), BATCHES, task="code")
    statistics.save(tmp_path / "stats")
    loaded = RoutingStatistics.load(tmp_path / "stats")
    assert (loaded.task, loaded.depth, loaded.digest) == ("code", 2, statistics.digest)
    same(loaded.layer(1), statistics.layer(1))
    with pytest.raises(ValueError, match="already exists"):
        statistics.save(tmp_path / "stats")
    record = tmp_path / "stats" / "statistics.json"
    record.write_text(record.read_text().replace("code", "prose"))
    with pytest.raises(ValueError, match="are damaged: their hash differs; calibrate again"):
        RoutingStatistics.load(tmp_path / "stats")
    with pytest.raises(ValueError, match="holds no routing statistics"):
        RoutingStatistics.load(tmp_path)


@pytest.mark.parametrize(("batches", "seen"), [([], 0), ([{"input_ids": torch.ones(1, 5, dtype=torch.long)}], 5)])
def test_too_little_text_is_refused(batches: list[dict[str, Tensor]], seen: int) -> None:
    with pytest.raises(ValueError, match=f"the calibration text has {seen} tokens for 8 experts; give it more text"):
        calibrate(toy_moe("mixtral"), batches)


def test_routers_that_are_not_finite_are_refused() -> None:
    model = toy_moe("qwen3_moe")
    with torch.no_grad():
        moe_layers(model)[1].router.weight[2, 0] = torch.nan
    with pytest.raises(
        ValueError, match="the router of layer 1 gives NaN or infinite logits; the checkpoint is damaged"
    ):
        calibrate(model, BATCHES)


def test_experts_that_are_not_finite_are_refused() -> None:
    model = toy_moe("qwen3_moe")
    with torch.no_grad():
        moe_layers(model)[1].experts.down_proj.fill_(torch.inf)
    with pytest.raises(ValueError, match="experts of layer 1 answer NaN or infinite numbers"):
        calibrate(model, BATCHES)
