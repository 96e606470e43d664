"""What one optimiser step of supernet training computes: which sub-networks, and which losses.

InstaTune (arXiv 2308.15609), with S the full network, S_i a sampled one, T a teacher:

    L = alpha * (CE(S) + sum_i CE(S_i))
      + (1 - alpha) * (gamma * KL(S, T) + sum_i ((1 - gamma) * KL(S_i, S) + gamma * KL(S_i, T)))

The full network is detached where it teaches. The paper has a temperature but not its value; here it is `rho`, and KL
is multiplied by ``rho**2`` so that its gradient keeps its size (Hinton et al., arXiv 1503.02531).

Shapes: B batch, C classes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from supernets.space import Architecture, SearchSpace

Sampling = Literal["full", "instatune", "sandwich", "smallest"]
"""Besides the full network: nothing, M random, M random and the smallest, or the smallest alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """The losses and the sub-networks of a step.

    Attributes:
        alpha: share of the hard-label loss; 1 is training without distillation.
        gamma: 1 distils from a strong teacher, 0 from the supernet itself.
        rho: distillation temperature.
        subnets: M, random sub-networks per step.
        sampling: which sub-networks besides the full one.
    """

    alpha: float = 0.3
    gamma: float = 1.0
    rho: float = 2.0
    subnets: int = 1
    sampling: Sampling = "instatune"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1 or not 0 <= self.gamma <= 1:
            raise ValueError(f"alpha and gamma must lie in [0, 1], got alpha={self.alpha}, gamma={self.gamma}")
        if self.rho <= 0 or self.subnets < 1:
            raise ValueError(f"rho must be positive and subnets at least 1, got rho={self.rho}, M={self.subnets}")

    @property
    def needs_teacher(self) -> bool:
        """Whether a strong teacher's logits enter the loss."""
        return self.alpha < 1 and self.gamma > 0

    def sample(self, space: SearchSpace, seed: int, step: int) -> list[Architecture]:
        """The sub-networks of a step besides the full one; a function of seed and step alone."""
        rng = random.Random(f"{seed}:{step}")
        count = {"full": 0, "smallest": 0}.get(self.sampling, self.subnets)
        genotypes = [space.sample(rng) for _ in range(count)]
        if self.sampling in ("sandwich", "smallest"):
            genotypes.append(space.smallest)
        return [space.decode(genotype) for genotype in genotypes]

    def full_loss(self, hard: Tensor, logits_BC: Tensor, teacher_BC: Tensor | None) -> Tensor:
        """Loss of the full network, given its hard-label loss."""
        loss = self.alpha * hard
        if self.needs_teacher:
            assert teacher_BC is not None, "a strong teacher's logits are missing"
            loss = loss + (1 - self.alpha) * self.gamma * self.divergence(logits_BC, teacher_BC)
        return loss

    def subnet_loss(self, hard: Tensor, logits_BC: Tensor, full_BC: Tensor, teacher_BC: Tensor | None) -> Tensor:
        """Loss of a sampled sub-network, given its hard-label loss and the full network's detached logits."""
        loss = self.alpha * hard
        if self.gamma < 1:
            loss = loss + (1 - self.alpha) * (1 - self.gamma) * self.divergence(logits_BC, full_BC)
        if self.needs_teacher:
            assert teacher_BC is not None, "a strong teacher's logits are missing"
            loss = loss + (1 - self.alpha) * self.gamma * self.divergence(logits_BC, teacher_BC)
        return loss

    def divergence(self, student_BC: Tensor, teacher_BC: Tensor) -> Tensor:
        """``rho**2 * KL(teacher / rho || student / rho)``, mean over the batch."""
        student = F.log_softmax(student_BC.float() / self.rho, dim=-1)
        teacher = F.log_softmax(teacher_BC.float() / self.rho, dim=-1)
        return self.rho**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def learning_rate_factor(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up over `warmup` steps, then linear decay to 0 at `steps`."""
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (steps - step) / max(1, steps - warmup))


def step_seed(seed: int, step: int) -> int:
    """Seed of the dropout masks of a step, so that a resumed run repeats them."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step).initial_seed()
