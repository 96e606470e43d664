"""One predicted column: warps, the choice of a model, uncertainty, smoothing."""

from __future__ import annotations

import numpy as np
import pytest

import predictors.column_predictor as module
from predictors.column_predictor import GAUSSIAN_PROCESS, ColumnPredictor
from predictors.model import Groups, Matrix
from predictors.warp import OFFSETS, Warp

GROUPS = np.arange(6)


def smooth_costs(count: int, seed: int = 0) -> tuple[Matrix, Matrix]:
    """Features, and costs that crowd at the good end: an exponential of a curved function."""
    rng = np.random.default_rng(seed)
    features = rng.integers(0, 4, size=(count, 6)) / 3
    return features, 0.1 + np.exp(-features @ np.arange(1.0, 7.0) / 4 - features[:, 0] * features[:, 1])


@pytest.mark.parametrize("offset", OFFSETS)
def test_warps_standardise_keep_the_order_and_invert(offset: float | None) -> None:
    costs = -5 + np.random.default_rng(0).lognormal(size=50)
    warp = Warp.of(costs, offset)
    warped = warp.apply(costs)
    assert (warped.mean(), warped.std()) == pytest.approx((0, 1), abs=1e-9)
    assert (np.argsort(warped) == np.argsort(costs)).all()
    assert warp.invert(warped) == pytest.approx(costs)
    step = 1e-6
    assert warp.slope(costs) == pytest.approx(
        (warp.apply(costs + step) - warp.apply(costs - step)) / (2 * step), rel=1e-4
    )
    assert np.isfinite(warp.invert(np.array([-1e3, 1e3]))).all()


def test_warping_helps_where_good_costs_crowd() -> None:
    features, costs = smooth_costs(160)
    errors = []
    for warp in (False, True):
        predictor = ColumnPredictor(GROUPS, 0, choose=False, warp=warp)
        predictor.fit(features[:60], costs[:60])
        errors.append(np.sqrt(np.mean((predictor.mean(features[60:]) - costs[60:]) ** 2)) / costs.std())
    assert errors[1] < 0.7 * errors[0]
    assert errors[1] < 0.2


def test_its_own_judgement_agrees_with_unseen_rows() -> None:
    features, costs = smooth_costs(300)
    predictor = ColumnPredictor(GROUPS, 0)
    predictor.fit(features[:80], costs[:80])
    unseen = np.sqrt(np.mean((predictor.mean(features[80:]) - costs[80:]) ** 2)) / costs.std()
    assert predictor.relative_error == pytest.approx(unseen, abs=0.1)
    assert predictor.rank_correlation > 0.8
    assert predictor.name == GAUSSIAN_PROCESS


def test_noise_is_not_trusted() -> None:
    rng = np.random.default_rng(1)
    predictor = ColumnPredictor(GROUPS, 0)
    predictor.fit(rng.random((120, 6)), rng.random(120))
    assert predictor.rank_correlation < 0.3
    assert predictor.relative_error > 0.8


class Oracle:
    """A model that has seen the answers."""

    def predict(self, features: Matrix) -> Matrix:
        """A threshold no kernel resolves from a few rows."""
        return np.where(np.sin(1e4 * features).sum(axis=1) > 0, 1.0, -1.0)


def test_a_rival_takes_over_only_where_it_is_clearly_better(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> object:
        def fit(features: Matrix, targets: Matrix, groups: Groups, seed: int) -> Oracle:
            return Oracle()

        return fit

    features = np.random.default_rng(2).random((50, 6))
    costs = Oracle().predict(features)
    monkeypatch.setattr(module, "load_model", load)
    alone, free = ColumnPredictor(GROUPS, 0, choose=False, warp=False), ColumnPredictor(GROUPS, 0, warp=False)
    for predictor in (alone, free):
        predictor.fit(features, costs)
    assert alone.name == GAUSSIAN_PROCESS
    assert free.name in {"gradient-boosting", "ridge", "svr"}
    assert free.relative_error < 0.3 < alone.relative_error
    normals = np.zeros((1, 50))
    assert free.samples(features, normals)[0] == pytest.approx(free.mean(features))
    smooth, targets = smooth_costs(50)
    free.fit(np.vstack([smooth, smooth + 1]), np.concatenate([targets, targets]))
    assert free.name == GAUSSIAN_PROCESS


@pytest.mark.parametrize("costs", [[2.0], [1.0, 2.0, 3.0], [4.0] * 12])
def test_too_few_or_equal_costs_are_predicted_by_their_mean(costs: list[float]) -> None:
    predictor = ColumnPredictor(GROUPS, 0)
    predictor.fit(np.random.default_rng(0).random((len(costs), 6)), np.array(costs))
    assert predictor.name == ("constant" if len(costs) == 12 else "mean")
    assert predictor.rank_correlation == 0
    queries = np.zeros((2, 6))
    assert predictor.mean(queries) == pytest.approx([np.mean(costs)] * 2)
    assert predictor.shifted(predictor.mean(queries), 1.0) == pytest.approx([np.mean(costs) + np.std(costs)] * 2)
    assert predictor.samples(queries, np.zeros((3, 2))) == pytest.approx(np.full((3, 2), np.mean(costs)))
    assert predictor.smoothed().tolist() == costs


def test_samples_are_spread_as_the_prediction_errs() -> None:
    features, costs = smooth_costs(400)
    costs = costs + 0.05 * np.random.default_rng(3).standard_normal(400)
    predictor = ColumnPredictor(GROUPS, 0, warp=False)
    predictor.fit(features[:100], costs[:100])
    unseen, truth = features[100:], costs[100:]
    normals = np.random.default_rng(4).standard_normal((200, 300))
    samples = predictor.samples(unseen, normals)
    z = (truth - samples.mean(axis=0)) / samples.std(axis=0)
    assert 0.7 < z.std() < 1.4
    predictor.fit(features[:101], costs[:101], noise=0.05)
    assert predictor.samples(unseen, normals).std(axis=0).mean() < 0.8 * samples.std(axis=0).mean()


def test_known_noise_is_smoothed_away_and_unknown_noise_is_left() -> None:
    features, truth = smooth_costs(120)
    costs = truth + 0.05 * np.random.default_rng(5).standard_normal(120)
    predictor = ColumnPredictor(GROUPS, 0)
    predictor.fit(features, costs)
    assert predictor.smoothed().tolist() == costs.tolist()
    predictor.fit(features, costs, noise=0.05)
    assert np.std(predictor.smoothed() - truth) < 0.7 * np.std(costs - truth)


def test_more_rows_make_it_better_whatever_it_went_on_from() -> None:
    features, costs = smooth_costs(400)
    grown, fresh = ColumnPredictor(GROUPS, 0), ColumnPredictor(GROUPS, 0)
    errors = []
    for count in (20, 25, 60, 65, 120):
        grown.fit(features[:count], costs[:count])
        errors.append(np.sqrt(np.mean((grown.mean(features[200:]) - costs[200:]) ** 2)))
    fresh.fit(features[:120], costs[:120])
    assert errors[-1] < 0.5 * errors[0]
    assert errors[-1] < 1.5 * np.sqrt(np.mean((fresh.mean(features[200:]) - costs[200:]) ** 2))
