"""One layout for the experts of every architecture, checked against the stock blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kernels.experts import experts_reference
from supernets.expert_bank import MoeLayer, moe_layers
from tests.toy_moe import CONFIGS, toy_moe

TOKENS, HIDDEN = 12, 24


def in_64_bits(kind: str) -> MoeLayer:
    """The last layer of a model; torch's grouped product knows no 64 bits."""
    return moe_layers(toy_moe(kind, experts_implementation="eager").double())[-1]


@pytest.fixture(params=CONFIGS)
def layer(request: pytest.FixtureRequest) -> MoeLayer:
    return in_64_bits(request.param)


def test_there_and_back_bit_for_bit(layer: MoeLayer) -> None:
    stored = layer.stored(layer.bank())
    assert stored
    for name, tensor in layer.experts.named_parameters():
        assert torch.equal(stored.pop(name), tensor)
    assert not stored


def routed(layer: MoeLayer, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Choices and gates of the stock router, and what the stock experts make of them."""
    _, gates_Tk, chosen_Tk = layer.router(x_TD)
    gates_Tk = gates_Tk.to(x_TD.dtype)
    return chosen_Tk, gates_Tk, layer.experts(x_TD, chosen_Tk, gates_Tk)


@torch.no_grad()
def test_outputs_are_those_of_the_stock_experts(layer: MoeLayer) -> None:
    x_TD = torch.randn(TOKENS, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    chosen_Tk, gates_Tk, stock_TD = routed(layer, x_TD)
    bank, tokens = layer.bank(), list(zip(x_TD, chosen_Tk.tolist(), gates_Tk.tolist(), strict=True))
    for outputs in (bank.outputs, layer.outputs):
        rows = [
            sum(gate * outputs(e, x[None])[0] for e, gate in zip(es, gates, strict=True)) for x, es, gates in tokens
        ]
        torch.testing.assert_close(torch.stack(rows), stock_TD, rtol=1e-10, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind != "gpt_oss"])
def test_the_reference_of_the_kernels_reads_a_bank(kind: str) -> None:
    layer = in_64_bits(kind)
    x_TD = torch.randn(TOKENS, HIDDEN, dtype=torch.float64)
    chosen_Tk, gates_Tk, stock_TD = routed(layer, x_TD)
    bank = layer.bank()
    found_TD = experts_reference(x_TD, bank.gate_up_E2FD, bank.down_EDF, chosen_Tk, gates_Tk)
    torch.testing.assert_close(found_TD, stock_TD, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_the_gate_over_all_experts_is_the_router(layer: MoeLayer) -> None:
    x_TD = torch.randn(TOKENS, HIDDEN, dtype=torch.float64)
    logits_TE, gates_Tk, chosen_Tk = layer.router(x_TD)
    again_Tk, found_Tk = layer.gate(logits_TE.float(), torch.zeros(layer.count, dtype=torch.bool))
    assert torch.equal(found_Tk.sort(1).values, chosen_Tk.sort(1).values)
    torch.testing.assert_close(again_Tk.sort(1).values.double(), gates_Tk.sort(1).values.double(), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_the_gate_over_some_experts_is_a_router_with_these_rows(kind: str) -> None:
    layer, kept = moe_layers(toy_moe(kind))[-1], [1, 2, 5, 6]
    x_TD = torch.randn(TOKENS, HIDDEN)
    gates_Tk, chosen_Tk = layer.gate(layer.router(x_TD)[0], torch.tensor([expert not in kept for expert in range(8)]))
    cut = moe_layers(toy_moe(kind))[-1].router
    for name, parameter in list(cut.named_parameters()):
        setattr(cut, name, nn.Parameter(parameter[kept]))
    cut.num_experts = len(kept)
    _, wanted_Tk, rows_Tk = cut(x_TD)
    assert torch.equal(chosen_Tk, torch.tensor(kept)[rows_Tk])
    torch.testing.assert_close(gates_Tk, wanted_Tk)


def test_rules_of_the_routers() -> None:
    layers = {kind: moe_layers(toy_moe(kind)) for kind in CONFIGS}
    assert [layer.index for layer in layers["mixtral"]] == [0, 1]
    assert [layer.index for layer in layers["deepseek_v3"]] == [1]
    groups = {kind: found[-1].router_groups for kind, found in layers.items()}
    assert groups == {**dict.fromkeys(CONFIGS, 1), "deepseek_v2": 2, "deepseek_v3": 2}
    least = {kind: found[-1].least_count for kind, found in layers.items()}
    assert least == {**dict.fromkeys(CONFIGS, 2), "deepseek_v2": 4, "deepseek_v3": 4}
    greedy = moe_layers(toy_moe("deepseek_v2", topk_method="greedy"))[-1]
    assert (greedy.router_groups, greedy.least_count) == (1, 2)
    single = moe_layers(toy_moe("deepseek_v3", n_group=1, num_experts_per_tok=1))[-1]
    assert (single.router_groups, single.least_count) == (1, 2)


def test_a_selection_keeps_the_order_it_is_given() -> None:
    bank = moe_layers(toy_moe("gpt_oss"))[-1].bank()
    chosen = bank.select([6, 1])
    for name, tensor in bank.tensors().items():
        assert torch.equal(chosen.tensors()[name], torch.stack([tensor[6], tensor[1]]))


def test_a_dense_model_is_refused() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    with pytest.raises(ValueError, match=r"the model \(llama\) has no mixture-of-experts layer"):
        moe_layers(LlamaForCausalLM(config))


def test_quantised_experts_are_refused() -> None:
    model = toy_moe("mixtral")
    experts = moe_layers(model)[0].experts
    experts.gate_up_proj = nn.Parameter(experts.gate_up_proj.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"quantised experts \(torch.int8\), which cannot be merged or cut"):
        moe_layers(model)


def test_tied_experts_are_refused() -> None:
    model = toy_moe("olmoe")
    first, second = moe_layers(model)
    second.block.experts = first.block.experts
    with pytest.raises(ValueError, match=r"model.layers.0.mlp and model.layers.1.mlp share their experts; untie them"):
        moe_layers(model)


def test_experts_that_are_not_fused_are_refused() -> None:
    model = toy_moe("mixtral")
    moe_layers(model)[0].block.experts = nn.ModuleList([nn.Linear(2, 2)])
    with pytest.raises(ValueError, match="keeps its experts as ModuleList, not as fused tensors"):
        moe_layers(model)
