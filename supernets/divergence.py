"""How far a student's answers are from a teacher's, as losses to train on.

Both are means over the batch and multiplied by ``rho**2``, so that their gradients keep their size at any temperature
`rho` (Hinton et al., arXiv 1503.02531). Gradients reach the student only. Shapes: B batch, C classes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Divergence = Literal["kl", "alpha"]

ORDERS = (-1.0, 1.0)
"""The two orders of the alpha-divergence that AlphaNet chooses from."""

RATIO_LIMIT = 5.0
"""Where AlphaNet clips powers of the ratio of teacher to student."""


def kl(student_BC: Tensor, teacher_BC: Tensor, rho: float) -> Tensor:
    """``rho**2 * KL(teacher / rho || student / rho)``."""
    log_q_BC, log_p_BC = _log_probabilities(student_BC, teacher_BC, rho)
    return rho**2 * F.kl_div(log_q_BC, log_p_BC, reduction="batchmean", log_target=True)


def adaptive_alpha(student_BC: Tensor, teacher_BC: Tensor, rho: float) -> Tensor:
    """For every example the larger of two alpha-divergences (Wang et al., AlphaNet, arXiv 2102.07954, eq. 5-8).

    With p the teacher, q the student and order a, ``D = sum q * ((p / q)**a - 1) / (a * (a - 1))``, which is
    KL(p || q) at order 1. Order -1 is large where the student is sure of what the teacher denies, order 1 where it
    denies what the teacher is sure of. The gradient is ``-sum q * (p / q)**a * grad(log q) / a`` with the powers
    clipped at `RATIO_LIMIT`, so that single examples cannot dominate.
    """
    log_q_BC, log_p_BC = _log_probabilities(student_BC, teacher_BC, rho)
    values_B2, slopes_B2 = zip(*(_of_order(log_q_BC, log_p_BC, order) for order in ORDERS), strict=True)
    value_B, slope_B = torch.stack(values_B2), torch.stack(slopes_B2)
    chosen_1B = value_B.argmax(dim=0, keepdim=True)
    value_B, slope_B = value_B.gather(0, chosen_1B), slope_B.gather(0, chosen_1B)
    return rho**2 * (value_B + slope_B - slope_B.detach()).mean()


def _of_order(log_q_BC: Tensor, log_p_BC: Tensor, order: float) -> tuple[Tensor, Tensor]:
    """The divergence [B] without gradients, and a tensor [B] whose gradient is the clipped one."""
    ratio_BC = (log_p_BC - log_q_BC).detach()
    power_BC = torch.exp(order * ratio_BC).clamp(max=RATIO_LIMIT)
    q_BC = log_q_BC.detach().exp()
    slope_B = -(q_BC * power_BC * log_q_BC).sum(-1) / order
    if order == 1.0:
        return (log_p_BC.detach().exp() * ratio_BC).sum(-1), slope_B
    return (q_BC * (power_BC - 1)).sum(-1) / (order * (order - 1)), slope_B


def _log_probabilities(student_BC: Tensor, teacher_BC: Tensor, rho: float) -> tuple[Tensor, Tensor]:
    return F.log_softmax(student_BC.float() / rho, dim=-1), F.log_softmax(teacher_BC.detach().float() / rho, dim=-1)


DIVERGENCES = {"kl": kl, "alpha": adaptive_alpha}
