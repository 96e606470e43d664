"""The robust line against a linear programme and against its own laws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from predictors.relative_fit import PRIOR_ERROR, Point, fit_line, half_width, mean_error, residuals

positive = st.floats(0.01, 100.0)
points = st.lists(st.tuples(positive, positive), min_size=1, max_size=6)


def loss(line: tuple[float, float], at: list[Point]) -> float:
    return sum(abs(1 - (line[0] * x + line[1]) / y) for x, y in at)


@given(points)
def test_no_admissible_line_is_better(at: list[Point]) -> None:
    n = len(at)
    slack = [[-1.0 if i == j else 0.0 for j in range(n)] for i in range(n)]
    above = [[x / y, 1 / y, *slack[i]] for i, (x, y) in enumerate(at)]
    below = [[-x / y, -1 / y, *slack[i]] for i, (x, y) in enumerate(at)]
    best = linprog([0.0, 0.0, *[1.0] * n], A_ub=above + below, b_ub=[1.0] * n + [-1.0] * n)
    scale, offset = fit_line(at)
    assert scale > 0
    assert offset >= 0
    flat_is_best = best.fun >= min(loss((0.0, y), at) for _, y in at) - 1e-6
    assert loss((scale, offset), at) <= best.fun + 1e-6 or flat_is_best


@given(points)
def test_order_of_points_does_not_matter(at: list[Point]) -> None:
    assert fit_line(at) == pytest.approx(fit_line(at[::-1]))


def test_one_outlier_does_not_move_the_line() -> None:
    exact = [(x, 1.5 * x + 2.0) for x in (1.0, 2.0, 5.0, 9.0)]
    assert fit_line([*exact, (4.0, 40.0)]) == pytest.approx((1.5, 2.0))


def test_a_negative_offset_is_not_physical() -> None:
    scale, offset = fit_line([(1.0, 0.5), (2.0, 2.5)])
    assert offset == 0.0
    assert scale in (0.5, 1.25)


def test_one_point_gives_a_scale() -> None:
    assert fit_line([(2.0, 3.0)]) == (1.5, 0.0)


@given(points)
def test_a_line_meets_two_points_or_one_and_the_origin(at: list[Point]) -> None:
    line = fit_line(at)
    off = residuals(at, line)
    assert sum(off) == pytest.approx(loss(line, at))
    assert sum(error < 1e-6 for error in off) >= (1 if line[1] == 0 or len(at) == 1 else 2)


def test_mean_error_counts_points_that_need_not_be_met() -> None:
    assert mean_error((0.0, 0.0)) is None
    assert mean_error((0.0, 0.03, 0.0, 0.06)) == pytest.approx(0.045)


@pytest.mark.parametrize("count", [5, 10, 50])
def test_half_width_holds_as_many_as_stated(count: int) -> None:
    """Rows that scatter as the prior expects: nine of ten further ones lie within."""
    rng, held = np.random.default_rng(0), []
    for _ in range(300):
        x = rng.uniform(1, 6, count + 20)
        y = (2 * x + 1) * (1 + rng.normal(scale=PRIOR_ERROR, size=count + 20))
        at = list(zip(x.tolist(), y.tolist(), strict=True))
        line = fit_line(at[:count])
        width = half_width(residuals(at[:count], line), 0.9)
        held += [abs(y / (line[0] * x + line[1]) - 1) <= width for x, y in at[count:]]
    assert 0.85 <= np.mean(held) <= 0.95


def test_half_width_follows_large_errors_and_small_ones() -> None:
    assert half_width([0.0, 0.0, 0.2, 0.2, 0.2], 0.9) > 0.2
    assert half_width([0.001] * 50, 0.9) < 0.02
    with pytest.raises(ValueError, match="between 0 and 1, got 0"):
        half_width([0.1], 0.0)
