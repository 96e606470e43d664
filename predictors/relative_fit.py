"""A robust straight line through few points: least absolute relative deviations with physical signs.

``y = scale * x + offset`` with scale > 0 and offset >= 0 minimises ``sum |1 - (scale * x + offset) / y|``. That is a
linear programme in two unknowns, whose optimum is a vertex: a line through two points, or one through a point and the
origin (Bloomfield and Steiger, Least Absolute Deviations, 1983). With a handful of points all of them are tried.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations

Point = tuple[float, float]

PRIOR_ERROR, PRIOR_ROWS = 0.03, 4
"""What the error of a composed latency is taken to be before any is known, and how many rows that is worth."""
PARAMETERS = 2
"""Of a line."""


def fit_line(points: Sequence[Point]) -> tuple[float, float]:
    """The (scale, offset) that fits positive (x, y) points best; of equally good ones the smaller offset."""
    assert points, "a line needs at least one point"
    assert all(x > 0 and y > 0 for x, y in points), f"points must be positive, got {points}"
    _, offset, scale = min(
        (sum(abs(1 - (scale * x + offset) / y) for x, y in points), offset, scale)
        for scale, offset in _vertices(points)
    )
    return scale, offset


def residuals(points: Sequence[Point], line: tuple[float, float]) -> tuple[float, ...]:
    """For every point, by how much of its y a (scale, offset) is off; a fitted line meets two, or one and (0, 0)."""
    scale, offset = line
    return tuple(abs(scale * x + offset - y) / y for x, y in points)


def mean_error(residuals: Sequence[float]) -> float | None:
    """Mean error of a fitted line, of those points that it need not meet; None where there are only those."""
    free = len(residuals) - PARAMETERS
    return sum(residuals) / free if free > 0 else None


def half_width(residuals: Sequence[float], coverage: float) -> float:
    """Relative half-width of the interval that holds a further row with probability `coverage`.

    Three residuals alone cannot bound nine of ten further rows: errors are taken as normal, with a variance that is a
    mixture of the residuals' and a prior one. The predictive distribution is Student's (Gelman et al., Bayesian Data
    Analysis, 2013, section 3.3).

    Raises:
        ValueError: the coverage is not a probability.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"a coverage lies between 0 and 1, got {coverage}")
    from scipy.stats import t

    rows = PRIOR_ROWS + max(0, len(residuals) - PARAMETERS)
    variance = (PRIOR_ROWS * PRIOR_ERROR**2 + sum(error**2 for error in residuals)) / rows
    return float(t.ppf((1 + coverage) / 2, rows)) * math.sqrt(variance)


def _vertices(points: Sequence[Point]) -> Iterator[tuple[float, float]]:
    for x, y in points:
        yield y / x, 0.0
    for (x1, y1), (x2, y2) in combinations(points, 2):
        if x1 != x2:
            scale = (y2 - y1) / (x2 - x1)
            offset = y1 - scale * x1
            if scale > 0 and offset >= 0:
                yield scale, offset
