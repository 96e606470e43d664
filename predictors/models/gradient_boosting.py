"""Gradient-boosted trees: interactions and thresholds, no smoothness (Friedman, Annals of Statistics 2001)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from predictors.model import Groups, Matrix

_TREES, _DEPTH, _ROW_SHARE, _FEATURE_SHARE = 50, 3, 0.7, 0.3


@dataclass(frozen=True)
class BoostedTrees:
    """A fitted scikit-learn ensemble."""

    trees: Any

    def predict(self, features_QF: Matrix) -> Matrix:
        """Predicted targets [Q]."""
        return np.asarray(self.trees.predict(features_QF), dtype=np.float64)


def fit(features_NF: Matrix, targets_N: Matrix, groups_F: Groups, seed: int) -> BoostedTrees:
    """Fit shallow trees, each on a share of the rows and features."""
    from sklearn.ensemble import GradientBoostingRegressor

    trees = GradientBoostingRegressor(
        n_estimators=_TREES,
        max_depth=_DEPTH,
        subsample=_ROW_SHARE,
        max_features=_FEATURE_SHARE,
        random_state=seed % 2**31,
    )
    return BoostedTrees(trees.fit(features_NF, targets_N))
