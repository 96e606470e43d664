"""Ridge regression of relative errors from which outliers are removed: weights may be negative.

Rows weigh ``1 / seconds^2``. What lies more than three standard deviations from the fit, estimated by the median
absolute deviation, is left out, and the rest is fitted again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from predictors.model import Matrix

_PENALTIES = np.logspace(-4, 2, 13)
_ROUNDS = 4
_CUT, _MAD_TO_SD = 3.0, 1.4826
_LEAST_SECONDS_SHARE = 0.1


@dataclass(frozen=True)
class RobustRidge:
    """A linear function of terms.

    Attributes:
        least: seconds below which nothing is predicted; a line may cross zero where nothing was measured.
    """

    centre_T: Matrix
    scale_T: Matrix
    weights_T: Matrix
    offset: float
    least: float

    def predict(self, terms_QT: Matrix) -> Matrix:
        """Predicted seconds [Q]."""
        raw_Q = ((terms_QT - self.centre_T) / self.scale_T * self.weights_T).sum(axis=1) + self.offset
        return np.asarray(np.maximum(raw_Q, self.least))


def fit(terms_NT: Matrix, seconds_N: Matrix, seed: int) -> RobustRidge:
    """Fit with the penalty that leaves out single rows best, four times, each on the rows that fit."""
    from sklearn.linear_model import RidgeCV

    scale_T = terms_NT.std(axis=0)
    scale_T = np.where(scale_T > 0, scale_T, 1.0)
    centre_T = terms_NT.mean(axis=0)
    standard_NT = (terms_NT - centre_T) / scale_T
    kept_N = np.ones(len(seconds_N), dtype=bool)
    for _ in range(_ROUNDS):
        line = RidgeCV(alphas=_PENALTIES)
        line.fit(standard_NT[kept_N], seconds_N[kept_N], sample_weight=(seconds_N.mean() / seconds_N[kept_N]) ** 2)
        error_N = line.predict(standard_NT) / seconds_N - 1
        middle = float(np.median(error_N[kept_N]))
        spread = _MAD_TO_SD * float(np.median(np.abs(error_N[kept_N] - middle)))
        kept_N = np.abs(error_N - middle) <= max(_CUT * spread, 1e-9)
        if kept_N.sum() < max(2, len(kept_N) // 2):
            break
    least = _LEAST_SECONDS_SHARE * float(seconds_N.min())
    return RobustRidge(centre_T, scale_T, np.asarray(line.coef_), float(line.intercept_), least)
