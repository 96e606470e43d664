"""Each objective against what it should have computed."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch

from kernels.op_spec import Context
from nas.objective import Bindings, EvaluationFailed, bind, context_from, parse_objective
from nas.passes import Passes
from studies.records import Genotype
from supernets.evaluation import evaluate, predict_logits
from tests.toy_bindings import CONTEXT, DEVICE, tiny_bindings
from tests.toy_experts import LENGTH, expert_bindings, expert_supernet


def test_an_objective_text_is_split_into_name_and_settings() -> None:
    assert parse_objective("error") == ("error", {})
    assert parse_objective(" latency:batch=8, sequence=64 ") == ("latency", {"batch": "8", "sequence": "64"})


@pytest.mark.parametrize("text", ["latency:batch", "latency:=3", "latency:batch=", "latency:batch=1,batch=2"])
def test_a_malformed_objective_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="name:setting=value"):
        parse_objective(text)


def test_settings_change_the_context() -> None:
    changed = context_from("latency", {"batch": "8", "sequence": "16+64", "dtype": "bfloat16"}, CONTEXT)
    assert changed == Context(batch=8, sequences=(16, 64), threads=CONTEXT.threads, dtype="bfloat16")
    assert context_from("latency", {}, CONTEXT) == CONTEXT
    with pytest.raises(ValueError, match="whole numbers"):
        context_from("latency", {"batch": "eight"}, CONTEXT)


def test_an_unknown_objective_names_the_known_ones_and_the_folder() -> None:
    with pytest.raises(ValueError, match=r"unknown objective 'speed'.*error, latency.*nas/objectives/"):
        bind("speed", tiny_bindings())


def test_error_is_that_of_the_extracted_network() -> None:
    bindings = tiny_bindings()
    supernet, objective = bindings.supernet, bind("error", bindings)
    genotype = supernet.space.middle
    value = objective.evaluate(genotype)
    network = supernet.extract(supernet.space.decode(genotype))
    assert value.number == evaluate(network, bindings.task, "validation").error
    assert (value.provenance, value.n, value.data_fraction) == ("supernet", bindings.task.size("validation"), 1.0)
    assert (value.weights_hash, value.data_hash) == (supernet.hash, bindings.task.data_hash("validation"))


def test_error_leaves_dropout_off_and_the_supernet_as_it_was() -> None:
    bindings = tiny_bindings()
    bindings.supernet.model.train()
    objective = bind("error", bindings)
    genotype = bindings.supernet.space.smallest
    assert objective.evaluate(genotype) == objective.evaluate(genotype)
    assert bindings.supernet.seam.architecture is None


def test_error_on_a_sample_says_so_and_is_not_reused() -> None:
    first, second = (bind("error", tiny_bindings(examples=8, seed=seed)) for seed in (1, 1))
    genotype = tiny_bindings().supernet.space.largest
    value = first.evaluate(genotype)
    assert value == second.evaluate(genotype)
    assert (value.n, value.data_fraction, value.seed) == (8, 0.25, 1)
    assert first.reuse is None
    with pytest.raises(ValueError, match="at least 1 example"):
        bind("error", tiny_bindings(examples=0))


def test_an_error_says_how_noisy_it_can_be() -> None:
    whole, sample = (bind("error", tiny_bindings(examples=examples)) for examples in (None, 8))
    assert (whole.noise, sample.noise) == pytest.approx((0.5 / 32**0.5, 0.5 / 8**0.5))
    spread = sample.evaluate(tiny_bindings().supernet.space.middle).spread
    assert spread is not None
    assert 0 <= spread <= sample.noise
    assert bind("macs", tiny_bindings()).noise == 0.0


def test_outputs_that_are_not_finite_are_a_failure() -> None:
    bindings = tiny_bindings()
    torch.nn.init.constant_(next(bindings.supernet.model.parameters()), float("nan"))
    objective = bind("error", bindings)
    with pytest.raises(EvaluationFailed, match="not finite"):
        objective.evaluate(bindings.supernet.space.largest)


def test_latency_is_the_tables_prediction_with_its_error() -> None:
    bindings = tiny_bindings()
    assert bindings.table is not None
    space, supernet = bindings.supernet.space, bindings.supernet
    value = bind("latency", bindings).evaluate(space.largest)
    seconds = bindings.table.predict(supernet.ops(space.decode(space.largest), CONTEXT), CONTEXT).seconds
    assert value.number == pytest.approx(1e3 * seconds)
    assert value.spread == pytest.approx(0.03 * value.number)
    assert (value.provenance, value.device, value.context) == ("predicted", DEVICE, CONTEXT.key)


def test_latency_of_its_own_context_is_another_objective() -> None:
    bound = bind("latency:sequence=16,batch=8", tiny_bindings())
    value = bound.evaluate(tiny_bindings().supernet.space.largest)
    assert bound.objective.key == value.objective == "latency:batch=8,sequence=16"
    assert value.context == Context(batch=8, sequences=(16,)).key


def test_latency_without_a_table_names_the_command() -> None:
    with pytest.raises(ValueError, match="nas measure"):
        bind("latency", replace(tiny_bindings(), table=None))


def test_counts_are_those_of_the_supernet() -> None:
    bindings = tiny_bindings()
    supernet, genotype = bindings.supernet, bindings.supernet.space.middle
    architecture = supernet.space.decode(genotype)
    network = supernet.extract(architecture)
    assert bind("parameters", bindings).evaluate(genotype).number == sum(p.numel() for p in network.parameters())
    assert bind("macs", bindings).evaluate(genotype).number == supernet.count_macs(architecture, CONTEXT)
    memory = bind("memory", bindings).evaluate(genotype).number
    assert memory * 2**20 == pytest.approx(supernet.memory_bytes(architecture, CONTEXT))


def network_logits(bindings: Bindings, genotype: Genotype) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Logits and tokens per block of the extracted network, one block at a time."""
    network = bindings.supernet.extract(bindings.supernet.space.decode(genotype))
    with torch.no_grad():
        batches = list(bindings.task.batches("validation", 1))
        return [(network(**b.inputs).logits[0].double(), b.inputs["input_ids"][0]) for b in batches]


def test_nll_is_that_of_the_extracted_network_token_by_token() -> None:
    bindings = expert_bindings()
    genotype = bindings.supernet.space.middle
    blocks = network_logits(bindings, genotype)
    losses = [-logits[t].log_softmax(0)[ids[t + 1]].item() for logits, ids in blocks for t in range(len(ids) - 1)]
    value = bind("nll", bindings).evaluate(genotype)
    assert value.number == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert value.provenance == "supernet"
    outcome = evaluate(bindings.supernet.extract(bindings.supernet.space.decode(genotype)), bindings.task, "validation")
    assert value.number == pytest.approx(outcome.metrics["nll"])


def test_nll_of_a_classification_is_its_cross_entropy() -> None:
    bindings = tiny_bindings()
    genotype = bindings.supernet.space.middle
    network = bindings.supernet.extract(bindings.supernet.space.decode(genotype))
    logits, labels = predict_logits(network, bindings.task, "validation")
    expected = -logits.log_softmax(1)[torch.arange(len(labels)), labels]
    value = bind("nll", bindings).evaluate(genotype)
    assert value.number == pytest.approx(expected.mean().item(), rel=1e-5)
    assert value.spread == pytest.approx(expected.std().item() / len(labels) ** 0.5, rel=1e-4)


def test_divergence_is_one_minus_the_overlap_with_the_full_model() -> None:
    bindings = expert_bindings()
    space, objective = bindings.supernet.space, bind("divergence", bindings)
    small, full = (network_logits(bindings, genotype) for genotype in (space.smallest, space.largest))
    overlaps = [
        torch.minimum(one[t].softmax(0), other[t].softmax(0)).sum().item()
        for (one, ids), (other, _) in zip(small, full, strict=True)
        for t in range(len(ids) - 1)
    ]
    assert objective.evaluate(space.smallest).number == pytest.approx(1 - sum(overlaps) / len(overlaps), abs=1e-5)
    assert objective.evaluate(space.largest).number == 0.0


def test_divergence_remembers_no_more_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    bindings = expert_bindings(batch_size=4)
    genotype = bindings.supernet.space.smallest
    kept = bind("divergence", bindings).evaluate(genotype)
    one_batch = 4 * 4 * (LENGTH - 1) * 40
    monkeypatch.setattr("nas.objectives.divergence.CACHED_BYTES", one_batch)
    assert bind("divergence", replace(bindings)).evaluate(genotype) == kept


def test_qualities_of_one_network_share_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    bindings = expert_bindings()
    passes = []
    run = Passes._run

    def counted(self: Passes, genotype: Genotype) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        passes.append(genotype)
        return run(self, genotype)

    monkeypatch.setattr(Passes, "_run", counted)
    bound = [bind(name, bindings) for name in ("error", "nll", "divergence")]
    for genotype in (bindings.supernet.space.smallest, bindings.supernet.space.largest):
        for objective in bound:
            objective.evaluate(genotype)
    assert passes == [bindings.supernet.space.smallest, bindings.supernet.space.largest]


def test_active_parameters_leave_out_what_a_token_does_not_choose() -> None:
    bindings = expert_bindings()
    supernet, genotype = bindings.supernet, bindings.supernet.space.middle
    network: Any = supernet.extract(supernet.space.decode(genotype))
    expected = 0
    for name, parameter in network.named_parameters():
        layer = int(name.split(".")[2]) if ".experts." in name else 0
        chosen = network.config.supernas_layers[layer]
        share = chosen["top_k"] / chosen["experts"] if ".experts." in name else 1
        expected += round(parameter.numel() * share)
    assert bind("active-parameters", bindings).evaluate(genotype).number == expected
    plain = tiny_bindings()
    whole, active = (
        bind(name, plain).evaluate(plain.supernet.space.middle) for name in ("parameters", "active-parameters")
    )
    assert whole.number == active.number


def test_a_latency_table_covers_every_layout() -> None:
    """Operations of a layer hang on experts, top-k and operator together."""
    bindings = expert_bindings(supernet=expert_supernet(axes=("depth", "kv_groups", "expert_width")))
    assert bindings.table is not None
    space, rng = bindings.supernet.space, Random(0)
    for _ in range(40):
        bindings.table.predict(bindings.supernet.ops(space.decode(space.sample(rng)), CONTEXT), CONTEXT)


def test_experts_are_reduced_in_full_precision_whatever_the_pass_computes_in() -> None:
    seen, fresh = (expert_supernet(operators=("uncurl",)) for _ in range(2))
    genotype = seen.space.smallest
    bind("nll", expert_bindings(supernet=seen, precision="bfloat16")).evaluate(genotype)
    for one, other in zip(
        *(s.extract(s.space.decode(genotype)).state_dict().values() for s in (seen, fresh)), strict=True
    ):
        assert torch.equal(one, other)
