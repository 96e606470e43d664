"""Mixture of supernets: every sub-network reads weights of its own, blended from a few experts by its architecture.

In Mixture-of-Supernets (Jawahar et al., arXiv 2306.04845) a module has M expert weights, and a router that reads the
architecture a: ``W(a) = sum_i beta_i(a) W_i`` with a softmax beta, one for the layer (layer-wise) or one for every
output neuron (neuron-wise). Here the same family of weights is written around the experts' mean W, which is the model's
own parameter, with one delta less than experts:

    W(a) = W + sum over i < M of (beta_i(a) - 1/M) D_i,    D_i = W_i - W_M

The deltas start at zero, so that every sub-network starts with its slice of the pre-trained weights, bit by bit. The
centred coefficients differ in sign between architectures from the first step on, by which the experts separate. Weights
are mixed, not outputs: a sub-network costs what a plain one costs, and extraction writes plain weights.

A slot's weights are generated whenever a training pass reads them: once per architecture and optimiser step in a plain
loop, once per pass under gradient accumulation or activation checkpointing, which therefore see valid graphs and equal
values. In evaluation without gradients they are kept for `KEPT_ARCHITECTURES` architectures.

Memory in bytes on top of the plain supernet's, with P parameters of deltas and routers (`added_parameters`) and G
weights of the mixed modules of the largest network, in float32: 4 P; in training 12 P for gradient and moments, and 4 G
for the generated weights that a backward pass reads or, later, 4 P for the update; in evaluation 4 G for every
architecture that is kept. `supernets.estimate` states the sum before training.

The fused experts of a mixture-of-experts layer are mixed like any weight. The model's router chooses among them for a
token; the router here blends each of them for an architecture, neuron-wise with one coefficient for each.

Shapes: O outputs, I inputs; lower case where sliced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn

from supernets.architecture_encoding import ArchitectureEncoding
from supernets.elastic import ElasticGroup, Member
from supernets.expert_deltas import Deltas, FullDeltas, LowRankDeltas, Router, SlicedParameters
from supernets.space import EXPERT_WIDTH, EXPERTS, FFN_WIDTH, HEADS, KV_GROUPS, OPERATOR, Architecture
from supernets.supernet import Supernet
from supernets.weight_cache import WeightCache
from supernets.weights import SlicedWeights, Slot, TrainedSource

Kind = Literal["layer", "neuron"]
"""One softmax over the experts for all modules of a layer, or one for every output neuron (fused expert)."""

MODULES = {"ffn": {FFN_WIDTH}, "attention": {HEADS, KV_GROUPS}, "experts": {EXPERTS, EXPERT_WIDTH}}
"""What may be mixed: the weights that one of the axes cuts."""

KEPT_ARCHITECTURES = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureSettings:
    """What a mixture is made of.

    Attributes:
        kind: what shares a coefficient.
        experts: M, the model's own weights included.
        rank: of the deltas; None for deltas as large as the weights.
        modules: names among `MODULES`.
        hidden: units of a router's hidden layer.
        dropout: of these units, in training only, drawn anew for every module.
    """

    kind: Kind = "layer"
    experts: int = 2
    rank: int | None = None
    modules: tuple[str, ...] = ("ffn",)
    hidden: int = 64
    dropout: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "modules", tuple(self.modules))  # JSON knows lists only
        if self.kind not in ("layer", "neuron"):
            raise ValueError(f"a mixture is of kind layer or neuron, got {self.kind!r}")
        if self.experts < 2:
            raise ValueError(f"a mixture has at least 2 experts, got {self.experts}; one is the plain supernet")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"the rank of a mixture is at least 1, got {self.rank}; leave it out for full matrices")
        if not self.modules or set(self.modules) - set(MODULES) or len(set(self.modules)) < len(self.modules):
            known = ", ".join(MODULES)
            raise ValueError(f"mixed modules are one or several of {known}, each once, got {self.modules}")
        if self.hidden < 1 or not 0 <= self.dropout < 1:
            raise ValueError(f"hidden is at least 1 and dropout in [0, 1), got {self.hidden} and {self.dropout}")


class Mixture(TrainedSource):
    """Blends the weights of some modules by the architecture; all others are plain slices."""

    def __init__(
        self,
        supernet: Supernet,
        settings: MixtureSettings,
        *,
        seed: int = 0,
        encoding: ArchitectureEncoding | None = None,
    ) -> None:
        """Make deltas and routers for a supernet, which `Supernet.adopt` then reads weights from.

        Args:
            encoding: what the routers read; default that of the supernet's space.

        Raises:
            ValueError: the supernet has nothing to mix, its experts are merged by operators, or the rank exceeds a
                mixed weight's.
        """
        super().__init__()
        self.settings, self.encoding = settings, encoding or ArchitectureEncoding.of(supernet.space)
        self.cache = WeightCache(KEPT_ARCHITECTURES)
        self.deltas, self.routers = nn.ModuleDict(), nn.ModuleDict()
        self._plain = SlicedWeights()
        self._parts: dict[str, tuple[Deltas, Router]] = {}
        generator = torch.Generator().manual_seed(seed)
        for slot, weight_OI, bias_O in _weights(supernet, settings.modules):
            self._mix(slot, weight_OI, bias_O, generator)
        if not self._parts:
            others = [name for name in MODULES if any(_weights(supernet, (name,)))]
            remedy = f"; it has {' and '.join(others)}" if others else ""
            raise ValueError(f"this supernet has no elastic {' or '.join(settings.modules)} to mix{remedy}")
        if "experts" in settings.modules and supernet.space.labels.get(OPERATOR):
            raise ValueError(
                "experts that an operator reduces cannot be mixed, since it goes by weights that are fixed: make the "
                "supernet without operators, or mix attention"
            )

    @classmethod
    def over(
        cls,
        supernet: Supernet,
        *,
        kind: Kind = "layer",
        experts: int = 2,
        rank: int | None = None,
        modules: Sequence[str] = ("ffn",),
        hidden: int = 64,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> Self:
        """Turn a supernet into a mixture; every sub-network computes what it did, until it is trained.

        Args as in `MixtureSettings`; `seed` decides the routers' first weights.

        Raises:
            ValueError: settings out of range, nothing to mix, or a mixture already.
        """
        settings = MixtureSettings(
            kind=kind, experts=experts, rank=rank, modules=tuple(modules), hidden=hidden, dropout=dropout
        )
        mixture = cls(supernet, settings, seed=seed)
        supernet.adopt(mixture)
        return mixture

    @property
    def added_parameters(self) -> int:
        """Parameters of deltas and routers; an extracted network has none of them."""
        return sum(parameter.numel() for parameter in self.parameters())

    # -- weights ------------------------------------------------------------------------------------------------

    def weights(
        self, slot: Slot, weight_OI: Tensor, bias_O: Tensor | None, architecture: Architecture
    ) -> tuple[Tensor, Tensor | None]:
        """Blended weight [o, i] and bias [o] of a mixed slot, views of any other."""
        if slot.name not in self._parts:
            return self._plain.weights(slot, weight_OI, bias_O, architecture)
        deltas, router = self._parts[slot.name]
        made_from = [weight_OI, *([] if bias_O is None else [bias_O]), *deltas.parameters(), *router.parameters()]

        def generate() -> tuple[Tensor, Tensor | None]:
            with torch.autocast(weight_OI.device.type, enabled=False):
                return self._blend(slot, weight_OI, bias_O, architecture)

        if self.training or torch.is_grad_enabled() or any(tensor.is_inference() for tensor in made_from):
            return generate()
        return self.cache.get(slot.name, architecture, made_from, generate)

    def _blend(
        self, slot: Slot, weight_OI: Tensor, bias_O: Tensor | None, architecture: Architecture
    ) -> tuple[Tensor, Tensor | None]:
        deltas, router = self._parts[slot.name]
        vector_F = torch.tensor(self.encoding.vector(architecture), device=weight_OI.device)
        coefficient_Eo = router.coefficients(vector_F, architecture)
        weight_oi, bias_o = self._plain.weights(slot, weight_OI, bias_O, architecture)
        weight_oi = weight_oi + deltas.weight(coefficient_Eo, architecture)
        if bias_o is not None:
            bias_o = bias_o + deltas.bias(coefficient_Eo, architecture).to(bias_o.dtype)
        return weight_oi, bias_o

    def members(self) -> Iterator[tuple[ElasticGroup, Member]]:
        """Deltas, and the routers' outputs for single neurons, by the group that cuts the weight they belong to."""
        for path, module in self.named_modules():
            if isinstance(module, SlicedParameters):
                for group, member in module.members():
                    yield group, replace(member, parameter=f"{path}.{member.parameter}")

    # -- construction -------------------------------------------------------------------------------------------

    def _mix(self, slot: Slot, weight_OI: Tensor, bias_O: Tensor | None, generator: torch.Generator) -> None:
        """Give one weight its deltas, and a router of its own or that of its layer's group."""
        settings, key, most = self.settings, slot.name.replace(".", "/"), min(weight_OI.shape[-2:])
        deltas: Deltas
        if settings.rank is None:
            deltas = FullDeltas(slot, weight_OI, bias_O, settings.experts - 1)
        else:
            if settings.rank > most:
                raise ValueError(
                    f"rank {settings.rank} exceeds the {most} of {slot.name}; choose a smaller one, or leave it out "
                    "for full matrices"
                )
            deltas = LowRankDeltas(slot, weight_OI, bias_O, settings.experts - 1, settings.rank, generator)
        self.deltas[key] = deltas
        group = slot.weight_cuts[0].group
        owner = key if settings.kind == "neuron" else f"{group.axis}/{group.layer}"
        if owner not in self.routers:
            sizes = (len(self.encoding), settings.experts, settings.hidden, settings.dropout)
            router = Router(*sizes, generator, (slot, len(weight_OI)) if settings.kind == "neuron" else None)
            self.routers[owner] = router.to(weight_OI)
        found = self.routers[owner]
        assert isinstance(found, Router)
        self._parts[slot.name] = (deltas, found)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.cache.clear()  # the old weights would live on until asked for again
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def _weights(supernet: Supernet, modules: Sequence[str]) -> Iterator[tuple[Slot, Tensor, Tensor | None]]:
    """The weights that belong to some of `MODULES`, with their biases."""
    axes = set[str]().union(*(MODULES[name] for name in modules))
    linears = ((linear.slot, linear.weight, linear.bias) for linear in supernet.elastic.values())
    fused = (weight for block in supernet.experts.values() for weight in block.fused())
    for slot, weight_OI, bias_O in (*linears, *fused):
        if axes & {cut.group.axis for cut in slot.weight_cuts}:
            yield slot, weight_OI, bias_O
