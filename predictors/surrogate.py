"""Small regressors that stand in for an objective nobody can compute, trained on a few dozen measured networks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.compose import TransformedTargetRegressor
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR

from predictors.model import Matrix

_FOLDS = 5
_CANDIDATES = (
    {"regressor": [Ridge()], "regressor__alpha": [0.1, 1.0, 10.0]},
    {"regressor": [SVR(kernel="rbf", epsilon=0.01)], "regressor__C": [1.0, 10.0, 100.0]},
)


def fit_best(features_NF: Matrix, targets_N: Matrix, seed: int) -> Callable[[Matrix], Matrix]:
    """Fit ridge regression or an RBF support-vector machine, whichever cross-validates better.

    Both, with their regularisation, compete by squared error in five seeded folds; which one wins differs between
    problems. Features and targets are standardised inside the folds.

    Args:
        features_NF: one row per measured network.
        targets_N: its measured objective, finite.

    Returns:
        A function from feature rows to predicted targets, ``[n, F] -> [n]``.
    """
    assert len(features_NF) == len(targets_N) > 0, "one target per row of features"
    if len(targets_N) < _FOLDS or np.ptp(targets_N) == 0:
        mean = float(np.mean(targets_N))
        return lambda rows_NF: np.full(len(rows_NF), mean)
    model = TransformedTargetRegressor(
        regressor=Pipeline([("scale", StandardScaler()), ("regressor", Ridge())]), transformer=StandardScaler()
    )
    grid = [{f"regressor__{name}": options for name, options in candidate.items()} for candidate in _CANDIDATES]
    folds = KFold(_FOLDS, shuffle=True, random_state=seed)
    search = GridSearchCV(model, grid, cv=folds, scoring="neg_mean_squared_error").fit(features_NF, targets_N)
    return lambda rows_NF: np.asarray(search.predict(rows_NF), dtype=np.float64)
