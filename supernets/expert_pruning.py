"""What operators that rank experts share: keep the best of each router group.

Shapes: E experts.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from supernets.reduction import CalibratedLayer, ExpertReduction


class RankedPruning(ExpertReduction):
    """Keeps the first experts of an order that does not depend on how many are kept."""

    nested: ClassVar[bool] = True
    pruning: ClassVar[bool] = True

    @abstractmethod
    def order(self, layer: CalibratedLayer) -> Sequence[int]:
        """All experts, most important first; the protected ones lead."""

    def groups(self, layer: CalibratedLayer, count: int) -> Sequence[Sequence[int]]:
        """The first experts, each alone."""
        return [(expert,) for expert in first_of_each(self.order(layer), layer, count)]


class ScoredPruning(RankedPruning):
    """Keeps the experts of the highest scores."""

    @abstractmethod
    def scores(self, layer: CalibratedLayer) -> Tensor:
        """(E,): larger matters more."""

    def order(self, layer: CalibratedLayer) -> Sequence[int]:
        """By score."""
        return ranked(self.scores(layer), layer.protected)


class NormScore(ScoredPruning):
    """``S(b, α, β)`` of `LayerStatistics.score`."""

    def __init__(self, name: str, b: int, alpha: int, beta: int) -> None:
        self.name = name
        self.powers = (b, alpha, beta)

    def scores(self, layer: CalibratedLayer) -> Tensor:
        """Gates to the power α times output norms to the power β, per token to the power b."""
        return layer.statistics.score(*self.powers)


def ranked(scores_E: Tensor, protected: frozenset[int] = frozenset()) -> list[int]:
    """Experts by falling score after the protected ones; ties keep their place."""
    scores = scores_E.tolist()
    return sorted(range(len(scores)), key=lambda expert: (expert not in protected, -scores[expert], expert))


def first_of_each(order: Sequence[int], layer: CalibratedLayer, count: int) -> list[int]:
    """The first `count` experts of an order, equally many of each router group, group after group."""
    size, share = layer.count // layer.router_groups, count // layer.router_groups
    members = [[expert for expert in order if expert // size == group] for group in range(layer.router_groups)]
    return [expert for group in members for expert in group[:share]]


def content_order(layer: CalibratedLayer) -> list[int]:
    """Experts by the norm of their weights: an order that does not depend on how the checkpoint numbers them."""
    return ranked(layer.bank.norms())


def threshold_counts(scores: Mapping[int, Tensor], total: int, least: int) -> dict[int, int]:
    """How many experts each layer keeps under one threshold for all of them, as M-SMoE (arXiv 2310.01334) allots them.

    Args:
        scores: layer → (E,) scores; each layer's largest is scaled to 1.
        total: experts kept in all layers together.
        least: every layer keeps at least so many.

    Raises:
        ValueError: the total is below the least of all layers or above what there is.
    """
    available = sum(len(one) for one in scores.values())
    if not least * len(scores) <= total <= available:
        raise ValueError(
            f"{total} experts cannot be spread over {len(scores)} layers: between {least * len(scores)} and "
            f"{available} are possible"
        )
    counts = dict.fromkeys(scores, least)
    spare = []
    for layer, scores_E in scores.items():
        scaled = (scores_E / scores_E.max().clamp(min=torch.finfo(scores_E.dtype).tiny)).tolist()
        spare += [(-score, layer) for score in sorted(scaled, reverse=True)[least:]]
    for _, layer in sorted(spare)[: total - least * len(scores)]:
        counts[layer] += 1
    return counts
