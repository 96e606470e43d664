"""Sub-MoE (arXiv 2506.23266): experts of like outputs share the column space of a truncated joint SVD.

Shapes: E experts, M experts of one group, N by K one matrix of an expert, R sampled tokens, D model width.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from supernets.expert_bank import ExpertBank
from supernets.expert_merging import Merging, average, members
from supernets.reduction import CalibratedLayer

RANK_SHARE = 0.5
ROUNDS = 50


class SubMoe(Merging):
    """Averages the right factors of the stacked matrices; at full rank, this is the weighted average."""

    name = "sub-moe"

    def __init__(self, rank_share: float = RANK_SHARE) -> None:
        self.rank_share = rank_share

    def clusters(self, layer: CalibratedLayer, experts: Sequence[int], count: int) -> Sequence[Sequence[int]]:
        """Spherical k-means of the outputs to the sampled tokens; `experts` come by usage."""
        outputs_EX = layer.sample_outputs_ERD[list(experts)].flatten(1).double()
        labels_E = spherical_k_means(outputs_EX @ outputs_EX.T, count)
        return [[experts[position] for position in cluster] for cluster in members(labels_E, count)]

    def merged(self, group: ExpertBank, weights_M: Tensor, layer: CalibratedLayer) -> ExpertBank:
        """Gate, up and down matrices on their own; biases are averaged."""
        gate_MFD, up_MFD = group.gate_up_E2FD.chunk(2, dim=1)
        gate_FD, up_FD, down_DF = (
            joint_svd_average(one, weights_M, self.rank_share) for one in (gate_MFD, up_MFD, group.down_EDF)
        )
        gate_up = torch.cat([gate_FD, up_FD])[None]
        return replace(average(group, weights_M), gate_up_E2FD=gate_up, down_EDF=down_DF[None])


def joint_svd_average(matrices_MNK: Tensor, weights_M: Tensor, rank_share: float) -> Tensor:
    """(N, K): ``U Σ Σ_m w_m V_m`` of the SVD ``[W_1 … W_M] = U Σ [V_1 … V_M]``, the smaller singular values dropped."""
    stacked = torch.cat(list(matrices_MNK.double()), dim=1)
    left, scale, right = torch.linalg.svd(stacked, full_matrices=False)
    rank = max(1, round(rank_share * len(scale)))
    right_RMK = torch.unflatten(right[:rank], 1, (len(matrices_MNK), -1))
    shared_RK = torch.einsum("m,rmk->rk", weights_M.double(), right_RMK)
    merged_NK: Tensor = (left[:, :rank] * scale[:rank]) @ shared_RK
    return merged_NK.to(matrices_MNK.dtype)


def spherical_k_means(gram_EE: Tensor, count: int) -> Tensor:
    """(E,) labels of vectors of which only the products are known, compared by cosine.

    Starts from the first vector and, again and again, the one least like those chosen: nothing random.
    """
    scale_E = gram_EE.diagonal().clamp(min=torch.finfo(gram_EE.dtype).tiny).rsqrt()
    cosine_EE = scale_E[:, None] * gram_EE * scale_E
    seeds = [0]
    while len(seeds) < count:
        closest_E = cosine_EE[seeds].amax(0).index_fill(0, torch.tensor(seeds), torch.inf)
        seeds.append(int(closest_E.argmin()))
    labels_E = cosine_EE[seeds].argmax(0)
    for _ in range(ROUNDS):
        one_hot_CE = functional.one_hot(labels_E, count).T.to(gram_EE.dtype)
        products_CE = one_hot_CE @ cosine_EE
        lengths_C = (products_CE * one_hot_CE).sum(1).clamp(min=torch.finfo(gram_EE.dtype).tiny).sqrt()
        updated_E = (products_CE / lengths_C[:, None]).argmax(0)
        if torch.equal(updated_E, labels_E):
            break
        labels_E = updated_E
    return labels_E


REDUCTION = SubMoe()
