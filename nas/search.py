"""The loop that drives a search algorithm: budget, repeats, failures, storage.

Resuming is replaying: the same algorithm starts from the same seed, stored evaluations answer its first proposals,
and from there on it proposes what it would have proposed without the interruption.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from nas.algorithm import Costs, Search, SearchProblem
from nas.objective import EvaluationFailed
from studies.pareto import ParetoFront, ValueFilter, signed
from studies.records import Evaluation, Genotype, Objective, Provenance, Study, Value

STALE_BATCHES = 5
"""Proposals in a row that bring no new network before a search ends."""

SEARCHED: frozenset[Provenance] = frozenset({"computed", "analytic", "predicted", "supernet"})
"""How the numbers came to be that a search compares: one latency table for all, measured qualities."""

Evaluate = Callable[[Genotype], Evaluation]


class SearchStore(Protocol):
    """What the loop needs of a `StudyStore`."""

    def create_or_resume(self, study: Study) -> Study:
        """Refuses a study that differs from the stored one."""

    def append(self, study_name: str, evaluations: Sequence[Evaluation]) -> Sequence[Evaluation]:
        """Commits finished evaluations at once, and returns them as they are stored, with their numbers."""

    def evaluations(self, study_name: str) -> Sequence[Evaluation]:
        """All of a study, in order."""

    def snapshot_front(self, study_name: str, front: ParetoFront, reference: Sequence[float] | None = None) -> object:
        """Keeps a front as it stood, with its hypervolume if there is a reference."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchProgress:
    """How far a search is, after each network.

    Attributes:
        answered: networks proposed so far, evaluated now or earlier.
        replayed: those of them that were already in the store.
        failed: those of them without values.
        latest: the evaluation that was just finished or found.
    """

    answered: int
    replayed: int
    failed: int
    budget: int
    latest: Evaluation


def run(
    problem: SearchProblem,
    algorithm: Search,
    evaluate: Evaluate,
    store: SearchStore,
    study: Study,
    *,
    on_progress: Callable[[SearchProgress], None] | None = None,
) -> ParetoFront:
    """Search until the study's budget is used or `STALE_BATCHES` proposals in a row bring nothing new.

    Every finished evaluation is committed before the next one starts, so that an interruption at any moment loses at
    most the one in flight. `EvaluationFailed`, `ValueError`, `ArithmeticError` and values that are not finite become
    failed rows with their reason; anything else is not the network's fault, and ends the search with the study intact.

    Returns:
        The front of what the search compared (see `SEARCHED`), within the limits; empty if nothing is.
    """
    store.create_or_resume(study)
    session = _Session(problem, evaluate, store, study, on_progress)
    stale = 0
    try:
        proposal = next(algorithm, [])
        while proposal and stale < STALE_BATCHES:
            before = len(session.answered)
            if not session.answer(proposal):
                break
            stale = 0 if len(session.answered) > before else stale + 1
            try:
                proposal = algorithm.send(session.costs(proposal))
            except StopIteration:
                break
    finally:
        algorithm.close()
    return session.front()


class _Session:
    """One run: what the store knew, and what has been answered since."""

    def __init__(
        self,
        problem: SearchProblem,
        evaluate: Evaluate,
        store: SearchStore,
        study: Study,
        on_progress: Callable[[SearchProgress], None] | None,
    ) -> None:
        self._problem, self._evaluate, self._store, self._study = problem, evaluate, store, study
        self._on_progress = on_progress
        finished = (e for e in store.evaluations(study.name) if e.status in ("done", "failed"))
        self._known = {e.genotype: e for e in finished}
        self._replayed = 0
        self.answered: dict[Genotype, Evaluation] = {}

    def answer(self, proposal: Sequence[Genotype]) -> bool:
        """Answer new genotypes as far as the budget goes; False when it is used up."""
        canonical = [self._problem.space.canonical(genotype) for genotype in proposal]
        new = [genotype for genotype in dict.fromkeys(canonical) if genotype not in self.answered]
        room = self._study.budget - len(self.answered)
        replayed = self._replayed
        for genotype in new[:room]:
            self._answer_one(genotype)
        if self._replayed - replayed < len(new[:room]):
            references = [objective.reference for objective in self._problem.objectives]
            complete = [reference for reference in references if reference is not None]
            reference = complete if len(complete) == len(references) else None
            self._store.snapshot_front(self._study.name, self.front(), reference)
        return len(new) < room

    def costs(self, proposal: Sequence[Genotype]) -> Costs:
        """Cost rows of answered genotypes; +inf where the evaluation failed."""
        rows = [cost_row(self._problem, self.answered[self._problem.space.canonical(g)]) for g in proposal]
        return np.array(rows, dtype=np.float64)

    def front(self) -> ParetoFront:
        """The front of what was answered within the limits, among the networks measured on the most data."""
        evaluations, share = most_measured(self._problem, self.answered.values())
        costs = np.array([cost_row(self._problem, e) for e in evaluations]).reshape(-1, len(self._problem.columns))
        feasible = np.flatnonzero(self._problem.violations(costs) == 0)
        allowed = ValueFilter(provenances=SEARCHED, data_fraction=share)
        return ParetoFront.of(self._problem.objectives, [evaluations[i] for i in feasible], allowed)

    def _answer_one(self, genotype: Genotype) -> None:
        known = self._known.get(genotype)
        if known is not None:
            self._replayed += 1
        else:
            known = evaluated(self._problem.columns, self._evaluate, genotype)
            (known,) = self._store.append(self._study.name, [known])
        self.answered[genotype] = known
        if self._on_progress:
            failed = sum(e.status == "failed" for e in self.answered.values())
            self._on_progress(
                SearchProgress(
                    answered=len(self.answered),
                    replayed=self._replayed,
                    failed=failed,
                    budget=self._study.budget,
                    latest=known,
                )
            )


def evaluated(columns: Sequence[Objective], evaluate: Evaluate, genotype: Genotype) -> Evaluation:
    """The evaluation of a genotype, failed with its reason if it has no finite value for every column."""
    try:
        evaluation = evaluate(genotype)
        for column in columns:
            number = _searched_value(evaluation, column.key).number
            if not math.isfinite(number):
                raise EvaluationFailed(f"{column.key} is {number}")
    except (EvaluationFailed, ValueError, ArithmeticError) as error:
        return Evaluation(genotype=genotype, status="failed", failure=str(error) or type(error).__name__)
    assert evaluation.genotype == genotype, "an evaluation is of the genotype it was asked for"
    return evaluation


def _searched_value(evaluation: Evaluation, objective: str) -> Value:
    """The value the search saw: the first of its provenances, later ones are re-measurements."""
    for value in evaluation.values:
        if value.objective == objective and value.provenance in SEARCHED:
            return value
    raise EvaluationFailed(f"there is no value for {objective}")


def compared_share(evaluations: Iterable[Evaluation]) -> float:
    """The largest share of the data on which a search saw qualities; what was measured later does not count."""
    first = (
        next((v for v in e.values if v.data_hash and v.provenance in SEARCHED), None)
        for e in evaluations
        if e.status == "done"
    )
    return max((value.data_fraction for value in first if value is not None), default=1.0)


def most_measured(problem: SearchProblem, evaluations: Iterable[Evaluation]) -> tuple[list[Evaluation], float]:
    """The finished evaluations that the search saw on the largest share of the data, as it saw them; and that share."""
    searched = [as_searched(problem, e) for e in evaluations if e.status == "done"]
    shares = [min((v.data_fraction for v in e.values if v.data_hash), default=1.0) for e in searched]
    largest = max(shares, default=1.0)
    return [e for e, share in zip(searched, shares, strict=True) if share == largest], largest


def as_searched(problem: SearchProblem, evaluation: Evaluation) -> Evaluation:
    """A finished evaluation with the values that the search compared, and no later ones."""
    return replace(evaluation, values=tuple(_searched_value(evaluation, column.key) for column in problem.columns))


def cost_row(problem: SearchProblem, evaluation: Evaluation) -> list[float]:
    """Costs of one evaluation per column of the problem; +inf where it failed."""
    if evaluation.status == "failed":
        return [math.inf] * len(problem.columns)
    return [signed(column, _searched_value(evaluation, column.key).number) for column in problem.columns]
