"""Least squares for down-projections: the smallest change that gives what is missing.

Shapes: N rows of tokens, F inner units, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 1e-3
"""Weight of the change itself, as a share of the mean squared length of an inner unit's column."""


def ridge(inner_NF: Tensor, missing_ND: Tensor, strength: float = RIDGE) -> Tensor:
    """(D, F): the change W that makes ``‖missing − inner Wᵀ‖² + λ ‖W‖²`` least; 0 where all inner units are 0."""
    inner_NF, missing_ND = inner_NF.double(), missing_ND.double()
    gram_FF = inner_NF.T @ inner_NF
    damping = strength * gram_FF.diagonal().mean()
    if float(damping) == 0:
        return missing_ND.new_zeros(missing_ND.shape[1], inner_NF.shape[1])
    damped_FF = gram_FF + damping * torch.eye(len(gram_FF), dtype=gram_FF.dtype)
    change_FD: Tensor = torch.linalg.solve(damped_FF, inner_NF.T @ missing_ND)
    return change_FD.T
