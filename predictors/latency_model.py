"""The protocol of regressors that predict the latency of whole networks from analytic terms.

Terms are what a latency can be a sum of: floating-point operations, bytes and launches of each kind of operation. They
are >= 0, at least one is positive in every row, and whoever makes them divides them by constants of the search space,
never by what a batch happens to hold: a network alone is predicted as in a batch.

Legend of shapes: N measured networks, Q networks to predict, T terms.
"""

from __future__ import annotations

from typing import Protocol, cast

from predictors.model import Matrix
from studies.discovery import VariantFolder

LATENCY_MODELS = VariantFolder(package="predictors.latency_models", attribute="fit", kind="latency model")


class LatencyModel(Protocol):
    """A fitted regressor."""

    def predict(self, terms_QT: Matrix) -> Matrix:
        """Predicted seconds [Q], positive; a row is predicted alone as in a batch."""


class FitLatency(Protocol):
    """Trains a regressor for small relative errors."""

    def __call__(self, terms_NT: Matrix, seconds_N: Matrix, seed: int) -> LatencyModel:
        """Fit positive seconds of at least two networks."""


def load_latency_model(name: str) -> FitLatency:
    """The `fit` function of a latency model by its name; ValueError names the known ones."""
    return cast(FitLatency, LATENCY_MODELS.load(name))
