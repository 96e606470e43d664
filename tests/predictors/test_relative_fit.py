"""The correction of sums against scipy's bounded least squares, and bounds against what they promise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import lsq_linear

from predictors.relative_fit import PRIOR, PRIOR_ERROR, Correction, Point, fit, half_width, mean_error, residuals

points = st.lists(
    st.builds(Point, total=st.floats(1e-4, 1.0), operations=st.floats(1, 500), seconds=st.floats(1e-4, 1.0)),
    min_size=1,
    max_size=6,
)
TRUE = Correction(scale=1.2, operation_seconds=2e-5, pass_seconds=1e-4)


def networks(rng: np.random.Generator, count: int, noise: float) -> list[Point]:
    """Of some milliseconds, as `TRUE` has them up to relative noise."""
    found = []
    for total in rng.uniform(2e-3, 8e-3, count):
        operations = float(rng.integers(20, 80))
        seconds = TRUE.seconds(total, operations) * (1 + noise * rng.normal())
        found.append(Point(total=total, operations=operations, seconds=seconds))
    return found


def improbability(correction: Correction, at: list[Point]) -> float:
    """Twice the negative logarithm of the posterior, up to a constant."""
    errors = sum(((correction.seconds(p.total, p.operations) / p.seconds - 1) / PRIOR_ERROR) ** 2 for p in at)
    found = (correction.scale, correction.operation_seconds, correction.pass_seconds)
    return errors + sum(((x - mean) / deviation) ** 2 for x, (mean, deviation) in zip(found, PRIOR, strict=True))


@given(points)
def test_no_admissible_correction_is_more_probable(at: list[Point]) -> None:
    means, deviations = np.array(PRIOR).T
    rows = np.array([[p.total, p.operations, 1.0] for p in at]) / np.array([[p.seconds] for p in at])
    best = lsq_linear(
        np.vstack([rows * deviations / PRIOR_ERROR, np.eye(3)]),
        np.concatenate([np.full(len(at), 1 / PRIOR_ERROR), means / deviations]),
        bounds=(0, np.inf),
        method="bvls",
    )
    scale, per_operation, per_pass = best.x * deviations
    other = Correction(scale=scale, operation_seconds=per_operation, pass_seconds=per_pass)
    assert improbability(fit(at), at) <= improbability(other, at) * (1 + 1e-9) + 1e-9


@given(points)
def test_nothing_is_negative_and_order_does_not_matter(at: list[Point]) -> None:
    one, other = fit(at), fit(at[::-1])
    assert min(one.scale, one.operation_seconds, one.pass_seconds) >= 0
    predicted = [[c.seconds(p.total, p.operations) for p in at] for c in (one, other)]
    assert predicted[0] == pytest.approx(predicted[1], rel=1e-6)


def test_five_networks_correct_further_ones() -> None:
    """Without noise, and although no prior mean is true."""
    rng = np.random.default_rng(0)
    correction = fit(networks(rng, 5, 0.0))
    assert max(residuals(networks(rng, 100, 0.0), correction)) < 0.02
    uncorrected = residuals(networks(rng, 100, 0.0), Correction())
    assert min(uncorrected) > 0.15


def test_one_network_moves_the_scale_most() -> None:
    twice = fit([Point(total=1.0, operations=10, seconds=2.0)])
    assert twice.scale == pytest.approx(2.0, rel=0.02)
    assert twice.pass_seconds < 1e-3


def test_mean_error_counts_points_that_need_not_be_met() -> None:
    assert mean_error((0.0, 0.0)) is None
    assert mean_error((0.0, 0.03, 0.0, 0.06)) == pytest.approx(0.045)


@pytest.mark.parametrize("count", [5, 10, 50])
def test_half_width_holds_as_many_as_stated(count: int) -> None:
    """Networks that scatter as the prior expects: nine of ten further ones lie within."""
    rng, held = np.random.default_rng(0), []
    for _ in range(300):
        at = networks(rng, count + 20, PRIOR_ERROR)
        correction = fit(at[:count])
        width = half_width(residuals(at[:count], correction), 0.9)
        held += [abs(p.seconds / correction.seconds(p.total, p.operations) - 1) <= width for p in at[count:]]
    assert 0.85 <= np.mean(held) <= 0.95


def test_half_width_follows_large_errors_and_small_ones() -> None:
    assert half_width([0.0, 0.0, 0.2, 0.2, 0.2], 0.9) > 0.2
    assert half_width([0.001] * 50, 0.9) < 0.02
    with pytest.raises(ValueError, match="between 0 and 1, got 0"):
        half_width([0.1], 0.0)
