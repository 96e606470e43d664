"""The boosted trees of `predictors.models`, on the logarithm of the latency: thresholds, such as of caches or tiles."""

from __future__ import annotations

import numpy as np

from predictors.log_latency import LogLatency, fit_log
from predictors.model import Matrix
from predictors.models import gradient_boosting


def fit(terms_NT: Matrix, seconds_N: Matrix, seed: int) -> LogLatency:
    """Fit shallow trees."""
    return fit_log(gradient_boosting.fit, terms_NT, seconds_N, np.arange(terms_NT.shape[1]), seed)
