"""Ridge regression: every feature has its own effect and no other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from predictors.model import Groups, Matrix

_PENALTIES = np.logspace(-1, 3, 13)
"""Tried ratios of noise variance to the variance of one standardised feature's effect."""


@dataclass(frozen=True)
class Ridge:
    """A fitted linear function of standardised features."""

    centre_F: Matrix
    weights_F: Matrix

    def predict(self, features_QF: Matrix) -> Matrix:
        """Predicted targets [Q]."""
        return np.asarray(((features_QF - self.centre_F) * self.weights_F).sum(axis=1))


def fit(features_NF: Matrix, targets_N: Matrix, groups_F: Groups, seed: int) -> Ridge:
    """Fit with the penalty that predicts best when single rows are left out (PRESS; Allen, Technometrics 1974)."""
    centre_F, scale_F = features_NF.mean(axis=0), features_NF.std(axis=0)
    scale_F = np.where(scale_F > 0, scale_F, 1.0)
    left_NR, singular_R, right_RF = np.linalg.svd((features_NF - centre_F) / scale_F, full_matrices=False)
    projected_R = left_NR.T @ targets_N
    best_error, best_F = np.inf, np.zeros_like(centre_F)
    for penalty in _PENALTIES:
        shrunk_R = singular_R**2 / (singular_R**2 + penalty)
        leverage_N = (left_NR**2) @ shrunk_R
        residuals_N = (targets_N - left_NR @ (shrunk_R * projected_R)) / np.maximum(1 - leverage_N, 1e-9)
        error = float((residuals_N**2).mean())
        if error < best_error:
            best_error = error
            best_F = right_RF.T @ (projected_R * singular_R / (singular_R**2 + penalty)) / scale_F
    return Ridge(centre_F, best_F)
