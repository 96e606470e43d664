"""The loop: budget, repeats, failures, and resuming from the store, with the toy problem and a real SQLite store."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from nas.algorithm import AlgorithmSettings, Search, SearchProblem, load_algorithm
from nas.objective import EvaluationFailed
from nas.search import STALE_BATCHES, SearchProgress, run
from studies.pareto import non_dominated
from studies.records import Evaluation, Genotype, Value
from studies.store import StudyStore
from tests.toy_search import toy_costs, toy_problem, toy_study


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StudyStore]:
    with StudyStore.open(f"sqlite:///{tmp_path}/s.db") as opened:
        yield opened


def toy_evaluation(problem: SearchProblem, genotype: Genotype) -> Evaluation:
    error, latency = toy_costs(problem.space, [genotype])[0]
    values = (
        Value(objective="error", number=error, provenance="supernet"),
        Value(objective="latency", number=latency, provenance="predicted"),
    )
    return Evaluation(genotype=genotype, values=values)


class Evaluator:
    """The toy evaluation, counting calls and breaking where it is told to."""

    def __init__(self, problem: SearchProblem, break_after: int | None = None) -> None:
        self.problem, self.break_after = problem, break_after
        self.calls: list[Genotype] = []

    def __call__(self, genotype: Genotype) -> Evaluation:
        if len(self.calls) == self.break_after:
            raise KeyboardInterrupt
        self.calls.append(genotype)
        return toy_evaluation(self.problem, genotype)


def algorithm(name: str, problem: SearchProblem) -> Search:
    return load_algorithm(name)(problem, AlgorithmSettings(seed=0, batch=6))


def proposals(batches: list[list[Genotype]], seen: list[np.ndarray] | None = None) -> Search:
    for batch in batches:
        costs = yield batch
        if seen is not None:
            seen.append(costs)


def test_the_budget_counts_networks_and_the_front_is_theirs(store: StudyStore) -> None:
    problem = toy_problem()
    evaluate = Evaluator(problem)
    front = run(problem, algorithm("random", problem), evaluate, store, toy_study(problem, 20))
    assert len(evaluate.calls) == len(set(evaluate.calls)) == 20
    costs = toy_costs(problem.space, evaluate.calls)
    expected = {evaluate.calls[i] for i in np.flatnonzero(non_dominated(costs))}
    assert {evaluation.genotype for evaluation in front.evaluations} == expected
    assert [evaluation.genotype for evaluation in store.evaluations("toy")] == evaluate.calls


def test_repeats_and_other_spellings_cost_nothing_and_get_the_same_costs(store: StudyStore) -> None:
    problem, seen = toy_problem(), list[np.ndarray]()
    smallest = problem.space.smallest
    spelled = (*smallest[:-1], 3)
    evaluate = Evaluator(problem)
    run(problem, proposals([[smallest, spelled], [spelled]], seen), evaluate, store, toy_study(problem, 9))
    assert evaluate.calls == [smallest]
    assert np.concatenate(seen).tolist() == toy_costs(problem.space, [smallest] * 3).tolist()


def test_ends_after_a_few_batches_that_bring_nothing_new(store: StudyStore) -> None:
    problem, seen = toy_problem(), list[np.ndarray]()
    run(problem, proposals([[problem.space.largest]] * 50, seen), Evaluator(problem), store, toy_study(problem, 9))
    assert len(seen) == 1 + STALE_BATCHES


@pytest.mark.parametrize("name", ["linas", "nsga2", "random", "tpe"])
def test_an_interrupted_search_resumes_to_the_same_trace(store: StudyStore, name: str) -> None:
    problem = toy_problem()
    whole = Evaluator(problem)
    run(problem, algorithm(name, problem), whole, store, toy_study(problem, 20, "whole"))
    parts: list[Genotype] = []
    for cut in (0, 1, 8, 4, None):
        part = Evaluator(problem, break_after=cut)
        try:
            run(problem, algorithm(name, problem), part, store, toy_study(problem, 20))
        except KeyboardInterrupt:
            assert cut is not None
        parts += part.calls
    assert parts == whole.calls
    assert store.evaluations("toy") == store.evaluations("whole")


def test_a_larger_budget_continues_where_the_smaller_one_ended(store: StudyStore) -> None:
    problem = toy_problem()
    whole, first, second = (Evaluator(problem) for _ in range(3))
    run(problem, algorithm("linas", problem), whole, store, toy_study(problem, 17, "whole"))
    run(problem, algorithm("linas", problem), first, store, toy_study(problem, 9))
    run(problem, algorithm("linas", problem), second, store, toy_study(problem, 17))
    assert first.calls + second.calls == whole.calls


def test_later_values_of_another_provenance_do_not_change_a_replay(store: StudyStore) -> None:
    problem, seen = toy_problem(), list[np.ndarray]()
    genotype = problem.space.middle
    run(problem, proposals([[genotype]]), Evaluator(problem), store, toy_study(problem, 5))
    store.add_values("toy", genotype, [Value(objective="latency", number=99.0, provenance="extracted")])
    run(problem, proposals([[genotype]], seen), Evaluator(problem), store, toy_study(problem, 5))
    assert seen[0].tolist() == toy_costs(problem.space, [genotype]).tolist()


def without_latency(evaluation: Evaluation) -> Evaluation:
    return Evaluation(genotype=evaluation.genotype, values=evaluation.values[:1])


def not_a_number(evaluation: Evaluation) -> Evaluation:
    value = Value(objective="error", number=math.nan, provenance="supernet")
    return Evaluation(genotype=evaluation.genotype, values=(value, *evaluation.values[1:]))


def raises(error: Exception) -> Callable[[Evaluation], Evaluation]:
    def change(_: Evaluation) -> Evaluation:
        raise error

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (raises(EvaluationFailed("no luck")), "no luck"),
        (raises(ValueError("bad shape")), "bad shape"),
        (raises(ZeroDivisionError()), "ZeroDivisionError"),
        (not_a_number, "error is nan"),
        (without_latency, "no value for latency"),
    ],
)
def test_a_failing_network_becomes_a_failed_row_and_the_search_goes_on(
    store: StudyStore, change: Callable[[Evaluation], Evaluation], reason: str
) -> None:
    problem, seen = toy_problem(), list[np.ndarray]()
    bad, good = problem.space.smallest, problem.space.largest

    def evaluate(genotype: Genotype) -> Evaluation:
        evaluation = toy_evaluation(problem, genotype)
        return change(evaluation) if genotype == bad else evaluation

    front = run(problem, proposals([[bad, good]], seen), evaluate, store, toy_study(problem, 5))
    failed, done = store.evaluations("toy")
    assert (failed.status, done.status) == ("failed", "done")
    assert reason in failed.failure
    assert np.isinf(seen[0][0]).all()
    assert [evaluation.genotype for evaluation in front.evaluations] == [good]


def test_what_is_not_the_networks_fault_ends_the_search_with_the_study_intact(store: StudyStore) -> None:
    problem = toy_problem()

    def evaluate(genotype: Genotype) -> Evaluation:
        if genotype == problem.space.largest:
            raise OSError("disk gone")
        return toy_evaluation(problem, genotype)

    search = proposals([[problem.space.smallest, problem.space.largest]])
    with pytest.raises(OSError, match="disk gone"):
        run(problem, search, evaluate, store, toy_study(problem, 5))
    assert [evaluation.genotype for evaluation in store.evaluations("toy")] == [problem.space.smallest]


def test_the_front_keeps_the_limits_even_against_better_networks(store: StudyStore) -> None:
    free, limited = toy_problem(), toy_problem({0: 0.35})
    front = run(limited, algorithm("random", free), Evaluator(limited), store, toy_study(limited, 40))
    assert 0 < len(front) < len(store.evaluations("toy"))
    assert (front.costs[:, 0] <= 0.35).all()


def test_nothing_within_the_limits_is_an_empty_front(store: StudyStore) -> None:
    problem = toy_problem({0: 0.0001})
    front = run(problem, proposals([[problem.space.largest]]), Evaluator(problem), store, toy_study(problem, 5))
    assert len(front) == 0


def test_fronts_are_kept_once_per_batch_that_evaluated_something(store: StudyStore) -> None:
    problem = toy_problem()
    for _ in range(2):
        run(problem, algorithm("random", problem), Evaluator(problem), store, toy_study(problem, 12))
    volumes = [front.hypervolume for front in store.fronts("toy")]
    assert len(volumes) == 2
    assert volumes[0] is not None
    assert volumes[1] is not None
    assert 0 < volumes[0] <= volumes[1]


def test_progress_tells_replayed_and_failed_networks_apart(store: StudyStore) -> None:
    problem, reports = toy_problem(), list[SearchProgress]()

    def evaluate(genotype: Genotype) -> Evaluation:
        raise EvaluationFailed("always")

    for budget in (6, 12):
        search = algorithm("random", problem)
        run(problem, search, evaluate, store, toy_study(problem, budget), on_progress=reports.append)
    last = reports[-1]
    assert (len(reports), last.answered, last.replayed, last.failed, last.budget) == (18, 12, 6, 12, 12)
