"""How good a set of found networks is, against the true front of a table.

Costs are scaled so that the true front spans 0 to 1 in every objective. The reference point of every table is 0.1
beyond the worst of the true front in each objective (the nadir point plus a tenth of the front's range): far enough
that the front's ends count, near enough that a network no one would want counts little. (Ishibuchi et al., "How to
specify a reference point in hypervolume calculation", Evolutionary Computation 2018, recommend points slightly beyond
the nadir.)

Legend of shapes: T evaluations in order, F points of the true front, M objectives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from moocore import hypervolume as moocore_hypervolume
from numpy.typing import NDArray

from nas.algorithm import Costs
from studies.pareto import non_dominated

MARGIN = 0.1


@dataclass(frozen=True, eq=False)
class Yardstick:
    """The true front of a problem and the scale it sets.

    Attributes:
        front_FM: distinct points, scaled to 0 … 1.
        volume: hypervolume of the true front, in scaled units.
        reachable: share of it that remains if the front is chosen by what a search sees of the whole table; below 1
            only where that is not what is scored.
    """

    ideal_M: NDArray[np.float64]
    span_M: NDArray[np.float64]
    reference_M: NDArray[np.float64]
    front_FM: Costs
    volume: float
    reachable: float = 1.0

    def scaled(self, costs_TM: Costs) -> Costs:
        """Costs in units of the true front's range."""
        return np.asarray((costs_TM - self.ideal_M) / self.span_M)

    def hypervolume(self, costs_TM: Costs) -> float:
        """Share of the true front's hypervolume that costs dominate."""
        return volume(self.scaled(costs_TM), self.reference_M) / self.volume

    def igd_plus(self, costs_TM: Costs) -> float:
        """Mean over the true front of the distance to what was found, in scaled units.

        Only being worse counts (Ishibuchi et al., "Modified distance calculation in generational distance and inverted
        generational distance", EMO 2015).
        """
        found_TM = self.scaled(costs_TM)
        found_TM = found_TM[np.isfinite(found_TM).all(axis=1)]
        if not len(found_TM):
            return float("inf")
        excess_FTM = np.maximum(found_TM[None] - self.front_FM[:, None], 0.0)
        return float(np.sqrt((excess_FTM**2).sum(axis=2)).min(axis=1).mean())

    def found(self, costs_TM: Costs) -> float:
        """Share of the points of the true front that are among the costs."""
        found_TM = self.scaled(costs_TM)
        equal_FT = (np.abs(self.front_FM[:, None] - found_TM[None]) <= 1e-9).all(axis=2)
        return float(np.any(equal_FT, axis=1).mean())


def yardstick(scored_NM: Costs, seen_NM: Costs | None = None, reference: Sequence[float] | None = None) -> Yardstick:
    """The yardstick of a table whose rows are all known.

    Args:
        seen_NM: what a search sees of the same rows, where that differs.
        reference: a reference point in the costs' units instead of the rule above.
    """
    front_FM = np.unique(scored_NM[non_dominated(scored_NM)], axis=0)
    ideal_M, nadir_M = front_FM.min(axis=0), front_FM.max(axis=0)
    span_M = np.where(nadir_M > ideal_M, nadir_M - ideal_M, 1.0)
    rule_M = np.full(len(span_M), 1.0 + MARGIN)
    reference_M = rule_M if reference is None else (np.array(reference) - ideal_M) / span_M
    scaled_FM = (front_FM - ideal_M) / span_M
    total = volume(scaled_FM, reference_M)
    plain = Yardstick(ideal_M, span_M, reference_M, scaled_FM, total)
    if seen_NM is None or np.array_equal(seen_NM, scored_NM):
        return plain
    reachable = plain.hypervolume(scored_NM[non_dominated(seen_NM)])
    return Yardstick(ideal_M, span_M, reference_M, scaled_FM, total, reachable)


def volume(costs_TM: Costs, reference_M: NDArray[np.float64]) -> float:
    """Hypervolume of the rows that are finite."""
    inside_TM = costs_TM[(costs_TM < reference_M).all(axis=1)]
    return float(moocore_hypervolume(inside_TM, ref=reference_M)) if len(inside_TM) else 0.0


def front_changes(seen_TM: Costs) -> list[tuple[int, list[int]]]:
    """(evaluations so far, indices of the non-dominated ones) after every evaluation that changed them.

    A failed evaluation (not finite) never enters.
    """
    front: list[int] = []
    changes: list[tuple[int, list[int]]] = []
    for i, row_M in enumerate(seen_TM):
        if not np.isfinite(row_M).all():
            continue
        archive_AM = seen_TM[front]
        if len(front) and ((archive_AM <= row_M).all(axis=1) & (archive_AM < row_M).any(axis=1)).any():
            continue
        beaten_A = (row_M <= archive_AM).all(axis=1) & (row_M < archive_AM).any(axis=1)
        front = [kept for kept, beaten in zip(front, beaten_A, strict=True) if not beaten] + [i]
        changes.append((i + 1, list(front)))
    return changes


@dataclass(frozen=True)
class Progress:
    """The result of a search after every change of its front: evaluations, and each metric from then on."""

    evaluations: tuple[int, ...]
    fronts: tuple[list[int], ...]
    hypervolumes: tuple[float, ...]

    def front_at(self, budget: int) -> list[int]:
        """Indices of the front after so many evaluations."""
        at = int(np.searchsorted(self.evaluations, budget, side="right"))
        return self.fronts[at - 1] if at else []

    def hypervolume_at(self, budget: int) -> float:
        """Share of the true hypervolume after so many evaluations."""
        at = int(np.searchsorted(self.evaluations, budget, side="right"))
        return self.hypervolumes[at - 1] if at else 0.0

    def first_to(self, share: float) -> int | None:
        """Evaluations until a share of the true hypervolume is reached; None if it never is."""
        for count, value in zip(self.evaluations, self.hypervolumes, strict=True):
            if value >= share:
                return count
        return None


def progress(seen_TM: Costs, scored_TM: Costs, stick: Yardstick) -> Progress:
    """A search's fronts are chosen by what it saw, and scored by the other costs."""
    changes = front_changes(seen_TM)
    volumes = [stick.hypervolume(scored_TM[front]) for _, front in changes]
    return Progress(tuple(count for count, _ in changes), tuple(front for _, front in changes), tuple(volumes))
