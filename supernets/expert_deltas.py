"""The trained parts of a mixture of supernets: what its experts differ by, and the routers that weigh the differences.

Shapes: M experts, E = M - 1 deltas, O outputs, I inputs, R rank, F features of an architecture, H hidden units of a
router; lower case where sliced. A coefficient tensor is [E, o], or [E, 1] where all outputs share it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.weight_blend import weight_blend
from supernets.elastic import Cut, ElasticGroup, Member, slice_view
from supernets.space import Architecture
from supernets.weights import ElasticLinear


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


def _cuts(linear: ElasticLinear, dim: int, at: int) -> list[Cut]:
    """The cuts of one dimension of a weight, for a tensor that has this dimension elsewhere."""
    cuts = linear.slot.weight_cuts
    return [Cut(cut.group, replace(cut.member, dim=at)) for cut in cuts if cut.member.dim == dim]


class Deltas(SlicedParameters, ABC):
    """What the experts of one slot differ by from the last one, ``D_i = W_i - W_M``; zero at first."""

    def __init__(self, linear: ElasticLinear, deltas: int) -> None:
        super().__init__()
        if linear.bias is not None:
            cuts = [Cut(cut.group, replace(cut.member, dim=1)) for cut in linear.slot.bias_cuts]
            self.add("bias_EO", linear.bias.new_zeros(deltas, *linear.bias.shape), cuts)

    def bias(self, coefficient_Eo: Tensor, architecture: Architecture) -> Tensor:
        """The coefficients' sum over the biases [o]."""
        return (coefficient_Eo * self.sliced("bias_EO", architecture)).sum(0)

    @abstractmethod
    def weight(self, coefficient_Eo: Tensor, architecture: Architecture) -> Tensor:
        """The coefficients' sum over the weights [o, i]."""


class FullDeltas(Deltas):
    """Deltas as large as the weight: ``(M - 1) * (O * I + O)`` parameters."""

    def __init__(self, linear: ElasticLinear, deltas: int) -> None:
        super().__init__(linear, deltas)
        cuts = (*_cuts(linear, 0, at=1), *_cuts(linear, 1, at=2))
        self.add("delta_EOI", linear.weight.new_zeros(deltas, *linear.weight.shape), cuts)

    def weight(self, coefficient_Eo: Tensor, architecture: Architecture) -> Tensor:
        """As in `Deltas`; sliced first, so that a small network costs little."""
        delta_Eoi = self.sliced("delta_EOI", architecture)
        return weight_blend(delta_Eoi, coefficient_Eo.expand(delta_Eoi.shape[:2]))


class LowRankDeltas(Deltas):
    """Deltas ``D_i = U_i V_i`` with U zero and V random at first: ``(M - 1) * (R * (O + I) + O)`` parameters."""

    def __init__(self, linear: ElasticLinear, deltas: int, rank: int, generator: torch.Generator) -> None:
        super().__init__(linear, deltas)
        weight_OI = linear.weight
        outputs, inputs = weight_OI.shape
        self.add("up_EOR", weight_OI.new_zeros(deltas, outputs, rank), _cuts(linear, 0, at=1))
        down_ERI = torch.randn(deltas, rank, inputs, generator=generator) * inputs**-0.5
        self.add("down_ERI", down_ERI.to(weight_OI), _cuts(linear, 1, at=2))

    def weight(self, coefficient_Eo: Tensor, architecture: Architecture) -> Tensor:
        """As in `Deltas`, as one matrix product."""
        up_Eor = self.sliced("up_EOR", architecture)
        scaled_Eor = coefficient_Eo.to(up_Eor.dtype)[..., None] * up_Eor
        return torch.einsum("eor,eri->oi", scaled_Eor, self.sliced("down_ERI", architecture))


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
        linear: ElasticLinear | None = None,
    ) -> None:
        """`linear` is the module whose outputs get a coefficient each; without it all share one."""
        super().__init__()
        outputs = 1 if linear is None else linear.weight.shape[0]
        cuts = [] if linear is None else _cuts(linear, 0, at=0)
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
