"""What the family of mixture-of-experts models promises beyond the contract of all families."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from kernels.op_spec import Context
from kernels.reference import build
from supernets.elastic_experts import CACHED_LAYERS, build_block
from supernets.expert_bank import moe_layers
from supernets.reduction import CalibratedLayer, reduce_layer
from supernets.space import DEPTH, EXPERT_WIDTH, EXPERTS, KV_GROUPS, Architecture
from supernets.supernet import Supernet
from tests.toy_families import toy_family_model
from tests.toy_reduced import (
    KINDS,
    OPERATORS,
    logits,
    logits_of,
    middle,
    reduced_supernet,
    reloaded,
    with_operator,
)

# -- reductions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_reduced_networks_are_the_same_active_extracted_and_reloaded(kind: str, tmp_path: Path) -> None:
    supernet, rng = reduced_supernet(kind), random.Random(4)
    for number, operator in enumerate(OPERATORS):
        architecture = with_operator(supernet.space.decode(supernet.space.sample(rng)), operator)
        with supernet.active(architecture):
            active = logits(supernet)
        extracted = supernet.extract(architecture)
        assert torch.equal(logits(extracted), active)
        assert torch.equal(logits(reloaded(extracted, tmp_path / str(number))), active)
        assert supernet.count_parameters(architecture) == sum(p.numel() for p in extracted.parameters())


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_reduced_network_is_the_model_with_each_block_replaced(operator: str) -> None:
    """The oracle builds every reduced block by itself and puts it into the stock model."""
    supernet = reduced_supernet("qwen2_moe")
    architecture = middle(supernet, operator)
    oracle = toy_family_model("qwen2_moe")
    for layer in moe_layers(oracle):
        choice = architecture.by_index[layer.index]
        calibrated = CalibratedLayer.of(layer, supernet.statistics)
        reduced = reduce_layer(calibrated, operator, choice.kept(EXPERTS) or 0)
        block = build_block(layer, oracle.config, reduced, choice.kept("top_k") or 0)
        oracle.set_submodule(layer.name, block)
    with supernet.active(architecture):
        assert torch.equal(logits(supernet), logits(oracle))


def test_a_pruned_layer_is_the_full_one_with_the_removed_experts_never_chosen() -> None:
    """The oracle masks rows of the router by a bias, which GPT-OSS has; the rest of the layer stays."""
    supernet = reduced_supernet("gpt_oss")
    architecture = middle(supernet, "reap")
    oracle = toy_family_model("gpt_oss")
    for layer in moe_layers(oracle):
        choice = architecture.by_index[layer.index]
        plan = supernet.experts[layer.index].plan(choice)
        assert plan is not None
        removed = [expert for expert in range(plan.experts) if expert not in plan.representatives]
        layer.router.bias.data[removed] = float("-inf")
        layer.router.top_k = choice.kept("top_k")
    with supernet.active(architecture):
        torch.testing.assert_close(logits(supernet), logits(oracle), rtol=0, atol=1e-5)


def test_counts_of_flops_see_the_rows_that_a_router_keeps() -> None:
    supernet = reduced_supernet("mixtral")
    context = Context(batch=1, sequences=(8,))
    pruned, merged = (supernet.count_macs(middle(supernet, name), context) for name in ("reap", "hc-smoe"))
    missing = sum(8 - (layer.kept(EXPERTS) or 0) for layer in middle(supernet, "reap").layers)
    assert merged - pruned == 8 * 24 * missing


def test_an_operator_says_nothing_about_a_whole_layer() -> None:
    supernet = reduced_supernet("olmoe")
    largest = supernet.space.decode(supernet.space.largest)
    assert not any(layer.names for layer in largest.layers)
    with supernet.active(largest):
        assert torch.equal(logits(supernet), logits(toy_family_model("olmoe")))


def test_the_cache_of_weights_is_bounded_and_follows_changes() -> None:
    supernet = reduced_supernet("mixtral")
    block = supernet.experts[0]
    rng = random.Random(0)
    choices = {supernet.space.decode(supernet.space.sample(rng)).by_index[0] for _ in range(60)}
    full = sum(tensor.nbytes for tensor in block.state_dict().values())
    for architecture in (Architecture((choice,)) for choice in choices):
        with torch.no_grad():
            first, second = block.tensors(architecture), block.tensors(architecture)
        assert first is second
    kept = [tensors for _, tensors in block._kept.values()]
    assert sum(t.nbytes for tensors in kept for name, t in tensors.items() if "experts" in name) <= CACHED_LAYERS * full
    architecture = middle(supernet, "reap")
    with supernet.active(architecture):
        before = logits(supernet)
        with torch.no_grad():
            cast("Any", supernet.model).model.layers[0].mlp.experts.down_proj.mul_(2)
        assert not torch.equal(logits(supernet), before)
    assert torch.equal(logits(supernet.extract(architecture)), logits_of(supernet, architecture))


# -- costs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_operation_can_be_timed(kind: str) -> None:
    supernet = reduced_supernet(kind, axes=(EXPERT_WIDTH,))
    for context in (Context(batch=2, sequences=(8,)), Context(batch=2).generating(8, 1)):
        specs = supernet.ops(middle(supernet, "mone"), context)
        assert all(build(spec)().isfinite().all() for spec in {spec.key: spec for spec in specs}.values())


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_extracted_network_serves_as_a_fixed_one(operator: str) -> None:
    """As recovery trains it."""
    supernet = reduced_supernet("qwen3_moe", axes=(DEPTH, KV_GROUPS))
    network = supernet.extract(middle(supernet, operator))
    expected = logits(network)
    fixed = Supernet.fixed(network)
    largest = fixed.space.decode(())
    with fixed.active(largest):
        assert torch.equal(logits(fixed), expected)
    assert fixed.count_parameters(largest) == sum(parameter.numel() for parameter in network.parameters())
    assert torch.equal(logits(fixed.unwrap()), expected)


def test_calibrated_experts_keep_their_places() -> None:
    supernet = reduced_supernet("mixtral")
    with pytest.raises(ValueError, match="put them in order before calibration"):
        supernet.reorder({(EXPERTS, 0): list(reversed(range(8)))})
