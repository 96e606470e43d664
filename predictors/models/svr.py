"""Support-vector regression with a radial kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from predictors.model import Groups, Matrix

_COST, _TUBE = 10.0, 0.01


@dataclass(frozen=True)
class SupportVectors:
    """A fitted scikit-learn pipeline."""

    pipeline: Any

    def predict(self, features_QF: Matrix) -> Matrix:
        """Predicted targets [Q]."""
        return np.asarray(self.pipeline.predict(features_QF), dtype=np.float64)


def fit(features_NF: Matrix, targets_N: Matrix, groups_F: Groups, seed: int) -> SupportVectors:
    """Fit on standardised features; the kernel's width follows their number."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVR

    return SupportVectors(make_pipeline(StandardScaler(), SVR(C=_COST, epsilon=_TUBE)).fit(features_NF, targets_N))
