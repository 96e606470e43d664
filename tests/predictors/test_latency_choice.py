import math

import numpy as np
import pytest

from predictors.latency_choice import choose_latency_model, conformal_quantile
from predictors.latency_models import non_negative
from predictors.model import Matrix, clearly_best


def additive(rows: int, seed: int, noise: float = 0.02) -> tuple[Matrix, Matrix]:
    rng = np.random.default_rng(seed)
    terms = np.column_stack([rng.integers(1, 7, (rows, 3)) / 6, np.ones(rows)])
    return terms, terms @ np.array([0.04, 0.02, 0.0, 0.01]) * np.exp(rng.normal(scale=noise, size=rows))


def test_the_simple_model_is_kept_where_latencies_are_sums() -> None:
    terms, seconds = additive(60, seed=0)
    assert choose_latency_model(terms, seconds).name == "non-negative"


def test_another_model_is_chosen_where_they_are_not() -> None:
    rng = np.random.default_rng(0)
    terms = np.column_stack([rng.uniform(size=(200, 2)), np.ones(200)])
    seconds = np.where((terms[:, 0] > 0.5) ^ (terms[:, 1] > 0.5), 0.1, 0.01)
    assert choose_latency_model(terms, seconds).name in ("boosted-trees", "gaussian-process")


@pytest.mark.parametrize("count", [40, 100])
def test_nine_of_ten_lie_within_the_bounds(count: int) -> None:
    shares = []
    for seed in range(10):
        terms, seconds = additive(count, seed)
        unseen, expected = additive(200, seed + 100)
        low, high = choose_latency_model(terms, seconds, names=["non-negative"]).bounds(unseen)
        shares.append(((low <= expected) & (expected <= high)).mean())
    assert 0.85 <= np.mean(shares) <= 0.97


def test_the_quantile_is_the_one_that_the_next_error_exceeds_as_rarely_as_stated() -> None:
    errors = np.arange(1.0, 20.0)
    assert conformal_quantile(errors, 0.9) == 18.0
    assert conformal_quantile(errors, 0.5) == 10.0
    assert conformal_quantile(errors[:8], 0.9) == math.inf, "eight errors cannot bound nine of ten"
    with pytest.raises(ValueError, match="between 0 and 1, got 1"):
        conformal_quantile(errors, 1.0)


def test_a_slow_minute_hardly_counts() -> None:
    terms, seconds = additive(60, seed=0, noise=0.003)
    disturbed = seconds.copy()
    disturbed[:10] *= 1.4
    unseen, expected = additive(50, seed=1, noise=0.0)
    found = non_negative.fit(terms, disturbed, 0).predict(unseen)
    assert np.abs(found / expected - 1).max() < 0.02


def test_a_strong_prior_decides_and_a_weak_one_does_not() -> None:
    terms, seconds = additive(40, seed=0, noise=0.0)
    prior = np.array([0.01, 0.05, 0.02, 0.0])
    for strength, expected in ((1e9, prior), (0.0, np.array([0.04, 0.02, 0.0, 0.01]))):
        weights = non_negative.fit_towards(terms, seconds, prior, strength).weights_T
        np.testing.assert_allclose(weights, expected, atol=1e-6)


def test_a_rival_must_be_clearly_better() -> None:
    errors = {"first": np.array([1.0, 1.0, 1.0, 1.0]), "lucky": np.array([1.2, 1.0, 1.0, 0.7])}
    assert clearly_best(errors, "first") == "first"
    assert clearly_best({**errors, "better": np.array([0.5, 0.6, 0.5, 0.6])}, "first") == "better"


@pytest.mark.parametrize(
    ("seconds", "term", "message"),
    [
        ([1.0], 1.0, "at least 2 networks"),
        ([1.0, 2.0], 1.0, "at least 3 networks"),
        ([1.0, -2.0], 1.0, r"finite and positive, got -2\.0"),
        ([1.0, math.nan], 1.0, "finite and positive, got nan"),
        ([1.0, 2.0], -1.0, "terms must be finite and >= 0"),
    ],
)
def test_impossible_rows_are_refused(seconds: list[float], term: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_latency_model(np.full((len(seconds), 2), term), np.array(seconds))
