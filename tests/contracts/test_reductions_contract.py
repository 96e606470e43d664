"""What every expert reduction promises, over all files in `supernets/reductions`."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from supernets.calibration import calibrate
from supernets.expert_bank import moe_layers
from supernets.reduction import REDUCTIONS, CalibratedLayer, ExpertReduction, ReducedBank, reduction
from tests.toy_moe import toy_batches, toy_moe

EXPERTS, DEAD = 8, 2
COUNTS = (2, 4, 5, 7)
OPERATORS = REDUCTIONS.names()


@cache
def calibrated(kind: str) -> CalibratedLayer:
    """The last layer of a toy model; in GPT-OSS no token reaches one of the experts."""
    model = toy_moe(kind)
    layer = moe_layers(model)[-1]
    if kind == "gpt_oss":
        with torch.no_grad():
            layer.router.bias[DEAD] = -100.0
    return CalibratedLayer.of(layer, calibrate(model, toy_batches()))


@pytest.fixture(params=OPERATORS)
def operator(request: pytest.FixtureRequest) -> ExpertReduction:
    return reduction(request.param)


@pytest.fixture(params=("qwen3_moe", "gpt_oss"))
def layer(request: pytest.FixtureRequest) -> CalibratedLayer:
    return calibrated(request.param)


def reduced(operator: ExpertReduction, layer: CalibratedLayer, count: int) -> ReducedBank:
    return operator.apply(operator.plan(layer, count), layer)


def test_it_is_called_like_its_file(operator: ExpertReduction) -> None:
    assert operator.name in OPERATORS
    assert reduction(operator.name) is operator


@pytest.mark.parametrize("count", COUNTS)
def test_counts_and_groups(operator: ExpertReduction, layer: CalibratedLayer, count: int) -> None:
    result = reduced(operator, layer, count)
    plan, bank = result.plan, result.bank
    members = [expert for group in plan.groups for expert in group]
    assert (plan.operator, plan.layer, plan.experts) == (operator.name, layer.index, EXPERTS)
    assert plan.count == bank.count == count
    assert len(set(members)) == len(members)
    assert set(members) <= set(range(EXPERTS))
    for name, tensor in layer.bank.tensors().items():
        made: Tensor = bank.tensors()[name]
        assert made.shape == (count, *tensor.shape[1:])
        assert made.dtype == tensor.dtype
        assert made.isfinite().all()


def test_all_experts_are_the_identity(operator: ExpertReduction, layer: CalibratedLayer) -> None:
    result = reduced(operator, layer, EXPERTS)
    assert result.plan.is_identity
    for name, tensor in layer.bank.tensors().items():
        assert torch.equal(result.bank.tensors()[name], tensor)


@pytest.mark.parametrize("count", COUNTS)
def test_router_and_map_agree(operator: ExpertReduction, layer: CalibratedLayer, count: int) -> None:
    result = reduced(operator, layer, count)
    routes = result.plan.routes
    assert (routes is not None) == operator.keeps_router
    if routes is None:
        assert result.constants_ED is None
        return
    assert len(routes) == EXPERTS
    assert all(routes[expert] == i for i, group in enumerate(result.plan.groups) for expert in group)
    constant = [expert for expert, route in enumerate(routes) if route is None]
    assert (result.constants_ED is not None) == bool(constant)
    if result.constants_ED is not None:
        kept = [expert for expert in range(EXPERTS) if expert not in constant]
        assert not result.constants_ED[kept].any()


def test_smaller_counts_are_prefixes_where_declared(operator: ExpertReduction, layer: CalibratedLayer) -> None:
    longest = operator.plan(layer, COUNTS[-1]).groups
    prefixes = [operator.plan(layer, count).groups == longest[:count] for count in COUNTS]
    assert all(prefixes) or not operator.nested


def test_nesting_holds_within_the_groups_of_a_router(operator: ExpertReduction) -> None:
    grouped = calibrated("deepseek_v3")
    small, large = (set(operator.plan(grouped, count).groups) for count in (4, 6))
    assert small <= large or not operator.nested


@pytest.mark.parametrize("count", COUNTS)
def test_pruning_keeps_bits_where_declared(operator: ExpertReduction, layer: CalibratedLayer, count: int) -> None:
    result = reduced(operator, layer, count)
    originals = layer.bank.select(result.plan.representatives)
    same = all(torch.equal(tensor, originals.tensors()[name]) for name, tensor in result.bank.tensors().items())
    assert same or not operator.pruning
    assert all(len(group) == 1 for group in result.plan.groups) or not operator.pruning


@settings(max_examples=4)
@given(order=st.permutations(range(EXPERTS)), count=st.sampled_from(COUNTS))
@pytest.mark.parametrize("name", OPERATORS)
def test_numbering_does_not_matter(name: str, order: list[int], count: int) -> None:
    layer, operator = calibrated("qwen3_moe"), reduction(name)
    renumbered = replace(
        layer, bank=layer.bank.select(order), calibration=layer.statistics.permuted(order), protected=frozenset()
    )
    one, other = reduced(operator, layer, count), reduced(operator, renumbered, count)
    named = {tuple(order[expert] for expert in group): i for i, group in enumerate(other.plan.groups)}
    assert set(named) == set(one.plan.groups)
    rows = [named[group] for group in one.plan.groups]
    for tensor, permuted in zip(one.bank.tensors().values(), other.bank.tensors().values(), strict=True):
        torch.testing.assert_close(tensor, permuted[rows], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [4, 6])
def test_protected_experts_stay_as_they_are(operator: ExpertReduction, layer: CalibratedLayer, count: int) -> None:
    guarded = replace(layer, protected=frozenset({DEAD, 5}))
    result = reduced(operator, guarded, count)
    for expert in guarded.protected:
        place = result.plan.groups.index((expert,))
        assert torch.equal(result.bank.down_EDF[place], layer.bank.down_EDF[expert])
        assert torch.equal(result.bank.gate_up_E2FD[place], layer.bank.gate_up_E2FD[expert])


def test_the_groups_of_a_router_keep_equally_many(operator: ExpertReduction) -> None:
    grouped = calibrated("deepseek_v3")
    plan = operator.plan(grouped, 6)
    if plan.routes is None:
        assert [expert // 4 for expert in plan.representatives] == [0, 0, 0, 1, 1, 1]
        with pytest.raises(ValueError, match="layer 1 cannot keep 5 experts: its router has 2 groups"):
            operator.plan(grouped, 5)


def test_impossible_counts_are_refused(operator: ExpertReduction, layer: CalibratedLayer) -> None:
    for count in (0, 1, 9):
        with pytest.raises(ValueError, match=f"cannot keep {count} experts: its router needs at least 2"):
            operator.plan(layer, count)
    with pytest.raises(ValueError, match=r"super experts \[0, 1, 2, 3, 4, 5\] are protected"):
        operator.plan(replace(layer, protected=frozenset(range(6))), 4)


def test_data_is_asked_for_where_it_is_needed(operator: ExpertReduction, layer: CalibratedLayer) -> None:
    blind = replace(layer, calibration=None)
    if operator.needs_data:
        with pytest.raises(ValueError, match="no routing statistics; calibrate the model"):
            operator.plan(blind, 4)
    else:
        assert operator.plan(blind, 4) == operator.plan(layer, 4)
