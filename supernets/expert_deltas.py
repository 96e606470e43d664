"""The trained parts of a mixture of supernets: what its experts differ by, and the routers that weigh the differences.

Shapes: M experts, E = M - 1 deltas, O outputs, I inputs, R rank, F features of an architecture, H hidden units of a
router; lower case where sliced. A coefficient tensor is [E, o], or [E, 1] where all outputs share it.

A slot may also be the fused weight of a mixture-of-experts layer, [X, O, I] with biases [X, O]. Then its rows are the X
experts of that layer: ``o`` stands for them in coefficients, and for ``x, o`` in weights and biases.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.weight_blend import weight_blend
from supernets.elastic import Cut, ElasticGroup, Member, slice_view
from supernets.space import Architecture
from supernets.weights import Slot


class SlicedParameters(nn.Module):
    """Parameters that are cut together with the weight of a slot."""

    def __init__(self) -> None:
        super().__init__()
        self.cuts: dict[str, tuple[Cut, ...]] = {}

    def add(self, name: str, value: Tensor, cuts: Iterable[Cut] = ()) -> None:
        """Register a parameter and how it is cut."""
        self.register_parameter(name, nn.Parameter(value))
        self.cuts[name] = tuple(cuts)

    def sliced(self, name: str, architecture: Architecture) -> Tensor:
        """The part of a parameter that an architecture uses, as a view wherever one is possible."""
        return slice_view(self.get_parameter(name), self.cuts[name], architecture)

    def members(self) -> Iterator[tuple[ElasticGroup, Member]]:
        """Which slices belong to which group."""
        for name, cuts in self.cuts.items():
            for cut in cuts:
                yield cut.group, replace(cut.member, parameter=name)


def _moved(cuts: Iterable[Cut], places: Mapping[int, int]) -> list[Cut]:
    """The cuts of some dimensions, for a tensor that has these dimensions elsewhere: old place to new one."""
    return [Cut(c.group, replace(c.member, dim=places[c.member.dim])) for c in cuts if c.member.dim in places]


def _stacked(tensor: Tensor) -> dict[int, int]:
    """Where the dimensions of a tensor are in a stack of such tensors."""
    return {dim: dim + 1 for dim in range(tensor.dim())}


def _by_row(coefficient_Eo: Tensor, stack: Tensor) -> Tensor:
    """Coefficients with as many dimensions as the stack that they multiply."""
    return coefficient_Eo.reshape(*coefficient_Eo.shape, *[1] * (stack.dim() - 2))


class Deltas(SlicedParameters, ABC):
    """What the experts of one slot differ by from the last one, ``D_i = W_i - W_M``; zero at first."""

    def __init__(self, slot: Slot, bias_O: Tensor | None, deltas: int) -> None:
        super().__init__()
        if bias_O is not None:
            cuts = _moved(slot.bias_cuts, _stacked(bias_O))
            self.add("bias_EO", bias_O.new_zeros(deltas, *bias_O.shape), cuts)

    def bias(self, coefficient_Eo: Tensor, architecture: Architecture) -> Tensor:
        """The coefficients' sum over the biases [o]."""
        bias_Eo = self.sliced("bias_EO", architecture)
        return (_by_row(coefficient_Eo, bias_Eo) * bias_Eo).sum(0)

    @abstractmethod
    def weight(self, coefficient_Eo: Tensor, architecture: Architecture) -> Tensor:
        """The coefficients' sum over the weights [o, i]."""


class FullDeltas(Deltas):
    """Deltas as large as the weight: ``(M - 1) * (O * I + O)`` parameters, X times as many for fused weights."""

    def __init__(self, slot: Slot, weight_OI: Tensor, bias_O: Tensor | None, deltas: int) -> None:
        super().__init__(slot, bias_O, deltas)
        cuts = _moved(slot.weight_cuts, _stacked(weight_OI))
        self.add("delta_EOI", weight_OI.new_zeros(deltas, *weight_OI.shape), cuts)

    def weight(self, coefficient_Eo: Tensor, architecture: Architecture) -> Tensor:
        """As in `Deltas`; sliced first, so that a small network costs little."""
        delta_Eoi = self.sliced("delta_EOI", architecture)
        blended = weight_blend(delta_Eoi.flatten(2), coefficient_Eo.expand(delta_Eoi.shape[:2]))
        return blended.view(delta_Eoi.shape[1:])


class LowRankDeltas(Deltas):
    """Deltas ``D_i = U_i V_i`` with U zero and V random at first: ``(M - 1) * (R * (O + I) + O)`` parameters.

    Fused weights have X times as many.
    """

    def __init__(
        self,
        slot: Slot,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        deltas: int,
        rank: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__(slot, bias_O, deltas)
        *fused, outputs, inputs = weight_OI.shape
        *shared, row, column = _stacked(weight_OI).items()
        up_EOR = weight_OI.new_zeros(deltas, *fused, outputs, rank)
        self.add("up_EOR", up_EOR, _moved(slot.weight_cuts, dict([*shared, row])))
        down_ERI = torch.randn(deltas, *fused, rank, inputs, generator=generator) * inputs**-0.5
        self.add("down_ERI", down_ERI.to(weight_OI), _moved(slot.weight_cuts, dict([*shared, column])))

    def weight(self, coefficient_Eo: Tensor, architecture: Architecture) -> Tensor:
        """As in `Deltas`, as one matrix product, or one for every fused matrix."""
        up_Eor = self.sliced("up_EOR", architecture)
        scaled_Eor = _by_row(coefficient_Eo.to(up_Eor.dtype), up_Eor) * up_Eor
        return torch.einsum("e...or,e...ri->...oi", scaled_Eor, self.sliced("down_ERI", architecture))


class Router(SlicedParameters):
    """Reads an architecture and weighs the deltas: two layers with a ReLU, then a softmax over the experts.

    Its weights are random from the start: with equal coefficients for all architectures nothing would tell the experts
    apart, and with zero deltas as well, nothing would ever move.
    """

    def __init__(
        self,
        features: int,
        experts: int,
        hidden: int,
        dropout: float,
        generator: torch.Generator,
        rows: tuple[Slot, int] | None = None,
    ) -> None:
        """`rows` is the slot whose rows get a coefficient each, and how many it has; without it all share one."""
        super().__init__()
        cuts, outputs = ([], 1) if rows is None else (_moved(rows[0].weight_cuts, {0: 0}), rows[1])
        self.add("hidden_HF", torch.randn(hidden, features, generator=generator) * (2 / features) ** 0.5)
        self.add("hidden_H", torch.zeros(hidden))
        self.add("logit_OMH", torch.randn(outputs, experts, hidden, generator=generator) * hidden**-0.5, cuts)
        self.add("logit_OM", torch.zeros(outputs, experts), cuts)
        self.dropout = dropout

    def coefficients(self, features_F: Tensor, architecture: Architecture) -> Tensor:
        """``beta_i - 1/M`` of all experts but the last, at least in float32: [E, o], or [E, 1] if shared."""
        first_HF, first_H = self.get_parameter("hidden_HF"), self.get_parameter("hidden_H")
        hidden_H = F.relu(F.linear(features_F.to(first_HF.dtype), first_HF, first_H))
        hidden_H = F.dropout(hidden_H, self.dropout, self.training)
        logit_oM = self.sliced("logit_OMH", architecture) @ hidden_H + self.sliced("logit_OM", architecture)
        beta_oM = logit_oM.softmax(-1, dtype=torch.promote_types(logit_oM.dtype, torch.float32))
        return beta_oM.T[:-1] - 1 / beta_oM.shape[1]
