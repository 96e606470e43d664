"""The one seam through which every elastic module reads its weights.

`WeightSource.weights(slot, weight, bias, architecture)` is asked by the active forward pass and by extraction alike, so
that both see the same numbers bit for bit. A plain supernet answers with slices; other sources may blend or reduce.

Shapes: B batch, T tokens, I input features, O output features; lower case where sliced.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from supernets.elastic import Cut, ElasticGroup, Member, slice_view
from supernets.space import Architecture


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of an elastic weight: its name in the model, and how it and its bias are cut.

    That of a linear layer, named after the layer, or the fused weight of all experts of a layer, which has a dimension
    more in front, one row for each expert, as its bias has.
    """

    name: str
    weight_cuts: tuple[Cut, ...]
    bias_cuts: tuple[Cut, ...]


class WeightSource(Protocol):
    """Answers which weights a slot has under an architecture."""

    def weights(
        self, slot: Slot, weight_OI: Tensor, bias_O: Tensor | None, architecture: Architecture
    ) -> tuple[Tensor, Tensor | None]:
        """The weight [o, i] and bias [o] of a slot, given its full parameters; fused experts in front of either."""
        ...


class SlicedWeights:
    """Plain weight sharing: every sub-network uses leading slices of the same parameters, as views."""

    def weights(
        self, slot: Slot, weight_OI: Tensor, bias_O: Tensor | None, architecture: Architecture
    ) -> tuple[Tensor, Tensor | None]:
        """Views of the parameters; gradients reach only the slice."""
        bias = None if bias_O is None else slice_view(bias_O, slot.bias_cuts, architecture)
        return slice_view(weight_OI, slot.weight_cuts, architecture), bias


class TrainedSource(nn.Module, ABC):
    """A weight source with parameters of its own, which `Supernet.adopt` makes part of the model."""

    @abstractmethod
    def weights(
        self, slot: Slot, weight_OI: Tensor, bias_O: Tensor | None, architecture: Architecture
    ) -> tuple[Tensor, Tensor | None]:
        """As in `WeightSource`."""

    @abstractmethod
    def members(self) -> Iterator[tuple[ElasticGroup, Member]]:
        """The slices of its own parameters that shrink, and are put in order, with a group of the model."""


class Seam:
    """What all elastic modules of one supernet share: the weight source and the active architecture."""

    def __init__(self, source: WeightSource) -> None:
        self.source = source
        self.architecture: Architecture | None = None
        """None means the largest network."""
        self.largest: Architecture | None = None
        """What the source is asked for the largest network; None where that has the untouched parameters."""

    @property
    def asked(self) -> Architecture | None:
        """What the source is asked for now; None where nothing is asked and the parameters are used as they are."""
        return self.largest if self.architecture is None else self.architecture


class ElasticLinear(nn.Module):
    """A linear layer that computes with the active slice of the parameters it shares with the original layer."""

    def __init__(self, linear: nn.Linear, slot: Slot, seam: Seam) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self.slot = slot
        self.seam = seam
        self._kept: tuple[Architecture, tuple[int, int], Tensor, Tensor | None] | None = None

    def active_weights(self) -> tuple[Tensor, Tensor | None]:
        """Weight [o, i] and bias [o] of the active architecture.

        Without gradients, views are kept until the architecture or a parameter's storage changes; they follow in-place
        updates because they are views. Anything else the source answers is asked for again in every pass.
        """
        seam, full_weight, full_bias = self.seam, self.weight, self.bias
        architecture = seam.asked
        if architecture is None:
            return full_weight, full_bias
        if torch.is_grad_enabled():
            return seam.source.weights(self.slot, full_weight, full_bias, architecture)
        kept, address = self._kept, (full_weight.data_ptr(), 0 if full_bias is None else full_bias.data_ptr())
        if kept is None or kept[0] is not architecture or kept[1] != address:
            weight, bias = seam.source.weights(self.slot, full_weight, full_bias, architecture)
            if not _is_view(weight, full_weight) or not _is_view(bias, full_bias):
                return weight, bias
            self._kept = kept = (architecture, address, weight, bias)
        return kept[2:]

    def forward(self, x_BTI: Tensor) -> Tensor:
        """[..., i] → [..., o]."""
        weight, bias = self.active_weights()
        return nn.functional.linear(x_BTI, weight, bias)

    def forget(self) -> None:
        """Drop kept views, because another source answers from now on."""
        self._kept = None

    def restored(self) -> nn.Linear:
        """A plain linear layer around the same parameters."""
        out_features, in_features = self.weight.shape
        linear = nn.Linear(in_features, out_features, bias=self.bias is not None, device="meta")
        linear.weight = self.weight
        linear.bias = self.bias
        return linear.train(self.training)


def _is_view(tensor: Tensor | None, parameter: Tensor | None) -> bool:
    if tensor is parameter:
        return True
    if tensor is None or parameter is None:
        return False
    return tensor.untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr()


class Skipped(nn.Module):
    """Stands where the active architecture drops a layer."""

    def forward(self, hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        """The residual stream as it came."""
        return hidden_states


class ElasticLayers(nn.ModuleList):
    """A module list that runs the layers the active architecture keeps; names, indices and places stay."""

    seam: Seam

    @classmethod
    def wrap(cls, layers: nn.ModuleList, seam: Seam) -> ElasticLayers:
        """Share the modules of an existing list."""
        wrapped = cls(list(layers))
        wrapped.seam = seam
        return wrapped.train(layers.training)

    def __iter__(self) -> Iterator[nn.Module]:
        architecture = self.seam.architecture
        if architecture is None:
            return super().__iter__()
        kept = architecture.by_index
        return iter([layer if i in kept else Skipped() for i, layer in enumerate(self._modules.values())])

    def __getitem__(self, index: Any) -> Any:
        """One layer, whether it is kept or not, or a list of those that run."""
        return list(self)[index] if isinstance(index, slice) else super().__getitem__(index)
