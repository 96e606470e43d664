"""The Gaussian process against finite differences, refits without a fold, and scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern, WhiteKernel

from predictors.models import gaussian_process as gp

GROUPS = np.array([4, 4, 7, 9, 9])


def rows(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    features = rng.random((count, len(GROUPS)))
    targets = np.sin(4 * features[:, 0]) + features[:, 2] + 0.05 * rng.standard_normal(count)
    return features, (targets - targets.mean()) / targets.std()


def test_the_gradient_is_that_of_finite_differences() -> None:
    features, targets = rows(25)
    index, prior = gp._numbered(GROUPS), gp._prior_mean(features, GROUPS)
    theta = prior + 0.5 * np.random.default_rng(1).standard_normal(len(prior))
    _, gradient = gp._loss(theta, features, targets, index, prior)
    step = 1e-6
    for i, unit in enumerate(np.eye(len(theta))):
        above, below = (gp._loss(theta + sign * step * unit, features, targets, index, prior)[0] for sign in (1, -1))
        assert gradient[i] == pytest.approx((above - below) / (2 * step), rel=1e-4, abs=1e-5)


def test_posterior_and_likelihood_are_those_of_scikit_learn() -> None:
    features, targets = rows(30)
    theta = gp._prior_mean(features, GROUPS)
    process = gp.condition((theta, 0.0), features, targets, GROUPS)
    linear, smooth, noise = np.exp(theta[:3])
    kernel = (
        ConstantKernel(linear / features.shape[1]) * DotProduct(sigma_0=0.0, sigma_0_bounds="fixed")
        + ConstantKernel(smooth) * Matern(length_scale=np.exp(-theta[gp.WEIGHT] / 2), nu=2.5)
        + WhiteKernel(noise + 1e-4)
    )
    oracle = GaussianProcessRegressor(kernel, alpha=0.0, optimizer=None).fit(features, targets)
    queries, _ = rows(8, seed=2)
    mean, covariance = oracle.predict(queries, return_cov=True)
    assert process.predict(queries) == pytest.approx(mean, abs=1e-9)
    assert process.joint(queries)[0] == pytest.approx(mean, abs=1e-9)
    assert process.joint(queries)[1] == pytest.approx(covariance - (noise + 1e-4) * np.eye(8), abs=1e-9)
    loss, _ = gp._loss(theta, features, targets, gp._numbered(GROUPS), theta)
    assert -loss - 15 * np.log(2 * np.pi) == pytest.approx(oracle.log_marginal_likelihood(), abs=1e-8)


def test_left_out_predictions_are_those_of_processes_without_the_fold() -> None:
    features, targets = rows(20)
    learnt = gp.learn(features, targets, GROUPS)
    folds = np.arange(20) % 4
    found = gp.condition(learnt, features, targets, GROUPS).left_out(targets, folds)
    for fold in range(4):
        kept = folds != fold
        without = gp.condition(learnt, features[kept], targets[kept], GROUPS)
        assert found[~kept] == pytest.approx(without.predict(features[~kept]), abs=1e-8)


def test_learning_raises_the_evidence_and_finds_the_groups_that_matter() -> None:
    features, targets = rows(80)
    start = gp._prior_mean(features, GROUPS)
    before = -gp._loss(start, features, targets, gp._numbered(GROUPS), start)[0]
    theta, evidence = gp.learn(features, targets, GROUPS)
    assert evidence > before + 5
    assert theta[gp.SHARED] > theta[gp.SHARED + 2] + 0.3  # the sine lives in the first group, nothing in the last
    again, more = gp.learn(features, targets, GROUPS, (theta, evidence), steps=5)
    assert more >= evidence - 1e-9
    assert again.shape == theta.shape


def test_hyperparameters_are_learnt_from_a_bounded_number_of_rows() -> None:
    assert gp.learnt_rows(100) == 100
    assert gp.learnt_rows(10_000) == gp.learnt_rows(5_000) < 1000
