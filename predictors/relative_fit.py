"""The correction of summed operations, fitted on a few whole networks and on what is known before any is timed.

``seconds = scale * sum + operation_seconds * count + pass_seconds``: a network spends time between its operations as
well, in Python mostly, which no operation that is timed alone shows. Errors are relative and normal, coefficients are
not negative and have normal priors, so that five rows suffice for three of them: the most probable ones are a
non-negative least-squares problem (Bishop, Pattern Recognition and Machine Learning, 2006, section 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PRIOR = ((1.0, 0.5), (20e-6, 15e-6), (0.0, 3e-4))
"""Mean and standard deviation of the scale, of the seconds per operation and of those per pass, as CPUs and GPUs have
them under Python; networks that take longer than some milliseconds hardly notice the last two."""
PRIOR_ERROR, PRIOR_ROWS = 0.0175, 4
"""What the error of a composed latency is taken to be before any is known, and how many rows that is worth."""
PARAMETERS = 2
"""How many of the three a few rows decide; the rest is the prior's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One measured network.

    Attributes:
        total: sum of its operations' seconds.
        operations: how many there are.
        seconds: of the network as a whole.
    """

    total: float
    operations: float
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Correction:
    """What turns the sum of operations into the latency of a network; by default nothing."""

    scale: float = 1.0
    operation_seconds: float = 0.0
    pass_seconds: float = 0.0

    def seconds(self, total: float, operations: float) -> float:
        """Of a network whose operations take `total` seconds."""
        return self.scale * total + self.operation_seconds * operations + self.pass_seconds


UNCORRECTED = Correction()


def fit(points: Sequence[Point]) -> Correction:
    """The most probable correction of at least one point."""
    from scipy.optimize import nnls

    assert points, "a correction needs at least one point"
    assert all(min(p.total, p.operations, p.seconds) > 0 for p in points), f"points must be positive, got {points}"
    rows_PC = np.array([[p.total, p.operations, 1.0] for p in points]) / np.array([[p.seconds] for p in points])
    means, deviations = np.array(PRIOR).T
    weighted_RC = np.vstack([rows_PC / PRIOR_ERROR, np.diag(1 / deviations)])
    target_R = np.concatenate([np.full(len(points), 1 / PRIOR_ERROR), means / deviations])
    scaled_C, _ = nnls(weighted_RC * deviations, target_R)
    scale, per_operation, per_pass = map(float, scaled_C * deviations)
    return Correction(scale=scale, operation_seconds=per_operation, pass_seconds=per_pass)


def residuals(points: Sequence[Point], correction: Correction) -> tuple[float, ...]:
    """For every point, by how much of its seconds a correction is off."""
    return tuple(abs(correction.seconds(p.total, p.operations) / p.seconds - 1) for p in points)


def mean_error(residuals: Sequence[float]) -> float | None:
    """Mean error of a fit, of those points that it need not meet; None where there are only those."""
    free = len(residuals) - PARAMETERS
    return sum(residuals) / free if free > 0 else None


def half_width(residuals: Sequence[float], coverage: float) -> float:
    """Relative half-width of the interval that holds a further row with probability `coverage`.

    Three residuals alone cannot bound nine of ten further rows: errors are taken as normal, with a variance that is a
    mixture of the residuals' and a prior one. The predictive distribution is Student's (Gelman et al., Bayesian Data
    Analysis, 2013, section 3.3). What few rows leave open of the coefficients adds as much as it does on average over
    the fitted rows.

    Raises:
        ValueError: the coverage is not a probability.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"a coverage lies between 0 and 1, got {coverage}")
    from scipy.stats import t

    rows = PRIOR_ROWS + max(0, len(residuals) - PARAMETERS)
    variance = (PRIOR_ROWS * PRIOR_ERROR**2 + sum(error**2 for error in residuals)) / rows
    leverage = PARAMETERS / max(len(residuals), PARAMETERS)
    return float(t.ppf((1 + coverage) / 2, rows)) * math.sqrt(variance * (1 + leverage))
