"""Lets regressors of standardised targets predict latencies: they see the logarithm, so that relative errors count."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from predictors.model import Fit, Groups, Matrix, Model


@dataclass(frozen=True)
class LogLatency:
    """A model of the standardised logarithm of seconds, given standardised terms."""

    model: Model
    centre_T: Matrix
    scale_T: Matrix
    log_centre: float
    log_scale: float

    def predict(self, terms_QT: Matrix) -> Matrix:
        """Predicted seconds [Q]."""
        standard_Q = self.model.predict((terms_QT - self.centre_T) / self.scale_T)
        return np.asarray(np.exp(self.log_centre + self.log_scale * standard_Q))


def fit_log(fit: Fit, terms_NT: Matrix, seconds_N: Matrix, groups_T: Groups, seed: int) -> LogLatency:
    """Fit on terms and logarithms standardised by the training rows."""
    log_N = np.log(seconds_N)
    centre_T, scale_T = terms_NT.mean(axis=0), terms_NT.std(axis=0)
    scale_T = np.where(scale_T > 0, scale_T, 1.0)
    log_centre, log_scale = float(log_N.mean()), float(log_N.std()) or 1.0
    model = fit((terms_NT - centre_T) / scale_T, (log_N - log_centre) / log_scale, groups_T, seed)
    return LogLatency(model, centre_T, scale_T, log_centre, log_scale)
