"""Regressors that are chosen by cross-validation."""

from __future__ import annotations

import numpy as np
import pytest

from predictors.surrogate import fit_best


@pytest.mark.parametrize("shape", ["linear", "curved"])
def test_beats_the_mean_by_far_on_linear_and_curved_targets(shape: str) -> None:
    rng = np.random.default_rng(0)
    features = rng.random((120, 6))
    targets = features @ np.arange(6.0) if shape == "linear" else np.exp(-4 * features[:, :2].sum(axis=1))
    predict = fit_best(features[:80], targets[:80], seed=0)
    residual = np.mean((predict(features[80:]) - targets[80:]) ** 2)
    assert residual < 0.2 * np.var(targets[80:])


def test_a_row_is_predicted_alone_as_in_a_batch_and_again_the_same() -> None:
    rng = np.random.default_rng(1)
    features, targets = rng.random((30, 4)), rng.random(30)
    first, second = (fit_best(features, targets, seed=5) for _ in range(2))
    batch = first(features)
    assert batch.tolist() == second(features).tolist()
    assert batch == pytest.approx([first(features[i : i + 1])[0] for i in range(30)])


@pytest.mark.parametrize(("count", "spread"), [(1, 1.0), (4, 1.0), (20, 0.0)])
def test_too_few_or_equal_targets_are_predicted_by_their_mean(count: int, spread: float) -> None:
    targets = 2.0 + spread * np.arange(count, dtype=np.float64)
    predict = fit_best(np.random.default_rng(0).random((count, 3)), targets, seed=0)
    assert predict(np.zeros((2, 3))) == pytest.approx([targets.mean()] * 2)
