"""The generic elastic core: groups of parameter slices that shrink together.

An *elastic group* is one axis of one layer, such as the 12 heads of layer 3. Its members say which slices of which
parameters belong to each unit (head, neuron). Slicing, reordering, extracting and counting are written here once,
over groups; a model family only lists its groups.

The first *k* units of an axis are always the kept ones, so a slice is a view. `reorder` puts the units in order of
importance once, in place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from supernets.space import Architecture


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """The slice of one parameter that belongs to each unit of a group.

    Unit *u* owns the positions ``offset + u * stride + (0 .. block - 1)`` along `dim`. A fused gate/up matrix is two
    members with different offsets, an interleaved one two members with stride 2.
    """

    parameter: str
    dim: int
    block: int = 1
    offset: int = 0
    stride: int = 0
    """Distance between units; 0 means `block` (units lie side by side)."""

    @property
    def step(self) -> int:
        """Distance between the first positions of neighbouring units."""
        return self.stride or self.block

    def view(self, tensor: Tensor, units: int) -> Tensor:
        """The first `units` units as a view: no copy, whatever their number."""
        if self.stride in (0, self.block):
            return tensor.narrow(self.dim, self.offset, units * self.block)
        assert self.block == 1, "units with gaps between them need block 1 to be a view"
        return tensor[(slice(None),) * self.dim + (slice(self.offset, self.offset + units * self.step, self.step),)]

    def positions(self, units: Sequence[int]) -> list[int]:
        """Positions along `dim` of the given units, in that order."""
        return [self.offset + u * self.step + b for u in units for b in range(self.block)]


@dataclass(frozen=True, kw_only=True, slots=True)
class ElasticGroup:
    """One elastic axis of one layer.

    Attributes:
        axis: name of the axis in the search space.
        layer: index of the layer it belongs to.
        units: how many units the largest network has.
        members: the slices that shrink together.
        consumer: the module whose *input* features are the units' outputs; importance is read there. Empty where
            something else decides the order.
        size: what one unit counts on the axis; a unit may be one expert of each of a router's groups.
    """

    axis: str
    layer: int
    units: int
    members: tuple[Member, ...]
    consumer: str = ""
    size: int = 1

    def kept(self, architecture: Architecture) -> int:
        """Units an architecture keeps: all where it does not vary the axis, 0 where it drops the layer."""
        layer = architecture.by_index.get(self.layer)
        if layer is None:
            return 0
        kept = layer.kept(self.axis)
        return self.units if kept is None else kept // self.size


@dataclass(frozen=True, slots=True)
class Cut:
    """A member together with its group: how one dimension of one parameter depends on the architecture."""

    group: ElasticGroup
    member: Member

    def view(self, tensor: Tensor, architecture: Architecture) -> Tensor:
        """The units an architecture keeps, as a view."""
        return self.member.view(tensor, self.group.kept(architecture))


def cuts_by_parameter(groups: Sequence[ElasticGroup]) -> dict[str, tuple[Cut, ...]]:
    """All cuts of every elastic parameter, by parameter name."""
    table: dict[str, tuple[Cut, ...]] = {}
    for group in groups:
        for member in group.members:
            table[member.parameter] = (*table.get(member.parameter, ()), Cut(group, member))
    return table


def slice_view(tensor: Tensor, cuts: Sequence[Cut], architecture: Architecture) -> Tensor:
    """The part of a parameter that an architecture uses.

    A view wherever every dimension is cut by one member; dimensions with several members (fused matrices) are
    concatenated from views.
    """
    if len(cuts) == 1:
        return cuts[0].view(tensor, architecture)
    for dim in sorted({cut.member.dim for cut in cuts}):
        pieces = [cut.view(tensor, architecture) for cut in cuts if cut.member.dim == dim]
        tensor = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)
    return tensor


def sliced_shape(shape: Sequence[int], cuts: Sequence[Cut], architecture: Architecture) -> tuple[int, ...]:
    """Shape of `slice_view` without touching a tensor."""
    sizes = list(shape)
    for dim in {cut.member.dim for cut in cuts}:
        sizes[dim] = sum(c.group.kept(architecture) * c.member.block for c in cuts if c.member.dim == dim)
    return tuple(sizes)


def sliced_numel(shape: Sequence[int], cuts: Sequence[Cut], architecture: Architecture) -> int:
    """Number of elements of `slice_view`."""
    return prod(sliced_shape(shape, cuts, architecture))


def permute_units(tensor: Tensor, cut: Cut, order: Sequence[int]) -> None:
    """Put the units of one member into a new order, in place: position *i* receives what was unit ``order[i]``.

    Works for a parameter and for anything of its shape, such as optimiser moments.
    """
    identity = range(cut.group.units)
    target = torch.tensor(cut.member.positions(identity), device=tensor.device)
    source = torch.tensor(cut.member.positions(order), device=tensor.device)
    with torch.no_grad():
        tensor.index_copy_(cut.member.dim, target, tensor.index_select(cut.member.dim, source))


def inverse(order: Sequence[int]) -> list[int]:
    """The permutation that undoes `order`."""
    result = [0] * len(order)
    for position, unit in enumerate(order):
        result[unit] = position
    return result


Orders = Mapping[tuple[str, int], Sequence[int]]
"""(axis, layer) → units in order of importance, most important first."""
