import numpy as np
import pytest

from predictors.latency_models import non_negative
from predictors.latency_transfer import choose_networks, transfer
from predictors.model import Matrix

WEIGHTS = np.array([0.04, 0.02, 0.01, 0.006, 0.003, 0.01])


def networks(rows: int, seed: int) -> Matrix:
    rng = np.random.default_rng(seed)
    return np.column_stack([rng.integers(1, 7, (rows, 5)) / 6, np.ones(rows)])


def noisy(terms: Matrix, weights: Matrix, seed: int) -> Matrix:
    return np.asarray(terms @ weights * np.exp(np.random.default_rng(seed).normal(scale=0.03, size=len(terms))))


@pytest.mark.parametrize("factors", [[1, 1, 1, 1, 1, 1], [1, 1, 4, 1, 1, 1]], ids=["same", "one term differs"])
def test_ten_measurements_and_a_table_beat_ten_alone(factors: list[float]) -> None:
    """On a device three times as slow, over eight draws of the ten."""
    terms, unseen = networks(300, 0), networks(200, 1)
    seconds = noisy(terms, WEIGHTS, 2)
    prior = non_negative.fit(terms, seconds, 0)
    weights = 3 * WEIGHTS * np.array(factors)
    expected, errors = unseen @ weights, []
    for seed in range(8):
        few = networks(10, 10 + seed)
        measured = noisy(few, weights, 20 + seed)
        models = transfer(prior, prior, few, measured), non_negative.fit(few, measured, 0)
        errors.append([np.abs(model.predict(unseen) / expected - 1).mean() for model in models])
    moved, alone = np.mean(errors, axis=0)
    assert moved < alone


def test_the_design_tells_more_than_chance() -> None:
    terms = networks(400, 0)
    latencies = terms @ WEIGHTS
    chosen = choose_networks(terms, latencies, 8)
    assert len(set(chosen.tolist())) == 8
    information = [np.linalg.slogdet(terms[rows].T @ terms[rows])[1] for rows in (chosen, np.arange(8))]
    assert information[0] > information[1]


def test_too_few_are_refused() -> None:
    terms = networks(5, 0)
    with pytest.raises(ValueError, match="2 to 5 of these networks can be measured, got 6"):
        choose_networks(terms, terms @ WEIGHTS, 6)
    source = non_negative.fit(terms, terms @ WEIGHTS, 0)
    with pytest.raises(ValueError, match="at least 2 networks"):
        transfer(source, source, terms[:1], np.ones(1))
