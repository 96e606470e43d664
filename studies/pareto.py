"""Pareto algebra: what is worth showing among many evaluations.

Legend of shapes: N candidates, M objectives, R distinct rows in lexicographic order. Costs are minimised everywhere; a
maximised objective enters with its sign flipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from studies.records import MEASURED, Evaluation, Objective, Provenance, Value

Costs = NDArray[np.float64]
Mask = NDArray[np.bool_]


def non_dominated(costs: ArrayLike) -> Mask:
    """Mask [N] of the rows of `costs` [N, M] that no other row dominates.

    A row dominates another if it is no worse in every objective and better in at least one, so rows with equal costs
    are kept or dropped together. A row with a NaN is never kept and dominates nothing; infinities compare as usual.
    """
    costs_NM = _matrix(costs)
    mask_N = _every(~np.isnan(costs_NM))
    valid_NM = costs_NM[mask_N]
    order_N = np.lexsort(valid_NM.T[::-1])
    sorted_NM = valid_NM[order_N]
    is_new_N = np.ones(len(sorted_NM), dtype=bool)
    is_new_N[1:] = ~_every(sorted_NM[1:] == sorted_NM[:-1])
    kept_R = _undominated(sorted_NM[is_new_N])
    kept_N = np.empty(len(sorted_NM), dtype=bool)
    kept_N[order_N] = kept_R[is_new_N.cumsum() - 1]
    mask_N[mask_N] = kept_N
    return mask_N


def hypervolume(costs: ArrayLike, reference: Sequence[float]) -> float:
    """Volume dominated by `costs` [N, M] and bounded by `reference` [M], in the product of the objectives' units.

    Rows that are not better than the reference in every objective, or not finite, add nothing. The time grows with the
    power M - 1 of the rows on the front: meant for up to four objectives.
    (Zitzler and Thiele, "Multiobjective evolutionary algorithms", IEEE TEVC 1999; computed in slices along the last
    objective as in While et al., "A faster algorithm for calculating hypervolume", IEEE TEVC 2006.)
    """
    costs_NM, reference_M = _matrix(costs), np.asarray(reference, dtype=float)
    if reference_M.shape != costs_NM.shape[1:]:
        raise ValueError(f"the reference needs {costs_NM.shape[1]} numbers, one per objective, got {len(reference)}")
    inside_N = _every(np.isfinite(costs_NM) & (costs_NM < reference_M))
    return _sliced_volume(costs_NM[inside_N], reference_M)


def knee(costs: ArrayLike) -> int:
    """Row of the best compromise in `costs` [N, M]: where giving up on any objective pays least.

    Costs are scaled so that every objective spans 0 to 1 over the rows; the knee lies farthest below the plane on which
    the scaled costs add up to 1, which with two objectives is the line through the two ends of the front (Das, "On
    characterizing the knee of the Pareto curve", Structural Optimization 1999). The first row wins a tie; rows that are
    not finite are ignored; ValueError if none is left.
    """
    costs_NM = _matrix(costs)
    finite_N = _every(np.isfinite(costs_NM))
    if not finite_N.any():
        raise ValueError("a knee needs at least one row of finite costs, got none")
    low_M, high_M = costs_NM[finite_N].min(axis=0), costs_NM[finite_N].max(axis=0)
    span_M = np.where(high_M > low_M, high_M - low_M, 1.0)
    height_N = np.where(finite_N, ((np.where(finite_N[:, None], costs_NM, 0.0) - low_M) / span_M).sum(axis=1), np.inf)
    return int(height_N.argmin())


def within_limits(costs: ArrayLike, limits: Sequence[float]) -> Mask:
    """Mask [N] of the rows of `costs` [N, M] at or below every limit [M]; the epsilon-constraint filter.

    Use infinity where there is no limit. A NaN is never within a limit. (Haimes, Lasdon and Wismer, IEEE SMC 1971.)
    """
    return _every(_matrix(costs) <= np.asarray(limits, dtype=float))


def _matrix(costs: ArrayLike) -> Costs:
    costs_NM = np.asarray(costs, dtype=float)
    if costs_NM.ndim != 2 or costs_NM.shape[1] == 0:
        raise ValueError(f"costs must have shape [candidates, objectives], got {list(costs_NM.shape)}")
    return costs_NM


def _undominated(distinct_RM: Costs) -> Mask:
    """Mask [R]; a row can only be dominated by an earlier one."""
    kept_R = np.zeros(len(distinct_RM), dtype=bool)
    if distinct_RM.shape[1] <= 2:
        last_R = distinct_RM[:, -1]
        kept_R[:1] = True
        kept_R[1:] = last_R[1:] < np.minimum.accumulate(last_R)[:-1]
        return kept_R
    open_R = np.arange(len(distinct_RM))
    while len(open_R):
        first = open_R[0]
        kept_R[first] = True
        open_R = open_R[(distinct_RM[open_R] < distinct_RM[first]).any(axis=1)]
    return kept_R


def _sliced_volume(costs_NM: Costs, reference_M: Costs) -> float:
    """Hypervolume of rows that are all better than the reference."""
    front_NM = costs_NM[non_dominated(costs_NM)]
    if not len(front_NM):
        return 0.0
    if front_NM.shape[1] == 1:
        return float(reference_M[0] - front_NM[0, 0])
    front_NM = front_NM[front_NM[:, -1].argsort()]
    depth_N = np.diff(front_NM[:, -1], append=reference_M[-1])
    if front_NM.shape[1] == 2:
        return float((depth_N * (reference_M[0] - front_NM[:, 0])).sum())
    return sum(
        float(depth) * _sliced_volume(front_NM[:n, :-1], reference_M[:-1])
        for n, depth in enumerate(depth_N, start=1)
        if depth > 0
    )


def _every(flags_NM: Mask) -> Mask:
    return np.asarray(flags_NM.all(axis=1))


@dataclass(frozen=True, kw_only=True, slots=True)
class ValueFilter:
    """Which values may stand for an objective.

    Attributes:
        provenances: how the number may have come to be; measured ones unless said otherwise.
        device: fingerprint; values that depend on no device always pass. None lets every device pass.
        data_fraction: share of the split a quality was measured on, all of it unless said otherwise: qualities of
            different shares are never compared. None lets every share pass. Values that depend on no data always pass.
    """

    provenances: frozenset[Provenance] = MEASURED
    device: str | None = None
    data_fraction: float | None = 1.0

    def latest(self, evaluation: Evaluation, objective: str) -> Value | None:
        """The last value of an objective key that passes, or None."""
        return next((v for v in reversed(evaluation.values) if v.objective == objective and self.passes(v)), None)

    def passes(self, value: Value) -> bool:
        """Whether a value may be used."""
        return (
            value.provenance in self.provenances
            and (self.device is None or value.device in ("", self.device))
            and (self.data_fraction is None or not value.data_hash or value.data_fraction == self.data_fraction)
        )


def cost_row(
    evaluation: Evaluation, objectives: Sequence[Objective], allowed: ValueFilter | None = None
) -> list[float]:
    """Costs [M] of one evaluation, to be minimised; NaN where it is not done or has no allowed value."""
    chosen = allowed or ValueFilter()
    values = [chosen.latest(evaluation, objective.key) for objective in objectives]
    return [
        signed(objective, value.number) if value is not None and evaluation.status == "done" else float("nan")
        for objective, value in zip(objectives, values, strict=True)
    ]


def signed(objective: Objective, number: float) -> float:
    """A number in the objective's unit as a cost, and back: the sign of maximised objectives is flipped."""
    return -number if objective.goal == "max" else number


@dataclass(frozen=True, kw_only=True, slots=True)
class ParetoFront:
    """Evaluations none of which dominates another, ascending in the first objective's cost.

    The constructor refuses anything else, so holding one is the proof. Equal costs may appear more than once.

    Attributes:
        objectives: at least one; their keys are distinct.
        evaluations: each has an allowed value for every objective.
        allowed: which values the front stands on.
    """

    objectives: tuple[Objective, ...]
    evaluations: tuple[Evaluation, ...]
    allowed: ValueFilter = ValueFilter()

    def __post_init__(self) -> None:
        keys = [objective.key for objective in self.objectives]
        if not keys or len(set(keys)) < len(keys):
            raise ValueError(f"a front needs one or more distinct objectives, got {keys}")
        dominated = np.flatnonzero(~non_dominated(self.costs))
        if len(dominated):
            worst = self.evaluations[dominated[0]].genotype
            raise ValueError(f"{worst} is dominated or lacks an allowed value; build fronts with ParetoFront.of")

    @classmethod
    def of(
        cls, objectives: Sequence[Objective], evaluations: Iterable[Evaluation], allowed: ValueFilter | None = None
    ) -> ParetoFront:
        """The front of any evaluations; those not done or without an allowed value for every objective are left out."""
        chosen, candidates = allowed or ValueFilter(), list(evaluations)
        costs_NM = _costs(objectives, candidates, chosen)
        kept = np.flatnonzero(non_dominated(costs_NM))
        order = np.lexsort(costs_NM[kept].T[::-1])
        return cls(objectives=tuple(objectives), evaluations=tuple(candidates[i] for i in kept[order]), allowed=chosen)

    def __len__(self) -> int:
        return len(self.evaluations)

    @property
    def costs(self) -> Costs:
        """Costs [N, M] in the order of `evaluations`; maximised objectives have their sign flipped."""
        return _costs(self.objectives, self.evaluations, self.allowed)

    def value(self, evaluation: Evaluation, objective: Objective) -> Value:
        """The value the front stands on, with its provenance and spread."""
        value = self.allowed.latest(evaluation, objective.key)
        assert value is not None, "the constructor lets no evaluation in without its values"
        return value

    def hypervolume(self, reference: Sequence[float] | None = None) -> float:
        """Hypervolume up to a reference point in the objectives' own units (default: their `reference`)."""
        point = [o.reference for o in self.objectives] if reference is None else list(reference)
        if len(point) != len(self.objectives) or any(number is None for number in point):
            keys = ", ".join(objective.key for objective in self.objectives)
            raise ValueError(f"a hypervolume needs one reference number for each of {keys}, got {point}")
        return hypervolume(
            self.costs, [signed(o, n) for o, n in zip(self.objectives, point, strict=True) if n is not None]
        )

    def knee(self) -> Evaluation:
        """The best compromise as `knee` defines it; ValueError on an empty front."""
        return self.evaluations[knee(self.costs)]

    def within(self, limits: Mapping[str, float]) -> ParetoFront:
        """The part that keeps every limit: objective key → largest allowed value (smallest for a maximised one)."""
        unknown = sorted(set(limits) - {objective.key for objective in self.objectives})
        if unknown:
            known = [objective.key for objective in self.objectives]
            raise ValueError(f"limits must name objectives of the front, {known}, got {unknown}")
        limits_M = [signed(o, limits[o.key]) if o.key in limits else np.inf for o in self.objectives]
        kept = np.flatnonzero(within_limits(self.costs, limits_M))
        return ParetoFront(
            objectives=self.objectives, evaluations=tuple(self.evaluations[i] for i in kept), allowed=self.allowed
        )

    def best(self, objective: str, limits: Mapping[str, float] | None = None) -> Evaluation | None:
        """The best evaluation in one objective key within limits, or None if nothing keeps them."""
        keys = [o.key for o in self.objectives]
        if objective not in keys:
            raise ValueError(f"the objective must be one of {keys}, got {objective!r}")
        part = self.within(limits or {})
        return part.evaluations[int(part.costs[:, keys.index(objective)].argmin())] if len(part) else None


def _costs(objectives: Sequence[Objective], evaluations: Sequence[Evaluation], allowed: ValueFilter) -> Costs:
    rows = [cost_row(evaluation, objectives, allowed) for evaluation in evaluations]
    return np.array(rows, dtype=float).reshape(len(evaluations), len(objectives))
