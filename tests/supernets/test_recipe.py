"""The losses against their formulas written out in float64 numpy, and the sampling of sub-networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from supernets.recipe import Recipe, Sampling, learning_rate_factor, step_seed
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
    assert float(Recipe().divergence(logits(0), logits(0))) == pytest.approx(0, abs=1e-7)
    Recipe().divergence(student, logits(1)).backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


def test_a_missing_teacher_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="teacher's logits are missing"):
        Recipe(gamma=1.0).full_loss(torch.tensor(0.0), logits(0), None)
    with pytest.raises(AssertionError, match="teacher's logits are missing"):
        Recipe(gamma=1.0).subnet_loss(torch.tensor(0.0), logits(0), logits(1), None)


@pytest.mark.parametrize(
    ("sampling", "random_ones", "with_smallest"),
    [("full", 0, False), ("instatune", 3, False), ("sandwich", 3, True), ("smallest", 0, True)],
)
def test_what_each_sampling_trains(sampling: Sampling, random_ones: int, with_smallest: bool) -> None:
    space, recipe = tiny_space(), Recipe(sampling=sampling, subnets=3)
    smallest = space.decode(space.smallest)
    for step in range(20):
        sampled = recipe.sample(space, 0, step)
        assert len(sampled) == random_ones + with_smallest
        assert not with_smallest or sampled[-1] == smallest
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


@pytest.mark.parametrize("field", [{"alpha": 1.5}, {"gamma": -0.1}, {"rho": 0.0}, {"subnets": 0}])
def test_impossible_settings_are_refused(field: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(field)) if "subnets" not in field else "subnets at least 1"):
        Recipe(**field)  # type: ignore[arg-type]


def test_the_learning_rate_warms_up_and_decays_linearly() -> None:
    factors = [learning_rate_factor(step, 10, 4) for step in range(11)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0.0])
    assert learning_rate_factor(0, 10, 0) == 1.0


def test_step_seeds_differ() -> None:
    assert len({step_seed(seed, step) for seed in range(20) for step in range(50)}) == 1000
