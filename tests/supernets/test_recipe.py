"""The losses against their formulas written out in float64 numpy, and the sampling of sub-networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from supernets.cost_classes import CLASSES, CostClasses
from supernets.divergence import ORDERS, RATIO_LIMIT, Divergence, adaptive_alpha
from supernets.recipe import Recipe, Sampling, distilled, learning_rate_factor, step_seed
from supernets.space import Architecture
from tests.toy_task import tiny_space

Array = NDArray[np.float64]


def logits(seed: int) -> Tensor:
    return 3 * torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))


def softmax(z_BC: Array) -> Array:
    e_BC = np.exp(z_BC - z_BC.max(axis=1, keepdims=True))
    return np.asarray(e_BC / e_BC.sum(axis=1, keepdims=True))


def divergence(student: Tensor, teacher: Tensor, rho: float) -> float:
    p_BC, q_BC = (softmax(z.double().numpy() / rho) for z in (teacher, student))
    return float(rho**2 * (p_BC * np.log(p_BC / q_BC)).sum(axis=1).mean())


@given(st.floats(0, 1), st.sampled_from([0.0, 0.25, 1.0]), st.floats(0.5, 4), st.floats(0, 5), st.integers(0, 100))
def test_losses_are_instatunes(alpha: float, gamma: float, rho: float, hard: float, seed: int) -> None:
    recipe = Recipe(alpha=alpha, gamma=gamma, rho=rho)
    student, full, teacher = logits(seed), logits(seed + 1), logits(seed + 2)
    strong = teacher if recipe.needs_teacher else None
    expected_full = alpha * hard + (1 - alpha) * gamma * divergence(student, teacher, rho)
    got = float(recipe.full_loss(torch.tensor(hard), student, strong))
    assert got == pytest.approx(expected_full, rel=1e-4, abs=1e-5)
    soft = (1 - gamma) * divergence(student, full, rho) + gamma * divergence(student, teacher, rho)
    got = float(recipe.subnet_loss(torch.tensor(hard), student, full, strong))
    assert got == pytest.approx(alpha * hard + (1 - alpha) * soft, rel=1e-4, abs=1e-5)


def test_the_divergence_of_equal_logits_is_zero_and_its_gradient_flows_to_the_student() -> None:
    student = logits(0).requires_grad_()
    assert float(Recipe().distance(logits(0), logits(0))) == pytest.approx(0, abs=1e-7)
    Recipe().distance(student, logits(1)).backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["kl", "alpha"])
def test_a_batch_without_anything_to_guess_teaches_nothing(kind: Divergence) -> None:
    """As texts have without a word that can be masked: no loss, no gradient, and no NaN."""
    student = torch.empty(0, 7, requires_grad=True)
    loss = Recipe(divergence=kind).distance(student, torch.empty(0, 7))
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0.0
    assert student.grad is not None


def test_a_missing_teacher_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="teacher's logits are missing"):
        Recipe(gamma=1.0).full_loss(torch.tensor(0.0), logits(0), None)
    with pytest.raises(AssertionError, match="teacher's logits are missing"):
        Recipe(gamma=1.0).subnet_loss(torch.tensor(0.0), logits(0), logits(1), None)


@pytest.mark.parametrize(
    ("sampling", "random_ones", "with_smallest"),
    [
        ("full", 0, False),
        ("single-path", 3, False),
        ("instatune", 3, False),
        ("sandwich", 3, True),
        ("smallest", 0, True),
    ],
)
def test_what_each_sampling_trains(sampling: Sampling, random_ones: int, with_smallest: bool) -> None:
    space, recipe = tiny_space(), Recipe(sampling=sampling, subnets=3)
    assert recipe.trains_full is (sampling != "single-path")
    smallest = space.decode(space.smallest)
    for step in range(20):
        sampled = recipe.sample(space, 0, step)
        assert len(sampled) == random_ones + with_smallest
        assert all(len(candidates) == 1 for candidates in sampled)
        assert not with_smallest or sampled[-1] == (smallest,)
    assert len({a for step in range(20) for a in recipe.sample(space, 0, step)}) >= 10 * random_ones + with_smallest


def test_sampling_is_a_function_of_seed_and_step() -> None:
    space, recipe = tiny_space(), Recipe(subnets=2)
    drawn = {(seed, step): recipe.sample(space, seed, step) for seed in range(3) for step in range(10)}
    assert all(recipe.sample(space, seed, step) == drawn[seed, step] for seed, step in reversed(drawn))
    assert len({tuple(architectures) for architectures in drawn.values()}) > 25


@pytest.mark.parametrize(
    ("alpha", "gamma", "needed"), [(0.3, 1.0, True), (0.3, 0.0, False), (1.0, 1.0, False), (0.3, 0.5, True)]
)
def test_when_a_teacher_is_needed(alpha: float, gamma: float, needed: bool) -> None:
    assert Recipe(alpha=alpha, gamma=gamma).needs_teacher is needed


@pytest.mark.parametrize(
    "field",
    [
        {"alpha": 1.5},
        {"gamma": -0.1},
        {"subnet_alpha": 2.0},
        {"rho": 0.0},
        {"subnets": 0},
        {"candidates": 0},
        {"divergence": "js"},
        {"sampling": "single-path", "gamma": 0.0},
    ],
)
def test_impossible_settings_are_refused(field: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(field))}.* got .*{list(field.values())[-1]}"):
        Recipe(**field)


def test_subnetworks_may_learn_from_others_than_the_full_network() -> None:
    """Both of the sandwich rule with in-place distillation: hard labels for one, the full network for the others."""
    recipe = Recipe(alpha=1.0, subnet_alpha=0.0, gamma=0.0, rho=1.0)
    assert not recipe.needs_teacher
    assert float(recipe.full_loss(torch.tensor(2.0), logits(0), None)) == 2.0
    got = float(recipe.subnet_loss(torch.tensor(2.0), logits(0), logits(1), None))
    assert got == pytest.approx(divergence(logits(0), logits(1), 1.0), rel=1e-5)
    alone = distilled(recipe)
    assert (alone.alpha, alone.gamma, alone.sampling, alone.needs_teacher) == (0.0, 1.0, "full", True)


def alpha_divergence(student: Array, teacher: Array, order: float, limit: float = np.inf) -> Array:
    q_BC, p_BC = softmax(student), softmax(teacher)
    if order == 1:
        return np.asarray((p_BC * np.log(p_BC / q_BC)).sum(axis=1))
    powers_BC = np.minimum((p_BC / q_BC) ** order, limit)
    return np.asarray((q_BC * (powers_BC - 1)).sum(axis=1) / (order * (order - 1)))


@given(st.integers(0, 200), st.sampled_from([0.5, 1.0, 2.0]))
def test_the_adaptive_divergence_is_the_larger_of_two(seed: int, rho: float) -> None:
    student, teacher = logits(seed), logits(seed + 1)
    orders = [
        alpha_divergence(student.double().numpy() / rho, teacher.double().numpy() / rho, order, RATIO_LIMIT)
        for order in ORDERS
    ]
    expected = rho**2 * np.maximum(*orders).mean()
    assert float(adaptive_alpha(student, teacher, rho)) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_the_gradient_of_the_adaptive_divergence_is_its_own_where_nothing_is_clipped() -> None:
    """Central differences in float64, on answers so alike that no ratio is clipped."""
    student, teacher = 0.1 * logits(0), 0.1 * logits(1)
    leaf = student.clone().requires_grad_()
    adaptive_alpha(leaf, teacher, 1.0).backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None

    def value(shifted: Array) -> float:
        return float(np.maximum(*(alpha_divergence(shifted, teacher.double().numpy(), o) for o in ORDERS)).mean())

    for row, column in np.ndindex(*student.shape):
        shift = np.zeros(student.shape)
        shift[row, column] = 1e-5
        slope = (value(student.double().numpy() + shift) - value(student.double().numpy() - shift)) / 2e-5
        assert float(leaf.grad[row, column]) == pytest.approx(slope, rel=1e-3, abs=1e-5)


def test_single_examples_cannot_dominate_the_adaptive_divergence() -> None:
    student = torch.tensor([[0.0, 12.0]], requires_grad=True)
    adaptive_alpha(student, torch.tensor([[12.0, 0.0]]), 1.0).backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert float(student.grad.abs().max()) <= RATIO_LIMIT


# -- what is drawn --------------------------------------------------------------------------------------------------


def test_axes_become_elastic_one_after_another() -> None:
    space, recipe = tiny_space(), Recipe(stages=("ffn_width", "heads", "depth"), subnets=8)
    largest = space.decode(space.largest)

    def elastic(progress: float) -> set[str]:
        found = set()
        for step in range(20):
            for (architecture,) in recipe.sample(space, 0, step, progress=progress):
                space.encode(architecture)
                found |= {"depth"} if len(architecture.layers) < len(largest.layers) else set()
                for layer in architecture.layers:
                    full = largest.by_index[layer.index]
                    found |= {axis for axis, size in layer.units if size != full.kept(axis)}
        return found

    assert elastic(0.0) == elastic(0.33) == {"ffn_width"}
    assert elastic(0.34) == {"ffn_width", "heads"}
    assert elastic(0.67) == elastic(1.0) == {"ffn_width", "heads", "depth"}


def test_candidates_are_of_one_class_of_cost_and_every_class_comes() -> None:
    space, recipe = tiny_space(), Recipe(candidates=3)

    def cost(architecture: Architecture) -> float:
        return float(sum(layer.kept("ffn_width") or 0 for layer in architecture.layers))

    classes = CostClasses(cost, seed=0)
    drawn = [recipe.sample(space, 0, step, classes=classes)[0] for step in range(200)]
    assert drawn == [recipe.sample(space, 0, step, classes=CostClasses(cost, seed=0))[0] for step in range(200)]
    costs = [cost(space.decode(genotype)) for genotype in (space.smallest, space.largest)]
    width = (costs[1] - costs[0]) / CLASSES
    found = [[int((cost(a) - costs[0]) / width) for a in candidates] for candidates in drawn]
    assert all(max(c) - min(c) == 0 or max(c) == CLASSES for c in found)
    shares = np.bincount([min(c[0], CLASSES - 1) for c in found], minlength=CLASSES) / len(found)
    present = shares[shares > 0]
    assert shares[0] > 0 < shares[-1]
    assert present.max() < 2.5 / len(present)


def test_the_learning_rate_warms_up_and_decays_linearly() -> None:
    factors = [learning_rate_factor(step, 10, 4) for step in range(11)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0.0])
    assert learning_rate_factor(0, 10, 0) == 1.0


def test_step_seeds_differ() -> None:
    assert len({step_seed(seed, step) for seed in range(20) for step in range(50)}) == 1000


def test_any_seed_has_steps() -> None:
    assert step_seed(3, 4) == 3_000_013
    assert step_seed(2**63 - 1, 10**6) != step_seed(2**63 - 1, 10**6 + 1)
