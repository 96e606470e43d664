"""MoNE (arXiv 2507.00390): the least used and least varied experts become constants, their mean output.

Shapes: E experts, D model width.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from supernets.expert_pruning import ScoredPruning
from supernets.reduction import CalibratedLayer, ExpertPlan, ReducedBank


class Mone(ScoredPruning):
    """Keeps the experts of the highest frequency times output variance; the router stays whole."""

    name = "mone"
    keeps_router = True

    def scores(self, layer: CalibratedLayer) -> Tensor:
        """(E,): share of the tokens times variance."""
        statistics = layer.statistics
        return statistics.counts_E / statistics.tokens * statistics.output_variances_E

    def groups(self, layer: CalibratedLayer, count: int) -> Sequence[Sequence[int]]:
        """The first experts of all: the router's groups stay whole."""
        return [(expert,) for expert in self.order(layer)[:count]]

    def reduce(self, plan: ExpertPlan, layer: CalibratedLayer) -> ReducedBank:
        """The kept experts, and of the others the mean over the tokens that chose them."""
        constants_ED = layer.statistics.mean_outputs_ED.to(layer.bank.down_EDF.dtype)
        constants_ED = constants_ED.index_fill(0, torch.tensor(plan.representatives), 0)
        return replace(super().reduce(plan, layer), constants_ED=constants_ED)


REDUCTION = Mone()
