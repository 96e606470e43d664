"""Pareto algebra against slow loops; small integers make ties and duplicates frequent."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from studies.pareto import ParetoFront, ValueFilter, hypervolume, knee, non_dominated, within_limits
from studies.records import Evaluation, Objective, Value

NAN, INF = math.nan, math.inf


def matrices(cells: st.SearchStrategy[float], rows: int = 12) -> st.SearchStrategy[NDArray[np.float64]]:
    def shaped(objectives: int) -> st.SearchStrategy[NDArray[np.float64]]:
        row = st.lists(cells, min_size=objectives, max_size=objectives)
        return st.lists(row, max_size=rows).map(lambda r: np.array(r, dtype=float).reshape(len(r), objectives))

    return st.integers(1, 4).flatmap(shaped)


INTEGERS = st.integers(-2, 4).map(float)


def dominates(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


@given(matrices(st.one_of(INTEGERS, st.sampled_from([INF, -INF, NAN]))))
def test_non_dominated_agrees_with_every_pair(costs: NDArray[np.float64]) -> None:
    valid = [row for row in costs if not np.isnan(row).any()]
    expected = [not np.isnan(row).any() and not any(dominates(other, row) for other in valid) for row in costs]
    assert non_dominated(costs).tolist() == expected


@given(matrices(INTEGERS, rows=8))
def test_hypervolume_agrees_with_counting_cells(costs: NDArray[np.float64]) -> None:
    objectives = costs.shape[1]
    reference = [3.0] * objectives
    cells = itertools.product(range(-2, 3), repeat=objectives)
    expected = sum(any((row <= cell).all() for row in costs) for cell in cells)
    assert hypervolume(costs, reference) == pytest.approx(expected)


@given(matrices(INTEGERS), st.lists(st.sampled_from([-1.0, 0.0, 2.0, INF]), min_size=4, max_size=4))
def test_limits_agree_with_a_loop(costs: NDArray[np.float64], limits: list[float]) -> None:
    limits = limits[: costs.shape[1]]
    expected = [all(x <= limit for x, limit in zip(row, limits, strict=True)) for row in costs]
    assert within_limits(costs, limits).tolist() == expected


def test_nan_is_outside_every_volume_and_limit() -> None:
    costs = [[NAN, 0.0], [1.0, 1.0]]
    assert hypervolume(costs, [2.0, 2.0]) == 1.0
    assert within_limits(costs, [INF, INF]).tolist() == [False, True]


def test_a_large_random_cloud_agrees_with_a_sweep() -> None:
    costs = np.random.default_rng(0).integers(0, 1000, (100_000, 2)).astype(float)
    best, expected = INF, np.zeros(len(costs), dtype=bool)
    for x, group in itertools.groupby(np.lexsort(costs.T[::-1]), key=lambda i: costs[i, 0]):
        rows = list(group)
        lowest = costs[rows[0], 1]
        if lowest < best:
            expected[[i for i in rows if costs[i, 1] == lowest]] = True
            best = lowest
        assert costs[rows[0], 0] == x
    assert (non_dominated(costs) == expected).all()


@pytest.mark.parametrize(
    ("costs", "expected"),
    [
        ([[0, 10], [1, 1], [10, 0]], 1),
        ([[0, 1000], [1, 100], [10, 0]], 1),
        ([[0, 10], [9, 9], [10, 0]], 0),
        ([[5, 5]], 0),
        ([[NAN, 0], [INF, 0], [1, 2]], 2),
        ([[1, 1], [1, 1]], 0),
        ([[0, 9, 9], [9, 0, 9], [9, 9, 0], [2, 2, 2]], 3),
    ],
)
def test_the_knee_lies_farthest_below_the_line_of_the_ends(costs: list[list[float]], expected: int) -> None:
    assert knee(costs) == expected


@given(matrices(INTEGERS).filter(lambda m: len(m) > 0), st.floats(0.1, 100), st.floats(-50, 50))
def test_the_knee_does_not_depend_on_units(costs: NDArray[np.float64], scale: float, offset: float) -> None:
    low, high = costs.min(axis=0), costs.max(axis=0)
    height = ((costs - low) / np.where(high > low, high - low, 1)).sum(axis=1)
    chosen = knee(costs * scale + offset)
    assert height[chosen] == pytest.approx(height.min())
    assert height[knee(costs)] == height.min()


@pytest.mark.parametrize("costs", [[], [[]], [1.0, 2.0], [[[1.0]]]])
def test_costs_must_be_a_matrix(costs: list[float]) -> None:
    with pytest.raises(ValueError, match=r"shape \[candidates, objectives\]"):
        non_dominated(costs)


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="reference needs 2 numbers, one per objective, got 1"):
        hypervolume([[1.0, 2.0]], [3.0])
    with pytest.raises(ValueError, match="at least one row"):
        knee([[NAN, 1.0]])


SMALL = Objective(name="error", unit="fraction", reference=1.0)
FAST = Objective(name="latency", unit="ms", reference=10.0)
GOOD = Objective(name="accuracy", unit="fraction", goal="max", reference=0.0)


def evaluated(gene: int, **numbers: float) -> Evaluation:
    values = tuple(Value(objective=name, number=number, provenance="supernet") for name, number in numbers.items())
    return Evaluation(genotype=(gene,), values=values)


CLOUD = [
    evaluated(0, error=0.5, latency=2.0),
    evaluated(1, error=0.2, latency=4.0),
    evaluated(2, error=0.3, latency=5.0),
    evaluated(3, error=0.1, latency=8.0),
    evaluated(4, error=0.0),
    Evaluation(genotype=(5,), status="failed", values=evaluated(5, error=0.0, latency=0.0).values),
]


def test_a_front_holds_what_nothing_beats() -> None:
    front = ParetoFront.of([SMALL, FAST], CLOUD)
    assert [e.genotype for e in front.evaluations] == [(3,), (1,), (0,)]
    assert front.costs.tolist() == [[0.1, 8.0], [0.2, 4.0], [0.5, 2.0]]
    assert front.knee() is CLOUD[1]
    assert front.value(CLOUD[1], FAST).number == 4.0
    assert front.hypervolume() == pytest.approx(0.9 * 2 + 0.8 * 4 + 0.5 * 2)
    assert front.hypervolume([0.5, 8.0]) == pytest.approx(0.3 * 4)


def test_a_front_cannot_be_built_from_anything_else() -> None:
    for candidates in ((CLOUD[1], CLOUD[2]), (CLOUD[4],), (CLOUD[5],)):
        with pytest.raises(ValueError, match=r"dominated or lacks an allowed value; build fronts with ParetoFront\.of"):
            ParetoFront(objectives=(SMALL, FAST), evaluations=candidates)
    with pytest.raises(ValueError, match="one or more distinct objectives"):
        ParetoFront.of([SMALL, SMALL], CLOUD)


def test_limits_choose_on_the_front() -> None:
    front = ParetoFront.of([SMALL, FAST], CLOUD)
    assert front.best("error", {"latency": 5.0}) is CLOUD[1]
    assert front.best("latency") is CLOUD[0]
    assert front.best("latency", {"error": 0.05}) is None
    assert front.within({"latency": 4.0}).evaluations == (CLOUD[1], CLOUD[0])
    with pytest.raises(ValueError, match=r"limits must name objectives of the front.*\['memory'\]"):
        front.within({"memory": 1.0})
    with pytest.raises(ValueError, match="the objective must be one of"):
        front.best("memory")


def test_a_maximised_objective_is_turned_round_and_back() -> None:
    cloud = [evaluated(0, accuracy=0.9, latency=8.0), evaluated(1, accuracy=0.8, latency=2.0)]
    cloud += [evaluated(2, accuracy=0.7, latency=3.0)]
    front = ParetoFront.of([GOOD, FAST], cloud)
    assert front.evaluations == (cloud[0], cloud[1])
    assert front.hypervolume() == pytest.approx(0.9 * 2 + 0.8 * 6)
    assert front.best("latency", {"accuracy": 0.85}) is cloud[0]


def test_predictions_stand_on_a_front_only_when_asked_for() -> None:
    guess = Value(objective="latency", number=1.0, provenance="predicted")
    cloud = [Evaluation(genotype=(0,), values=(*CLOUD[0].values, guess)), CLOUD[1]]
    assert ParetoFront.of([FAST], cloud).costs.tolist() == [[2.0]]
    predicted = ValueFilter(provenances=frozenset({"predicted"}))
    assert ParetoFront.of([FAST], cloud, predicted).costs.tolist() == [[1.0]]


def test_an_empty_front_says_so() -> None:
    front = ParetoFront.of([SMALL, FAST], [])
    assert len(front) == 0
    assert front.hypervolume() == 0.0
    assert front.best("error") is None
    with pytest.raises(ValueError, match="a knee needs"):
        front.knee()
    with pytest.raises(ValueError, match="one reference number for each of error, accuracy"):
        ParetoFront.of([SMALL, Objective(name="accuracy", unit="")], CLOUD).hypervolume()
