"""REAM (arXiv 2604.04356): the experts that REAP would keep absorb the others; the router loses its rows.

Shapes: E experts, M experts of one group, R sampled tokens, D model width, F expert width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from supernets.expert_bank import ExpertBank
from supernets.expert_merging import aligned, average, merge_groups, weight_features
from supernets.expert_pruning import first_of_each, ranked
from supernets.reduction import CalibratedLayer, ExpertPlan, ExpertReduction, ReducedBank
from supernets.routing_statistics import cosines

SHARE = 8
"""A group holds at most one in so many experts of a layer (16 of 128 in the paper), more where few groups are left."""


class Ream(ExpertReduction):
    """Merges around the experts of the highest REAP scores, weighted by these scores."""

    name = "ream"
    sequential = True

    def groups(self, layer: CalibratedLayer, count: int) -> Sequence[Sequence[int]]:
        """From the highest score to the lowest, each centroid absorbs the most similar experts that are left."""
        order = ranked(layer.statistics.score(1, 1, 1), layer.protected)
        centroids = first_of_each(order, layer, count)
        left = [expert for expert in order if expert not in centroids]
        similarity_EE = _similarity(layer)
        absorbing = len(set(centroids) - layer.protected)
        room = max(layer.count // SHARE, 1 + -(-len(left) // max(1, absorbing)))
        groups = {centroid: [centroid] for centroid in centroids}
        for centroid in sorted(set(centroids) - layer.protected, key=order.index):
            nearest = sorted(left, key=lambda expert: (-float(similarity_EE[centroid, expert]), order.index(expert)))
            groups[centroid] += nearest[: room - 1]
            left = [expert for expert in left if expert not in groups[centroid]]
        return list(groups.values())

    def reduce(self, plan: ExpertPlan, layer: CalibratedLayer) -> ReducedBank:
        """The average by score after aligning what the inner units do and what they weigh."""
        return ReducedBank(bank=merge_groups(plan, layer, layer.statistics.score(1, 1, 1), _merged), plan=plan)


def _similarity(layer: CalibratedLayer) -> Tensor:
    """(E, E) in [0, 1]: mean of how alike experts answer on average, times their softmax share, and are routed to.

    Of mean answers the cosine counts, of columns of router logits, scaled to length 1, the distance.
    """
    share_ER = layer.statistics.sample_logits_RE.softmax(1).T
    answers_ED = (layer.sample_outputs_ERD * share_ER[:, :, None]).mean(1).double()
    alike_EE = (cosines(answers_ED @ answers_ED.T) + 1) / 2
    distance_EE = (2 - 2 * layer.statistics.logit_similarity_EE).clamp(min=0).sqrt()
    return (alike_EE + 1 - distance_EE / distance_EE.max().clamp(min=torch.finfo(distance_EE.dtype).tiny)) / 2


def _merged(group: ExpertBank, weights_M: Tensor, layer: CalibratedLayer) -> ExpertBank:
    wide, sample_RD = group.mapped(Tensor.float), layer.statistics.sample_RD
    inner_MFR = torch.stack([wide.inner(expert, sample_RD).T for expert in range(group.count)])
    features = (functional.normalize(inner_MFR, dim=2), functional.normalize(weight_features(group), dim=2))
    return average(aligned(group, torch.cat(features, dim=2)), weights_M)


REDUCTION = Ream()
