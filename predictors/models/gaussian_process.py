"""Gaussian process: a linear trend plus a smooth function whose length scales are learnt, plus noise.

Covariance: ``linear * x.x'/F + smooth * matern52(r) + noise`` with ``r^2 = sum_f w_f (x_f - x'_f)^2`` and one weight
per group of features. The hyperparameters maximise the marginal likelihood under priors that draw the groups' weights
together: few rows fit one common length scale, many tell the groups apart. (Rasmussen and Williams, Gaussian Processes
for Machine Learning, 2006: likelihood and its gradient 5.4.1, left-out residuals 5.4.2, Matern 4.2.1.)

Legend of shapes: N training rows, Q rows to predict, F features, U groups, T hyperparameters = 4 + U: logarithms of the
linear, smooth and noise variances and of the common weight, then what every group adds to that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from predictors.model import Groups, Matrix

LINEAR, SMOOTH, NOISE, WEIGHT, SHARED = range(5)
"""Positions in the hyperparameters; those of the groups start at `SHARED`."""

_PRIOR_MEAN = (-1.0, 0.0, -4.0)
_PRIOR_SD = (2.0, 1.5, 2.0, 1.5)
_GROUP_SD = 0.5
_BOUND = 6.0
_LEAST_NOISE = 1e-4
"""Variance that keeps the covariance invertible."""
_LEARNT_FROM = 256
"""Rows from which hyperparameters are learnt at most, evenly spread; all rows then shape the prediction."""
_STEPS = 25


@dataclass(frozen=True)
class GaussianProcess:
    """A process given its hyperparameters and training rows.

    Attributes:
        theta_T: hyperparameters.
        evidence: log of likelihood times prior at them, up to a constant, of the rows they were learnt from.
        noise: variance of what the features do not explain.
    """

    theta_T: Matrix
    evidence: float
    noise: float
    rows_NF: Matrix
    weights_F: Matrix
    inverse_NN: Matrix
    alpha_N: Matrix

    def predict(self, features_QF: Matrix) -> Matrix:
        """Posterior means [Q]."""
        return np.asarray(self._covariance(features_QF, self.rows_NF) @ self.alpha_N)

    def joint(self, features_QF: Matrix) -> tuple[Matrix, Matrix]:
        """Posterior mean [Q] and covariance [Q, Q] without the noise."""
        cross_QN = self._covariance(features_QF, self.rows_NF)
        prior_QQ = self._covariance(features_QF, features_QF)
        return cross_QN @ self.alpha_N, prior_QQ - cross_QN @ self.inverse_NN @ cross_QN.T

    def left_out(self, targets_N: Matrix, folds_N: Groups) -> Matrix:
        """Predictions [N] of every training row without those of its fold, at the same hyperparameters."""
        predicted_N = np.empty_like(targets_N)
        for fold in np.unique(folds_N):
            rows = np.flatnonzero(folds_N == fold)
            residuals = np.linalg.solve(self.inverse_NN[np.ix_(rows, rows)], self.alpha_N[rows])
            predicted_N[rows] = targets_N[rows] - residuals
        return predicted_N

    def _covariance(self, left_QF: Matrix, right_RF: Matrix) -> Matrix:
        linear, smooth, _ = _parts(left_QF, right_RF, self.weights_F)
        return np.asarray(np.exp(self.theta_T[LINEAR]) * linear + np.exp(self.theta_T[SMOOTH]) * smooth)


def fit(features_NF: Matrix, targets_N: Matrix, groups_F: Groups, seed: int) -> GaussianProcess:
    """Learn hyperparameters from their prior means on, then condition on all rows."""
    return condition(learn(features_NF, targets_N, groups_F), features_NF, targets_N, groups_F)


def learn(
    features_NF: Matrix,
    targets_N: Matrix,
    groups_F: Groups,
    start: tuple[Matrix, float] | None = None,
    steps: int = _STEPS,
) -> tuple[Matrix, float]:
    """Hyperparameters [T] and their evidence by quasi-Newton steps from a start, such as those of fewer rows."""
    from scipy.optimize import minimize

    index_F, prior_T = _numbered(groups_F), _prior_mean(features_NF, groups_F)
    rows = np.linspace(0, len(targets_N) - 1, learnt_rows(len(targets_N))).astype(int)
    found = minimize(
        _loss,
        prior_T if start is None else start[0],
        args=(features_NF[rows], targets_N[rows], index_F, prior_T),
        jac=True,
        method="L-BFGS-B",
        bounds=[(mean - _BOUND, mean + _BOUND) for mean in prior_T],
        options={"maxiter": steps, "maxfun": 2 * steps},
    )
    return np.asarray(found.x), -float(found.fun)


def learnt_rows(count: int) -> int:
    """From how many of so many rows hyperparameters are learnt."""
    return min(count, _LEARNT_FROM)


def condition(
    learnt: tuple[Matrix, float], features_NF: Matrix, targets_N: Matrix, groups_F: Groups
) -> GaussianProcess:
    """The process with these hyperparameters, given the rows."""
    theta_T, evidence = learnt
    weights_F = np.exp(theta_T[WEIGHT] + theta_T[SHARED:][_numbered(groups_F)])
    linear, smooth, _ = _parts(features_NF, features_NF, weights_F)
    noise = float(np.exp(theta_T[NOISE])) + _LEAST_NOISE
    covariance_NN = np.exp(theta_T[LINEAR]) * linear + np.exp(theta_T[SMOOTH]) * smooth + noise * np.eye(len(linear))
    inverse_NN, _ = _inverse(covariance_NN)
    return GaussianProcess(
        theta_T, evidence, noise, features_NF, weights_F, inverse_NN, np.asarray(inverse_NN @ targets_N)
    )


def _numbered(groups_F: Groups) -> Groups:
    return np.unique(groups_F, return_inverse=True)[1]


def _prior_mean(features_NF: Matrix, groups_F: Groups) -> Matrix:
    """Two rows at the average distance have r = 1."""
    distance = 2 * float(features_NF.var(axis=0).sum())
    return np.array([*_PRIOR_MEAN, -np.log(max(distance, 1e-9)), *np.zeros(len(np.unique(groups_F)))])


def _parts(left_QF: Matrix, right_RF: Matrix, weights_F: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """Linear and smooth covariance, and the derivative of the smooth one by the squared distance."""
    a_QF, b_RF = left_QF * np.sqrt(weights_F), right_RF * np.sqrt(weights_F)
    squares = (a_QF**2).sum(axis=1)[:, None] + (b_RF**2).sum(axis=1) - 2 * a_QF @ b_RF.T
    r = np.sqrt(5 * np.maximum(squares, 0.0))
    decay = np.exp(-r)
    return left_QF @ right_RF.T / left_QF.shape[1], (1 + r + r**2 / 3) * decay, -5 / 6 * (1 + r) * decay


def _inverse(covariance_NN: Matrix) -> tuple[Matrix, float]:
    """Inverse of a positive definite matrix, and half the logarithm of its determinant."""
    from scipy.linalg import cholesky, lapack

    lower_NN = cholesky(covariance_NN, lower=True)
    filled_NN, _ = lapack.dpotri(lower_NN, lower=1)
    half_NN = np.tril(filled_NN, -1)
    return half_NN + half_NN.T + np.diag(np.diag(filled_NN)), float(np.log(np.diag(lower_NN)).sum())


def _loss(
    theta_T: Matrix, rows_NF: Matrix, targets_N: Matrix, index_F: Groups, prior_T: Matrix
) -> tuple[float, Matrix]:
    """Negative log of likelihood times prior, and its gradient."""
    weights_F = np.exp(theta_T[WEIGHT] + theta_T[SHARED:][index_F])
    linear, smooth, slope = _parts(rows_NF, rows_NF, weights_F)
    linear, smooth, noise = np.exp(theta_T[LINEAR]) * linear, np.exp(theta_T[SMOOTH]) * smooth, np.exp(theta_T[NOISE])
    inverse_NN, half_log = _inverse(linear + smooth + (noise + _LEAST_NOISE) * np.eye(len(rows_NF)))
    alpha_N = inverse_NN @ targets_N
    by_covariance = 0.5 * (inverse_NN - np.outer(alpha_N, alpha_N))
    by_square = by_covariance * slope * np.exp(theta_T[SMOOTH])
    # The sum of by_square_ij (x_if - x_jf)^2 over all pairs of rows, without forming the differences.
    moved_F = 2 * (by_square.sum(axis=1) @ rows_NF**2 - (rows_NF * (by_square @ rows_NF)).sum(axis=0)) * weights_F
    gradient_T = np.empty_like(theta_T)
    gradient_T[LINEAR] = (by_covariance * linear).sum()
    gradient_T[SMOOTH] = (by_covariance * smooth).sum()
    gradient_T[NOISE] = noise * np.trace(by_covariance)
    gradient_T[WEIGHT] = moved_F.sum()
    gradient_T[SHARED:] = np.bincount(index_F, moved_F, minlength=len(theta_T) - SHARED)
    deviation_T = (theta_T - prior_T) / np.array([*_PRIOR_SD, *np.full(len(theta_T) - SHARED, _GROUP_SD)])
    loss = 0.5 * targets_N @ alpha_N + half_log + 0.5 * deviation_T @ deviation_T
    return float(loss), gradient_T + deviation_T / np.array([*_PRIOR_SD, *np.full(len(theta_T) - SHARED, _GROUP_SD)])
