"""Means, spreads and paired differences over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from statistics import mean, median, stdev


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; the latter is 0 for a single value."""
    return mean(values), stdev(values) if len(values) > 1 else 0.0


def median_or_none(values: Sequence[int | None]) -> float | None:
    """Median where None stands for never; None if the median is never."""
    found = median([inf if value is None else value for value in values])
    return None if found == inf else found


@dataclass(frozen=True)
class Paired:
    """Differences of one algorithm to another over the seeds both ran.

    Attributes:
        difference: mean of (one − other).
        error: its standard error; 0 for a single seed.
        wins: seeds where one is larger.
    """

    difference: float
    error: float
    wins: int
    seeds: int

    @property
    def in_errors(self) -> float:
        """The mean difference in standard errors."""
        if self.error == 0:
            return 0.0 if self.difference == 0 else inf * self.difference
        return self.difference / self.error


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> Paired:
    """Compare seed by seed; both hold seed → value."""
    seeds = sorted(set(one) & set(other))
    assert seeds, "a paired comparison needs a common seed"
    differences = [one[seed] - other[seed] for seed in seeds]
    center, spread = mean_sd(differences)
    return Paired(center, spread / sqrt(len(seeds)), sum(d > 0 for d in differences), len(seeds))


def best_by_mean(values: Mapping[str, Mapping[int, float]]) -> str | None:
    """The name whose values have the highest mean, the first in alphabetical order on a tie; None for none."""
    names = [name for name in sorted(values) if values[name]]
    return max(names, key=lambda name: mean(values[name].values()), default=None)
