"""Hypervolume improvement against differences of hypervolumes, and greedy batches against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.acquisition import greedy_batch, improvements
from studies.pareto import hypervolume


def added(front_NM: np.ndarray, point_M: np.ndarray, reference_M: np.ndarray) -> float:
    """What a point adds, as the difference of two hypervolumes."""
    both = np.vstack([front_NM, point_M[None]])
    return hypervolume(both, list(reference_M)) - hypervolume(front_NM, list(reference_M))


@given(st.integers(1, 4), st.integers(0, 6), st.integers(0, 2**32 - 1))
def test_improvements_are_differences_of_hypervolumes(objectives: int, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    grid = rng.integers(0, 6, size=(3, size + 5, objectives)) / 4  # ties, dominated points, points beyond the reference
    front, points = grid[:, :size], grid[:, size:]
    reference = np.ones(objectives)
    expected = [[added(f, p, reference) for p in ps] for f, ps in zip(front, points, strict=True)]
    assert improvements(points, front, reference) == pytest.approx(np.array(expected), abs=1e-12)


def test_infinite_costs_improve_nothing() -> None:
    points = np.array([[[np.inf, np.inf], [0.5, np.inf], [0.5, 0.5]]])
    assert improvements(points, np.empty((1, 0, 2)), np.ones(2)).tolist() == [[0.0, 0.0, 0.25]]


@pytest.mark.parametrize("objectives", [2, 3])
def test_a_greedy_batch_is_that_of_a_plain_loop(objectives: int) -> None:
    rng = np.random.default_rng(objectives)
    front, reference = rng.random((5, objectives)) * 0.5 + 0.4, np.ones(objectives)
    samples = rng.random((40, objectives)) * 0.6 + 0.2 + 0.1 * rng.random((6, 40, objectives))
    allowed = rng.random((6, 40)) < 0.8
    fronts, expected = [front] * 6, []
    for _ in range(7):
        gains = np.zeros(40)
        for s, k in np.argwhere(allowed):
            gains[k] += added(fronts[s], samples[s, k], reference)
        best = int(gains.argmax())
        expected.append(best)
        fronts = [np.vstack([f, samples[s, best]]) if allowed[s, best] else f for s, f in enumerate(fronts)]
    assert greedy_batch(samples, allowed, front, reference, 7) == expected


def test_what_improves_nothing_is_not_chosen() -> None:
    samples = np.array([[[0.9, 0.9], [0.2, 0.2], [0.2, 0.2], [0.1, 0.1]]])
    allowed = np.array([[True, True, True, False]])
    assert greedy_batch(samples, allowed, np.array([[0.5, 0.5]]), np.ones(2), 3) == [1]
