"""MC-SMoE (arXiv 2310.01334): M-SMoE's merged experts, each matrix cut to low rank plus its largest residues.

The bank holds the products, as large as M-SMoE's: the operator shows what the second compression costs in quality.

Shapes: r experts, N by K one matrix.
"""

from dataclasses import replace

import torch
from torch import Tensor

from supernets.reduction import CalibratedLayer, ExpertPlan, ReducedBank
from supernets.reductions.m_smoe import MSmoe

RANK, DENSITY = 32, 0.1
"""The paper's rank, halved for matrices that are smaller than twice of it, and its share of residues."""


class McSmoe(MSmoe):
    """Compresses what M-SMoE merged; experts that stayed alone are compressed as well."""

    name = "mc-smoe"

    def reduce(self, plan: ExpertPlan, layer: CalibratedLayer) -> ReducedBank:
        """M-SMoE's bank with gate, up and down matrices approximated; protected experts stay."""
        merged = super().reduce(plan, layer)
        bank = merged.bank
        free = [i for i, group in enumerate(plan.groups) if not layer.protected & {*group}]
        gate_up, down = bank.gate_up_E2FD.clone(), bank.down_EDF.clone()
        for i in free:
            gate_up[i] = torch.cat([low_rank_plus_sparse(half) for half in gate_up[i].chunk(2)])
            down[i] = low_rank_plus_sparse(down[i])
        return replace(merged, bank=replace(bank, gate_up_E2FD=gate_up, down_EDF=down))


def low_rank_plus_sparse(weight_NK: Tensor, rank: int = RANK, density: float = DENSITY) -> Tensor:
    """(N, K): the best approximation of a rank plus the largest of what is missing (LoSparse, arXiv 2306.11222)."""
    rank = min(rank, min(weight_NK.shape) // 2)
    left, scale, right = torch.linalg.svd(weight_NK.double(), full_matrices=False)
    low_NK: Tensor = (left[:, :rank] * scale[:rank]) @ right[:rank]
    residue_NK = weight_NK.double() - low_NK
    kept = residue_NK.abs().flatten().topk(round(density * residue_NK.numel())).indices
    low_NK.view(-1)[kept] += residue_NK.flatten()[kept]
    return low_NK.to(weight_NK.dtype)


REDUCTION = McSmoe()
