"""Slices and permutations of members against index_select, for plain, offset, fused and interleaved layouts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from supernets.elastic import (
    Cut,
    ElasticGroup,
    Member,
    cuts_by_parameter,
    inverse,
    permute_units,
    slice_view,
    sliced_numel,
    sliced_shape,
)
from supernets.space import Architecture, LayerChoice

AXIS = "units"


def architecture(units: int) -> Architecture:
    return Architecture((LayerChoice(index=0, units=((AXIS, units),)),))


def group_of(units: int, *members: Member) -> ElasticGroup:
    return ElasticGroup(axis=AXIS, layer=0, units=units, members=members, consumer="consumer")


@st.composite
def members(draw: st.DrawFn) -> tuple[int, Member, Tensor]:
    """Units, a member, and a tensor it fits: blocks side by side, or single positions with a stride."""
    units, dim, offset = draw(st.integers(1, 5)), draw(st.integers(0, 2)), draw(st.integers(0, 3))
    stride = draw(st.sampled_from([0, 1, 2, 3]))
    block = draw(st.integers(1, 4)) if stride == 0 else 1
    member = Member(parameter="weight", dim=dim, block=block, offset=offset, stride=stride)
    sizes = [2, 3, 2]
    sizes[dim] = offset + units * max(stride, block) + draw(st.integers(0, 2))
    return units, member, torch.arange(float(torch.Size(sizes).numel())).reshape(sizes)


@given(members(), st.data())
def test_a_view_is_the_selection_of_its_positions_and_no_copy(
    case: tuple[int, Member, Tensor], data: st.DataObject
) -> None:
    units, member, tensor = case
    kept = data.draw(st.integers(1, units))
    view = member.view(tensor, kept)
    positions = torch.tensor(member.positions(range(kept)))
    assert torch.equal(view, tensor.index_select(member.dim, positions))
    assert view.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    cuts = [Cut(group_of(units, member), member)]
    assert sliced_shape(tensor.shape, cuts, architecture(kept)) == tuple(view.shape)
    assert sliced_numel(tensor.shape, cuts, architecture(kept)) == view.numel()


@given(members(), st.data())
def test_permuting_moves_units_and_nothing_else(case: tuple[int, Member, Tensor], data: st.DataObject) -> None:
    units, member, tensor = case
    order = data.draw(st.permutations(range(units)))
    cut = Cut(group_of(units, member), member)
    permuted = tensor.clone()
    permute_units(permuted, cut, order)
    places = list(range(tensor.shape[member.dim]))
    for position, unit in enumerate(order):
        for to, source in zip(member.positions([position]), member.positions([unit]), strict=True):
            places[to] = source
    assert torch.equal(permuted, tensor.index_select(member.dim, torch.tensor(places)))
    permute_units(permuted, cut, inverse(order))
    assert torch.equal(permuted, tensor)


@pytest.mark.parametrize("interleaved", [False, True])
def test_both_halves_of_a_fused_matrix_shrink(interleaved: bool) -> None:
    """Gate and up rows of 4 units, stacked or alternating."""
    tensor = torch.arange(8 * 2.0).reshape(8, 2)
    if interleaved:
        gate, up = (Member(parameter="w", dim=0, offset=i, stride=2) for i in (0, 1))
    else:
        gate, up = (Member(parameter="w", dim=0, offset=i) for i in (0, 4))
    cuts = cuts_by_parameter([group_of(4, gate, up)])["w"]
    rows = [0, 2, 4, 1, 3, 5] if interleaved else [0, 1, 2, 4, 5, 6]
    assert torch.equal(slice_view(tensor, cuts, architecture(3)), tensor[rows])
    assert sliced_shape(tensor.shape, cuts, architecture(3)) == (6, 2)


def test_two_groups_cut_two_dimensions_of_one_parameter() -> None:
    tensor = torch.arange(6 * 4.0).reshape(6, 4)
    rows = ElasticGroup(
        axis="rows", layer=0, units=3, members=(Member(parameter="w", dim=0, block=2),), consumer="consumer"
    )
    columns = ElasticGroup(axis="columns", layer=0, units=4, members=(Member(parameter="w", dim=1),), consumer="w")
    cuts = cuts_by_parameter([rows, columns])["w"]
    both = Architecture((LayerChoice(index=0, units=(("columns", 3), ("rows", 2))),))
    view = slice_view(tensor, cuts, both)
    assert torch.equal(view, tensor[:4, :3])
    assert view.data_ptr() == tensor.data_ptr()
    assert sliced_numel(tensor.shape, cuts, both) == 12


def test_units_kept_of_varied_fixed_and_dropped_layers() -> None:
    group = group_of(5, Member(parameter="w", dim=0))
    assert group.kept(architecture(2)) == 2
    assert group.kept(Architecture((LayerChoice(index=0, units=()),))) == 5
    assert group.kept(Architecture((LayerChoice(index=1, units=((AXIS, 2),)),))) == 0


@given(st.permutations(range(6)))
def test_inverse_undoes(order: list[int]) -> None:
    assert [order[i] for i in inverse(order)] == list(range(6))
