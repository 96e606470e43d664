"""Orders heads, neurons and layers by importance on task data, once, so that every slice keeps the best part.

Units of a group (heads, neurons): the expected loss change when a unit's output is removed, to first order. For a unit
with output slice h, that is ``E |sum_over_its_features h * dL/dh|``, summed over the tokens of one example before the
absolute value (Michel et al., "Are Sixteen Heads Really Better than One?", arXiv 1905.10650, eq. 1-2; the same Taylor
criterion serves neurons). Layers: greedy backward elimination by the loss of the network without them.

Shapes: B batch, T tokens, U units, F features of one unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from supernets.elastic import ElasticGroup
from supernets.space import Architecture, LayerChoice
from supernets.supernet import Supernet

BatchT = TypeVar("BatchT")
LossOfBatch = Callable[[BatchT], Tensor]
"""Mean loss of the active network on a batch, whatever a batch is to the caller."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Importance:
    """Scores measured on data, and the orders they imply.

    Attributes:
        units: (axis, layer) → one score per unit; larger matters more.
        layer_order: layer indices, most important first.
        layer_losses: loss after each greedy removal, from the first layer removed to the last.
    """

    units: dict[tuple[str, int], tuple[float, ...]]
    layer_order: tuple[int, ...]
    layer_losses: tuple[float, ...]

    @property
    def orders(self) -> dict[tuple[str, int], list[int]]:
        """(axis, layer) → units, most important first; ties keep their place."""
        return {key: sorted(range(len(s)), key=lambda unit: (-s[unit], unit)) for key, s in self.units.items()}


def order_by_importance(
    supernet: Supernet, batches: Iterable[BatchT], loss: LossOfBatch[BatchT], optimizer: torch.optim.Optimizer
) -> Importance:
    """Measure importance and put units, the optimiser's moments and layers in that order."""
    importance = measure_importance(supernet, batches, loss)
    names: dict[Tensor, str] = {parameter: name for name, parameter in supernet.model.named_parameters()}
    moments: dict[str, dict[str, Tensor]] = {}
    for parameter, state in optimizer.state.items():
        for kind, tensor in state.items():
            if isinstance(tensor, Tensor) and tensor.shape == parameter.shape:
                moments.setdefault(kind, {})[names[parameter]] = tensor
    supernet.reorder(importance.orders, companions=list(moments.values()))
    supernet.space = supernet.space.reordered(importance.layer_order)
    return importance


def measure_importance(supernet: Supernet, batches: Iterable[BatchT], loss: LossOfBatch[BatchT]) -> Importance:
    """Score every unit and layer of the largest network on a few batches; the model is left as it was."""
    batches = list(batches)
    if not batches:
        raise ValueError("importance needs at least one batch of data")
    training = supernet.model.training
    supernet.model.eval()
    try:
        units = _unit_scores(supernet, batches, loss)
        order, losses = _layer_order(supernet, batches, loss)
    finally:
        supernet.model.train(training)
    return Importance(units=units, layer_order=order, layer_losses=losses)


def _unit_scores(
    supernet: Supernet, batches: list[BatchT], loss: LossOfBatch[BatchT]
) -> dict[tuple[str, int], tuple[float, ...]]:
    groups = [group for group in supernet.groups if group.consumer]
    totals = {(g.axis, g.layer): torch.zeros(g.units, dtype=torch.float64) for g in groups}
    inputs: dict[str, Tensor] = {}

    def remember(name: str) -> Callable[[object, tuple[Tensor, ...]], None]:
        def hook(_: object, arguments: tuple[Tensor, ...]) -> None:
            inputs[name] = arguments[0]
            arguments[0].retain_grad()

        return hook

    consumers = [supernet.model.get_submodule(group.consumer) for group in groups]
    handles = [
        module.register_forward_pre_hook(remember(group.consumer))
        for module, group in zip(consumers, groups, strict=True)
    ]
    try:
        for batch in batches:
            with torch.enable_grad(), supernet.active(None):
                loss(batch).backward()  # type: ignore[no-untyped-call]
            for group in groups:
                totals[group.axis, group.layer] += _batch_scores(inputs[group.consumer], group)
            supernet.model.zero_grad(set_to_none=True)
    finally:
        for handle in handles:
            handle.remove()
    return {key: tuple(total.tolist()) for key, total in totals.items()}


def _batch_scores(output: Tensor, group: ElasticGroup) -> Tensor:
    """Sum over examples of |sum over tokens and features of h * dL/dh|, per unit [U]."""
    gradient = output.grad
    assert gradient is not None, f"no gradient reached {group.consumer}"
    product_BTUF = torch.unflatten(output.detach().float() * gradient.float(), -1, (group.units, -1))
    return product_BTUF.sum(dim=(1, 3)).abs().sum(dim=0).double().cpu()


@torch.no_grad()
def _layer_order(
    supernet: Supernet, batches: list[BatchT], loss: LossOfBatch[BatchT]
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Remove the layer that hurts least, again and again; the reverse of the removals is the order."""
    kept = list(range(supernet.space.num_layers))
    removed: list[int] = []
    losses: list[float] = []

    def loss_without(layer: int) -> float:
        rest = Architecture(tuple(LayerChoice(index=i, units=()) for i in kept if i != layer))
        with supernet.active(rest):
            return sum(float(loss(batch)) for batch in batches) / len(batches)

    while len(kept) > 1:
        candidates = {layer: loss_without(layer) for layer in kept}
        least = min(kept, key=lambda layer: (candidates[layer], layer))
        kept.remove(least)
        removed.append(least)
        losses.append(candidates[least])
    return (*kept, *reversed(removed)), tuple(losses)
