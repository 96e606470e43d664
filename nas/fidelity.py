"""Qualities on a share of the data first, and on all of it where that may change the front."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from nas.algorithm import SearchProblem
from nas.evaluator import SUPERNET, Evaluator
from nas.objective import EvaluationFailed
from nas.search import as_searched, cost_row
from studies.pareto import signed
from studies.records import Evaluation, Genotype, Value
from studies.store import StudyStore

STANDARD_ERRORS = 1.64
"""By how much a sample may flatter or wrong a network before it is dropped: one in twenty of equals is."""


class Racing:
    """An evaluator that spends all of the data only on networks that a share of it leaves a chance.

    A network is dropped after the share if some network measured in full is at least as good in every objective even
    when the sampling error is granted to the newcomer, or if a limit is broken in the same sense. (The idea: Maron and
    Moore, Hoeffding races, NIPS 1993; here with the standard error of a sample without replacement.)

    Args:
        quick: evaluates on the share.
        full: evaluates on everything; what it knows already is not raced for.
    """

    def __init__(self, problem: SearchProblem, quick: Evaluator, full: Evaluator) -> None:
        self._problem, self._quick, self._full = problem, quick, full
        self._winners: list[list[float]] = []

    def learn(self, evaluation: Evaluation) -> None:
        """Take an answered evaluation into account, new or stored: decisions depend on nothing else."""
        if evaluation.status != "done":
            return
        searched = as_searched(self._problem, evaluation)
        row = cost_row(self._problem, searched)
        if all(_is_full(value) for value in searched.values) and not self._violates(row):
            self._winners.append(row[: len(self._problem.objectives)])

    def __call__(self, genotype: Genotype) -> Evaluation:
        """Values on all of the data, or on the share where that is enough to see that the network is beaten."""
        canonical = self._problem.space.canonical(genotype)
        costly = [column for column in self._full.columns if not column.exact]
        if all(self._full.known(column, canonical) for column in costly):
            return self._full(canonical)
        first = self._quick(canonical)
        return self._full(canonical) if self._has_a_chance(first) else first

    def _has_a_chance(self, evaluation: Evaluation) -> bool:
        values = {value.objective: value for value in evaluation.values}
        row = [signed(c, values[c.key].number) - _margin(values[c.key]) for c in self._problem.columns]
        if self._violates(row):
            return False
        at_best = row[: len(self._problem.objectives)]
        return not any(all(w <= b for w, b in zip(winner, at_best, strict=True)) for winner in self._winners)

    def _violates(self, row: list[float]) -> bool:
        return bool(self._problem.violations(np.array([row]))[0] > 0)


def complete(
    evaluations: Sequence[Evaluation],
    full: Evaluator,
    store: StudyStore,
    study_name: str,
    on_progress: Callable[[float, int], None] | None = None,
) -> None:
    """Add qualities on all of the data where an evaluation has them on a share only, each once.

    What a search picks by qualities on a share is better there than it is: the luckiest win. Such a value is not put
    on a front.
    """
    for number, evaluation in enumerate(evaluations, 1):
        done = {v.objective for v in evaluation.values if v.provenance in SUPERNET and _is_full(v)}
        missing = [column for column in full.columns if not column.exact and column.objective.key not in done]
        try:
            values = [full.value(column, evaluation.genotype) for column in missing]
        except EvaluationFailed:
            values = []  # it stays what it was: measured on a share
        if values:
            store.add_values(study_name, evaluation.genotype, values)
        if on_progress:
            on_progress(number, len(evaluations))


def _is_full(value: Value) -> bool:
    return value.data_fraction == 1.0


def _margin(value: Value) -> float:
    """What sampling may have added to a number: none where nothing was sampled."""
    left = 1.0 - value.data_fraction
    if left == 0.0:
        return 0.0
    return math.inf if value.spread is None else STANDARD_ERRORS * value.spread * math.sqrt(left)
