"""What operators that merge experts share: clusters, permutations that line inner units up, weighted averages.

Shapes: E experts, M experts of one group, D model width, F expert width, X features of one inner unit.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from scipy.linalg import qr
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from supernets.expert_bank import ExpertBank
from supernets.expert_pruning import ranked
from supernets.reduction import CalibratedLayer, ExpertPlan, ExpertReduction, ReducedBank

Merge = Callable[[ExpertBank, Tensor], ExpertBank]
"""A bank of M experts and their (M,) weights, which sum to 1, to a bank of one."""


class Merging(ExpertReduction):
    """Puts similar experts together and averages them behind the whole router."""

    keeps_router: ClassVar[bool] = True

    @abstractmethod
    def clusters(self, layer: CalibratedLayer, experts: Sequence[int], count: int) -> Sequence[Sequence[int]]:
        """Divide some experts into at most `count` < len(experts) clusters."""

    def merged(self, group: ExpertBank, weights_M: Tensor, layer: CalibratedLayer) -> ExpertBank:
        """A bank of the one expert that a group becomes, its representative first: the weighted average."""
        return average(group, weights_M)

    def weights(self, layer: CalibratedLayer) -> Tensor:
        """(E,) weights of the experts in an average, not yet scaled: how often each is chosen."""
        return layer.statistics.counts_E

    def groups(self, layer: CalibratedLayer, count: int) -> Sequence[Sequence[int]]:
        """The protected experts alone and clusters of the others; the most used expert represents its cluster."""
        order = ranked(layer.statistics.counts_E)
        free = [expert for expert in order if expert not in layer.protected]
        room = count - len(layer.protected)
        clusters = [sorted(one, key=order.index) for one in self.clusters(layer, free, room) if len(one)]
        while len(clusters) < room:
            _detach_one(clusters)
        clusters += [[expert] for expert in layer.protected]
        return sorted(clusters, key=lambda cluster: order.index(cluster[0]))

    def reduce(self, plan: ExpertPlan, layer: CalibratedLayer) -> ReducedBank:
        """Merge each group."""
        return ReducedBank(bank=merge_groups(plan, layer, self.weights(layer), self.merged), plan=plan)


def merge_groups(
    plan: ExpertPlan,
    layer: CalibratedLayer,
    weights_E: Tensor,
    merged: Callable[[ExpertBank, Tensor, CalibratedLayer], ExpertBank],
) -> ExpertBank:
    """A bank with one expert for each group of a plan; an expert that is alone stays bit for bit."""
    banks = []
    for group in plan.groups:
        members, weights_M = layer.bank.select(group), weights_E[list(group)].double()
        if len(group) > 1:
            unused = float(weights_M.sum()) == 0
            weights_M = torch.ones_like(weights_M) if unused else weights_M
            members = merged(members, weights_M / weights_M.sum(), layer)
        banks.append(members)
    whole = {name: torch.cat([getattr(bank, name) for bank in banks]) for name in banks[0].tensors()}
    return ExpertBank(**whole, activate=layer.bank.activate)


def average(group: ExpertBank, weights_M: Tensor) -> ExpertBank:
    """The weighted sum of all tensors, computed in 64 bits."""

    def summed(tensor: Tensor) -> Tensor:
        total: Tensor = torch.tensordot(weights_M, tensor.double(), dims=1)
        return total[None].to(tensor.dtype)

    return group.mapped(summed)


def aligned(group: ExpertBank, features_MFX: Tensor) -> ExpertBank:
    """Every expert's inner units in the order in which they best match the first expert's.

    The sum of squared distances between features is least (linear assignment); no expert changes what it computes.
    """
    orders = [torch.arange(group.width)]
    for features_FX in features_MFX[1:]:
        similar_FF = (features_MFX[0].float() @ features_FX.float().T).numpy()
        orders.append(torch.from_numpy(linear_sum_assignment(similar_FF, maximize=True)[1]))
    order_MF = torch.stack(orders)
    both_M2F = torch.cat([order_MF, order_MF + group.width], dim=1)
    up_bias = group.gate_up_bias_E2F
    return ExpertBank(
        gate_up_E2FD=group.gate_up_E2FD.take_along_dim(both_M2F[:, :, None], dim=1),
        down_EDF=group.down_EDF.take_along_dim(order_MF[:, None, :], dim=2),
        gate_up_bias_E2F=None if up_bias is None else up_bias.take_along_dim(both_M2F, dim=1),
        down_bias_ED=group.down_bias_ED,
        activate=group.activate,
    )


def weight_features(group: ExpertBank) -> Tensor:
    """(M, F, X): of each inner unit its gate row, its up row, its down column and its biases."""
    parts = [*group.gate_up_E2FD.chunk(2, dim=1), group.down_EDF.transpose(1, 2)]
    if group.gate_up_bias_E2F is not None:
        parts += [bias[..., None] for bias in group.gate_up_bias_E2F.chunk(2, dim=1)]
    return torch.cat(parts, dim=2)


def with_features(group: ExpertBank, features_MFX: Tensor) -> ExpertBank:
    """The inverse of `weight_features`, in the element type of the group."""
    depth, has_bias = group.down_EDF.shape[1], group.gate_up_bias_E2F is not None
    sizes = [depth] * 3 + [1, 1] * has_bias
    gate, up, down, *biases = torch.split(features_MFX.to(group.down_EDF.dtype), sizes, dim=2)
    return replace(
        group,
        gate_up_E2FD=torch.cat([gate, up], dim=1),
        down_EDF=down.transpose(1, 2),
        gate_up_bias_E2F=torch.cat(biases, dim=1)[..., 0] if has_bias else None,
    )


def nearest(similarity_EE: Tensor, dominant: Sequence[int], others: Sequence[int]) -> list[list[int]]:
    """Each dominant expert with the others to which it is the most similar one."""
    clusters = [[expert] for expert in dominant]
    for expert in others:
        clusters[int(similarity_EE[expert, list(dominant)].argmax())].append(expert)
    return clusters


def spectral(affinity_EE: Tensor, count: int) -> list[list[int]]:
    """Positions in up to `count` clusters of the graph of affinities >= 0.

    Normalised cut (Shi and Malik, 2000), its eigenvectors rotated onto the clusters by a pivoted QR decomposition
    (Damle, Minden, Ying, arXiv 1609.08251) in place of k-means: nothing random, no order matters.
    """
    degree_E = affinity_EE.sum(1).clamp(min=torch.finfo(affinity_EE.dtype).tiny).rsqrt()
    vectors_EC = torch.linalg.eigh(degree_E[:, None] * affinity_EE * degree_E)[1][:, -count:]
    pivots = qr(vectors_EC.T.numpy(), pivoting=True)[2][:count]
    left, _, right = torch.linalg.svd(vectors_EC[torch.from_numpy(pivots).long()].T)
    return members((vectors_EC @ (left @ right)).abs().argmax(1), count)


def members(labels_E: Tensor, count: int) -> list[list[int]]:
    """Positions of each label, also of labels that nobody has."""
    return [(labels_E == label).nonzero()[:, 0].tolist() for label in range(count)]


def _detach_one(clusters: list[list[int]]) -> None:
    """Give the second member of the largest cluster, of several the one that comes first, a cluster of its own."""
    largest = max(clusters, key=len)
    clusters.append([largest.pop(1)])
