"""What every latency model must do, whichever files there are."""

from __future__ import annotations

import numpy as np
import pytest

from predictors.latency_model import LATENCY_MODELS, load_latency_model
from predictors.model import Matrix

NAMES = LATENCY_MODELS.names()


def toy(rows: int, seed: int = 0) -> tuple[Matrix, Matrix]:
    """Seconds that are a sum of terms, off by a percent, and the terms."""
    rng = np.random.default_rng(seed)
    terms = np.column_stack([rng.integers(1, 7, (rows, 4)) / 6, np.ones(rows)])
    seconds = terms @ np.array([0.05, 0.02, 0.004, 0.001, 0.01])
    return terms, seconds * np.exp(rng.normal(scale=0.01, size=rows))


def test_the_known_models() -> None:
    assert NAMES == ("boosted-trees", "gaussian-process", "non-negative", "robust-ridge")
    with pytest.raises(ValueError, match=r"unknown latency model 'tea leaves'; known are boosted-trees"):
        load_latency_model("tea leaves")


@pytest.mark.parametrize("name", NAMES)
def test_better_than_the_mean(name: str) -> None:
    (terms, seconds), (unseen, expected) = toy(60), toy(40, seed=1)
    error = np.abs(load_latency_model(name)(terms, seconds, 0).predict(unseen) / expected - 1).mean()
    assert error < 0.3 * np.abs(seconds.mean() / expected - 1).mean()


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_predicted_alone_as_in_a_batch(name: str) -> None:
    (terms, seconds), (unseen, _) = toy(60), toy(7, seed=1)
    model = load_latency_model(name)(terms, seconds, 0)
    batch = model.predict(unseen)
    assert (batch > 0).all()
    alone = [model.predict(unseen[i : i + 1])[0] for i in range(len(unseen))]
    np.testing.assert_allclose(alone, batch, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_model(name: str) -> None:
    (terms, seconds), (unseen, _) = toy(30), toy(5, seed=1)
    fit = load_latency_model(name)
    assert (fit(terms, seconds, 3).predict(unseen) == fit(terms, seconds, 3).predict(unseen)).all()


@pytest.mark.parametrize("name", NAMES)
def test_latencies_stay_positive_far_from_the_data(name: str) -> None:
    terms, seconds = toy(30)
    assert (load_latency_model(name)(terms, seconds, 0).predict(np.zeros((1, 5))) > 0).all()
