"""The Gaussian process of `predictors.models`, on the logarithm of the latency: smooth, with few assumptions."""

from __future__ import annotations

import numpy as np

from predictors.log_latency import LogLatency, fit_log
from predictors.model import Matrix
from predictors.models import gaussian_process


def fit(terms_NT: Matrix, seconds_N: Matrix, seed: int) -> LogLatency:
    """Fit with one length scale per term."""
    return fit_log(gaussian_process.fit, terms_NT, seconds_N, np.arange(terms_NT.shape[1]), seed)
