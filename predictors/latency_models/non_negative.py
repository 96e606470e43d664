"""A sum of terms with weights >= 0: more work never takes less time.

Minimises Huber's loss of the relative errors ``1 - terms @ weights / seconds`` by reweighted non-negative least
squares (Lawson and Hanson, Solving Least Squares Problems, 1974; Huber, Annals of Mathematical Statistics 1964). The
scale of the loss is the median absolute deviation, so that networks timed in a slow minute hardly count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from predictors.model import Matrix

_ROUNDS = 8
_LEAST_SHARE = 0.3
"""Of the rows that count as degrees of freedom, however many terms are in use."""
_MAD_TO_SD = 1.4826
_TINY = 1e-9


@dataclass(frozen=True)
class NonNegative:
    """Seconds per unit of every term."""

    weights_T: Matrix

    def predict(self, terms_QT: Matrix) -> Matrix:
        """Predicted seconds [Q]."""
        return np.asarray(np.maximum((terms_QT * self.weights_T).sum(axis=1), _TINY))


def fit(terms_NT: Matrix, seconds_N: Matrix, seed: int) -> NonNegative:
    """Fit without any prior."""
    return fit_towards(terms_NT, seconds_N, np.zeros(terms_NT.shape[1]), 0.0)


def fit_towards(terms_NT: Matrix, seconds_N: Matrix, prior_T: Matrix, strength: float) -> NonNegative:
    """Fit with weights drawn towards others.

    Args:
        prior_T: seconds per unit of every term, such as those of another device.
        strength: how many rows the prior weighs as much as; 0 ignores it.
    """
    from scipy.optimize import nnls

    share_NT = terms_NT / seconds_N[:, None]
    size_T = np.sqrt((share_NT**2).mean(axis=0))
    size_T = np.where(size_T > 0, size_T, 1.0)
    share_NT = share_NT / size_T
    pull_TT, target_T = np.sqrt(strength) * np.eye(len(size_T)), np.sqrt(strength) * prior_T * size_T
    trust_N = np.ones(len(seconds_N))
    for _ in range(_ROUNDS):
        rows = np.vstack([share_NT * np.sqrt(trust_N)[:, None], pull_TT])
        solution_T, _ = nnls(rows, np.concatenate([np.sqrt(trust_N), target_T]), maxiter=100 * len(size_T))
        error_N = np.abs(share_NT @ solution_T - 1)
        free = max(1 - np.count_nonzero(solution_T) / len(error_N), _LEAST_SHARE)
        scale = _MAD_TO_SD * float(np.median(error_N)) / np.sqrt(free) + _TINY
        trust_N = np.minimum(1.0, scale / np.maximum(error_N, _TINY))
    return NonNegative(solution_T / size_T)
