"""The protocol of regressors that stand in for a cost nobody can compute, trained on a few dozen measured networks.

Legend of shapes: N training rows, Q rows to predict, F features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from studies.discovery import VariantFolder

Matrix = NDArray[np.float64]
Groups = NDArray[np.int64]

MODELS = VariantFolder(package="predictors.models", attribute="fit", kind="predictor model")


class Model(Protocol):
    """A fitted regressor."""

    def predict(self, features_QF: Matrix) -> Matrix:
        """Predicted targets [Q]; a row is predicted alone as in a batch."""


class Fit(Protocol):
    """Trains a regressor."""

    def __call__(self, features_NF: Matrix, targets_N: Matrix, groups_F: Groups, seed: int) -> Model:
        """Fit targets that are finite, centred and of unit variance.

        Args:
            groups_F: what every feature belongs to, such as a gene of a search space; models may ignore it.
        """


def clearly_best(errors: Mapping[str, Matrix], first: str) -> str:
    """The name with the smallest mean error, if smaller than the first one's by a standard error; else the first.

    Args:
        errors: name → errors [N] of the same rows.
    """
    best, name = 0.0, first
    for rival, theirs_N in errors.items():
        gain_N = errors[first] - theirs_N
        if gain_N.mean() > max(best, float(gain_N.std()) / math.sqrt(len(gain_N))):
            best, name = float(gain_N.mean()), rival
    return name


def load_model(name: str) -> Fit:
    """The `fit` function of a regressor by its name; ValueError names the known ones."""
    return cast(Fit, MODELS.load(name))
