"""What one optimiser step of supernet training computes: which networks, and which losses.

The losses are those of InstaTune (arXiv 2308.15609), with S the full network, S_i a sampled one, T a teacher, D a
divergence:

    L = alpha * (CE(S) + sum_i CE(S_i))
      + (1 - alpha) * (gamma * D(S, T) + sum_i ((1 - gamma) * D(S_i, S) + gamma * D(S_i, T)))

The full network is detached where it teaches. The paper's D is the KL divergence at a temperature whose value it does
not give; here it is `rho`. Sub-networks may have an alpha of their own.

Other ways to train a supernet are settings of the same loss and of what is sampled; the files in `supernets/recipes`
name them. Shapes: B batch, C classes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor

from studies.discovery import VariantFolder
from supernets.cost_classes import CostClasses
from supernets.divergence import DIVERGENCES, Divergence
from supernets.space import Architecture, SearchSpace

RECIPES = VariantFolder(package="supernets.recipes", attribute="RECIPE", kind="recipe")

Sampling = Literal["full", "single-path", "instatune", "sandwich", "smallest"]
"""The full network and: nothing, M random ones, M random ones and the smallest, or the smallest alone; `single-path` is
M random ones without the full network."""

Candidates = tuple[Architecture, ...]
"""What one pass may train: one network, or several of which the one with the lowest loss is taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """The losses and the sub-networks of a step.

    Attributes:
        alpha: share of the hard-label loss; 1 is training without distillation.
        gamma: 1 distils from a strong teacher, 0 from the supernet itself.
        rho: distillation temperature.
        subnets: M, random sub-networks per step.
        sampling: which networks.
        subnet_alpha: alpha of the sub-networks, where it is another.
        divergence: D, ``kl`` or AlphaNet's adaptive ``alpha``.
        candidates: above 1, a random network is the best of so many of one class of cost, on the batch at hand.
        stages: axes that are not elastic from the start, but join one after another at equal intervals.
    """

    alpha: float = 0.3
    gamma: float = 1.0
    rho: float = 2.0
    subnets: int = 1
    sampling: Sampling = "instatune"
    subnet_alpha: float | None = None
    divergence: Divergence = "kl"
    candidates: int = 1
    stages: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))  # JSON knows lists only
        if not all(0 <= share <= 1 for share in (self.alpha, self.gamma, self.alpha_of_subnets)):
            raise ValueError(
                "alpha, subnet_alpha and gamma must lie in [0, 1], got "
                f"alpha={self.alpha}, subnet_alpha={self.subnet_alpha}, gamma={self.gamma}"
            )
        if self.rho <= 0 or self.subnets < 1 or self.candidates < 1:
            raise ValueError(
                "rho must be positive, subnets at least 1 and candidates at least 1, got "
                f"rho={self.rho}, subnets={self.subnets}, candidates={self.candidates}"
            )
        if self.divergence not in DIVERGENCES:
            raise ValueError(f"divergence must be one of {', '.join(DIVERGENCES)}, got {self.divergence!r}")
        if not self.trains_full and self.gamma < 1 and self.alpha_of_subnets < 1:
            raise ValueError(
                "sampling single-path trains no full network to distil from: set gamma to 1 for a strong teacher, "
                f"or alpha to 1, got gamma={self.gamma}, alpha={self.alpha_of_subnets}"
            )

    @property
    def alpha_of_subnets(self) -> float:
        """Share of the hard-label loss of a sub-network."""
        return self.alpha if self.subnet_alpha is None else self.subnet_alpha

    @property
    def trains_full(self) -> bool:
        """Whether every step trains the full network."""
        return self.sampling != "single-path"

    @property
    def distils(self) -> bool:
        """Whether any network of a step learns from another."""
        return self.alpha < 1 or (self.sampling != "full" and self.alpha_of_subnets < 1)

    @property
    def needs_teacher(self) -> bool:
        """Whether a strong teacher's logits enter the loss."""
        return self.gamma > 0 and self.distils

    def sample(
        self,
        space: SearchSpace,
        seed: int,
        step: int,
        *,
        progress: float = 1.0,
        classes: CostClasses | None = None,
    ) -> list[Candidates]:
        """The sub-networks of a step besides the full one; a function of the arguments alone.

        Args:
            progress: share of the training that is done, in [0, 1]; decides what `stages` allow.
            classes: of the cost by which candidates are drawn; needed where there are several.
        """
        rng = random.Random(f"{seed}:{step}")
        allowed = _staged(space, self.stages, progress)
        count = {"full": 0, "smallest": 0}.get(self.sampling, self.subnets)
        drawn = [self._draw(allowed, rng, classes) for _ in range(count)]
        if self.sampling in ("sandwich", "smallest"):
            drawn.append((allowed.decode(allowed.smallest),))
        return drawn

    def _draw(self, space: SearchSpace, rng: random.Random, classes: CostClasses | None) -> Candidates:
        if self.candidates == 1:
            return (space.decode(space.sample(rng)),)
        assert classes is not None, "classes of cost are missing"
        return classes.draw(space, self.candidates, rng)

    def full_loss(self, hard: Tensor, logits_BC: Tensor, teacher_BC: Tensor | None) -> Tensor:
        """Loss of the full network, given its hard-label loss."""
        loss = self.alpha * hard
        if self.gamma > 0 and self.alpha < 1:
            assert teacher_BC is not None, "a strong teacher's logits are missing"
            loss = loss + (1 - self.alpha) * self.gamma * self.distance(logits_BC, teacher_BC)
        return loss

    def subnet_loss(self, hard: Tensor, logits_BC: Tensor, full_BC: Tensor | None, teacher_BC: Tensor | None) -> Tensor:
        """Loss of a sampled sub-network, given its hard-label loss and the full network's detached logits."""
        alpha = self.alpha_of_subnets
        loss = alpha * hard
        if self.gamma < 1 and alpha < 1:
            assert full_BC is not None, "the full network's logits are missing"
            loss = loss + (1 - alpha) * (1 - self.gamma) * self.distance(logits_BC, full_BC)
        if self.gamma > 0 and alpha < 1:
            assert teacher_BC is not None, "a strong teacher's logits are missing"
            loss = loss + (1 - alpha) * self.gamma * self.distance(logits_BC, teacher_BC)
        return loss

    def distance(self, student_BC: Tensor, teacher_BC: Tensor) -> Tensor:
        """D, mean over the batch; 0 for an empty one, such as texts without a word that can be masked."""
        if not len(student_BC):
            return student_BC.sum() * 0.0
        return DIVERGENCES[self.divergence](student_BC, teacher_BC, self.rho)


def load_recipe(name: str) -> Recipe:
    """A named recipe; ValueError naming the known ones."""
    return cast("Recipe", RECIPES.load(name))


def plain_recipe() -> Recipe:
    """Fine-tuning of the full network on hard labels alone."""
    return Recipe(alpha=1.0, gamma=0.0, sampling="full")


def distilled(recipe: Recipe) -> Recipe:
    """Fine-tuning of one network with the loss a recipe has for sub-networks, from a strong teacher."""
    alpha = recipe.alpha_of_subnets
    return replace(recipe, alpha=alpha, subnet_alpha=None, gamma=1.0, sampling="full", candidates=1, stages=())


def _staged(space: SearchSpace, stages: Sequence[str], progress: float) -> SearchSpace:
    """The part of a space where axes whose stage has not begun stay at their largest."""
    fixed = stages[int(progress * len(stages)) + 1 :]
    if not fixed:
        return space
    return replace(
        space,
        choices=tuple(
            replace(choice, options=choice.options[-1:]) if choice.axis in fixed else choice for choice in space.choices
        ),
    )


def learning_rate_factor(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up over `warmup` steps, then linear decay to 0 at `steps`."""
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (steps - step) / max(1, steps - warmup))


def step_seed(seed: int, step: int) -> int:
    """Seed of the dropout masks of a step, so that a resumed run repeats them."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63).initial_seed()
