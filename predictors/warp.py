"""Monotone changes of a cost that make it easier to predict.

Costs of networks crowd together at the good end and spread at the bad one. The logarithm of the distance to a point a
little below the best measured cost undoes that, whatever the cost's unit, sign or origin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from predictors.model import Matrix

OFFSETS = (None, 1.0, 0.3)
"""How far below the best cost that point lies, in standard deviations; None leaves the cost as it is."""

_LARGEST_LOG = 50.0


@dataclass(frozen=True)
class Warp:
    """``z = (log(y - origin) - centre) / scale``, or ``z = (y - centre) / scale`` where the origin is None."""

    origin: float | None
    centre: float
    scale: float

    @classmethod
    def of(cls, costs_N: Matrix, offset: float | None) -> Warp:
        """The warp after which finite costs, not all equal, have mean 0 and variance 1."""
        origin = None if offset is None else float(costs_N.min() - offset * costs_N.std())
        raw_N = costs_N if origin is None else np.log(costs_N - origin)
        return cls(origin, float(raw_N.mean()), float(raw_N.std()))

    def apply(self, costs: Matrix) -> Matrix:
        """Warped costs, of any shape, none below the best one the warp was made of."""
        return ((costs if self.origin is None else np.log(costs - self.origin)) - self.centre) / self.scale

    def invert(self, warped: Matrix) -> Matrix:
        """Costs again."""
        raw = warped * self.scale + self.centre
        return raw if self.origin is None else np.exp(np.minimum(raw, _LARGEST_LOG)) + self.origin

    def slope(self, costs: Matrix) -> Matrix:
        """Derivative of `apply`."""
        return np.full_like(costs, 1 / self.scale) if self.origin is None else 1 / (self.scale * (costs - self.origin))
