"""DERN (arXiv 2509.10377): drops the least used experts and hands their neurons to the kept ones they fit best.

A segment is one neuron: its gate row, its up row and its down column. The threshold and the average by usage are ours:
the paper's code is not public.

Shapes: E experts, F neurons of an expert, N of all kept experts, X weights of a neuron.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional

from supernets.expert_merging import weight_features, with_features
from supernets.expert_pruning import first_of_each, ranked
from supernets.reduction import CalibratedLayer, ExpertPlan, ExpertReduction, ReducedBank

LEAST_COSINE = 0.3
"""Between two neurons' weights; a neuron that fits none goes with its expert."""


class Dern(ExpertReduction):
    """Keeps the experts of the largest sums of gates; each dropped neuron melts into the most similar kept one."""

    name = "dern"

    def groups(self, layer: CalibratedLayer, count: int) -> Sequence[Sequence[int]]:
        """The kept experts, each alone: what was dropped is spread over many."""
        order = ranked(layer.statistics.score(0, 1, 0), layer.protected)
        return [(expert,) for expert in first_of_each(order, layer, count)]

    def reduce(self, plan: ExpertPlan, layer: CalibratedLayer) -> ReducedBank:
        """Weighted averages of neurons at the width that there was."""
        kept = list(plan.representatives)
        neurons_EFX, usage_E = weight_features(layer.bank).double(), layer.statistics.counts_E.clamp(min=1)
        own_NX = neurons_EFX[kept].flatten(0, 1)
        weight_N = usage_E[kept].repeat_interleave(layer.bank.width)
        sums_NX, added_N = torch.zeros_like(own_NX), torch.zeros_like(weight_N)
        closed_N = torch.tensor([expert in layer.protected for expert in kept]).repeat_interleave(layer.bank.width)
        unit_NX = functional.normalize(own_NX)
        for expert in set(range(layer.count)) - set(kept):
            cosine_FN = functional.normalize(neurons_EFX[expert]) @ unit_NX.T
            best_F, target_F = cosine_FN.masked_fill(closed_N, -1).max(1)
            share_F = usage_E[expert] * (best_F > LEAST_COSINE)
            sums_NX.index_add_(0, target_F, neurons_EFX[expert] * share_F[:, None])
            added_N.index_add_(0, target_F, share_F)
        mixed_NX = (own_NX * weight_N[:, None] + sums_NX) / (weight_N + added_N)[:, None]
        mixed_NX = torch.where(added_N[:, None] > 0, mixed_NX, own_NX)
        bank = with_features(layer.bank.select(kept), torch.unflatten(mixed_NX, 0, (len(kept), -1)))
        return ReducedBank(bank=bank, plan=plan)


REDUCTION = Dern()
