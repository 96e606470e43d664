"""A share of the data first: who gets the rest, what is kept, and what a front may stand on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from nas.algorithm import AlgorithmSettings, SearchProblem, load_algorithm
from nas.evaluator import Evaluator
from nas.fidelity import STANDARD_ERRORS, Racing, complete
from nas.objective import BoundObjective, EvaluationFailed
from nas.problem import ExactCosts, build_problem, full_evaluator, study_for
from nas.search import SearchProgress, run
from nas.searching import SearchRequest
from nas.settings import SearchSettings
from studies.pareto import ParetoFront, ValueFilter
from studies.records import MEASURED, Evaluation, Genotype, Objective, Study, Value
from studies.store import StudyStore
from tests.toy_bindings import tiny_bindings
from tests.toy_search import toy_space, toy_study
from tests.toy_task import ToyTask

ERROR = Objective(name="error", unit="fraction", reference=1.0)
SIZE = Objective(name="size", unit="genes")
SHARE, TRUE_SPREAD = 0.25, 0.04
SPACE = toy_space()


def truth(genotype: Genotype) -> float:
    """Errors that fall with size, and scatter."""
    return 0.9 - 0.02 * sum(genotype) + 0.3 * Random(str(genotype)).random()


def evaluator(share: float, calls: list[Genotype] | None = None) -> Evaluator:
    """Error with a sampling error that vanishes on all of the data; size is exact."""

    def error(genotype: Genotype) -> Value:
        if calls is not None:
            calls.append(genotype)
        luck = Random(f"{genotype}{share}").gauss(0, TRUE_SPREAD * (1 - share) ** 0.5)
        return Value(
            objective="error",
            number=truth(genotype) + luck * (share < 1),
            spread=TRUE_SPREAD,
            provenance="supernet",
            data_hash="d",
            data_fraction=share,
        )

    def size(genotype: Genotype) -> Value:
        return Value(objective="size", number=float(sum(genotype)), provenance="computed")

    columns = (
        BoundObjective(objective=ERROR, exact=False, evaluate=error),
        BoundObjective(objective=SIZE, exact=True, evaluate=size),
    )
    return Evaluator(columns, SPACE)


def toy_problem(**changes: object) -> SearchProblem:
    columns = evaluator(1.0).columns
    problem = SearchProblem(
        space=SPACE, objectives=(ERROR, SIZE), exact=ExactCosts(columns), exact_columns=(False, True)
    )
    return replace(problem, **changes)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StudyStore]:
    with StudyStore.open(f"sqlite:///{tmp_path}/s.db") as opened:
        yield opened


def race(store: StudyStore, study: Study, stop_after: int | None = None) -> ParetoFront:
    problem = toy_problem()
    racing = Racing(problem, evaluator(SHARE), evaluator(1.0))

    def told(progress: SearchProgress) -> None:
        racing.learn(progress.latest)
        if progress.answered == stop_after:
            raise KeyboardInterrupt

    search = load_algorithm("nsga2")(problem, AlgorithmSettings(batch=8))
    return run(problem, search, racing, store, study, on_progress=told)


def test_only_networks_that_are_surely_beaten_stop_at_the_share(store: StudyStore) -> None:
    """Against the rule, spelt out once more over the stored values."""
    front = race(store, toy_study(toy_problem(), 60))
    winners: list[tuple[float, float]] = []
    fractions = []
    for evaluation in store.evaluations("toy"):
        quick = evaluator(SHARE)(evaluation.genotype).values[0]
        size = float(sum(evaluation.genotype))
        best = quick.number - STANDARD_ERRORS * TRUE_SPREAD * (1 - SHARE) ** 0.5
        is_beaten = any(error <= best and other <= size for error, other in winners)
        error = evaluation.values[0]
        assert error.data_fraction == (SHARE if is_beaten else 1.0)
        assert error.number == (quick.number if is_beaten else truth(evaluation.genotype))
        fractions.append(error.data_fraction)
        if not is_beaten:
            winners.append((error.number, size))
    assert fractions[0] == 1.0, "nothing beats the first one"
    assert fractions.count(SHARE) > len(fractions) / 4
    assert all(front.value(e, ERROR).data_fraction == 1.0 for e in front.evaluations)
    assert front.costs.tolist() == store.front("toy").costs.tolist()


def test_an_interrupted_race_decides_as_the_whole_one(store: StudyStore) -> None:
    race(store, toy_study(toy_problem(), 60, "whole"))
    for stop_after in (5, 23, 41):
        with pytest.raises(KeyboardInterrupt):
            race(store, toy_study(toy_problem(), 60), stop_after)
    race(store, toy_study(toy_problem(), 60))
    assert store.evaluations("toy") == store.evaluations("whole")


def test_what_is_known_in_full_is_not_raced_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Genotype] = []
    known = Value(objective="error", number=0.5, provenance="supernet", data_hash="d")
    monkeypatch.setattr(Evaluator, "known", lambda *_: known)
    racing = Racing(toy_problem(), evaluator(SHARE, calls), evaluator(1.0, calls))
    assert racing(SPACE.middle).values[0] == known
    assert not calls


def test_a_limit_that_is_surely_broken_stops_a_network(store: StudyStore) -> None:
    problem = toy_problem(limits={0: -1.0})
    racing = Racing(problem, evaluator(SHARE), evaluator(1.0))
    assert racing(SPACE.middle).values[0].data_fraction == SHARE


def test_a_maximised_objective_gets_the_benefit_of_the_doubt_upwards() -> None:
    accuracy = Objective(name="accuracy", unit="fraction", goal="max")

    def evaluates(share: float, number: float) -> Evaluator:
        value = Value(
            objective="accuracy", number=number, spread=0.1, provenance="supernet", data_hash="d", data_fraction=share
        )
        return Evaluator((BoundObjective(objective=accuracy, exact=False, evaluate=lambda _: value),), SPACE)

    exact = ExactCosts(evaluates(1.0, 0.5).columns)
    problem = SearchProblem(space=SPACE, objectives=(accuracy,), exact=exact, exact_columns=(False,))
    for number, fraction in ((0.75, 1.0), (0.6, SHARE)):
        racing = Racing(problem, evaluates(SHARE, number), evaluates(1.0, 0.8))
        racing.learn(evaluates(1.0, 0.8)(SPACE.largest))
        assert racing(SPACE.middle).values[0].data_fraction == fraction


def test_a_sample_is_completed_once_and_the_front_stands_on_the_whole(store: StudyStore) -> None:
    store.create_or_resume(toy_study(toy_problem(), 60))
    genotypes = [SPACE.smallest, SPACE.middle, SPACE.largest]
    stored = store.append("toy", [evaluator(SHARE)(genotype) for genotype in genotypes])
    assert len(store.front("toy")) == 0
    calls: list[Genotype] = []
    for _ in range(2):
        complete(store.evaluations("toy")[:2], evaluator(1.0, calls), store, "toy")
    assert calls == genotypes[:2]
    front = store.front("toy")
    assert {e.genotype for e in front.evaluations} == set(genotypes[:2])
    assert [front.value(e, ERROR).number for e in front.evaluations] == sorted(map(truth, genotypes[:2]))
    sampled = ParetoFront.of((ERROR,), stored, ValueFilter(provenances=MEASURED, data_fraction=SHARE))
    assert len(sampled) == 1


def test_a_network_that_fails_on_the_whole_stays_off_the_front(store: StudyStore) -> None:
    def fails(genotype: Genotype) -> Value:
        raise EvaluationFailed("not finite")

    column = BoundObjective(objective=ERROR, exact=False, evaluate=fails)
    store.create_or_resume(toy_study(toy_problem(), 60))
    (stored,) = store.append("toy", [evaluator(SHARE)(SPACE.middle)])
    complete([stored], Evaluator((column,), SPACE), store, "toy")
    assert store.evaluations("toy") == [stored]


def test_a_real_task_is_raced_on_the_examples_of_its_share(tmp_path: Path) -> None:
    bindings = tiny_bindings(examples=8, task=ToyTask(sizes=(64, 32, 32)))
    problem, quick = build_problem(["error", "macs"], {}, bindings)
    racing = Racing(problem, quick, full_evaluator(problem, bindings))
    best = Value(objective="error", number=-1.0, provenance="supernet")
    cost = Value(objective="macs", number=0.0, provenance="computed")
    first = racing(problem.space.smallest).values[0]
    racing.learn(Evaluation(genotype=problem.space.largest, values=(best, cost)))
    second = racing(problem.space.smallest).values[0]
    assert (first.n, first.data_fraction, second.n, second.data_fraction) == (32, 1.0, 8, 0.25)
    _, whole = build_problem(["error"], {}, tiny_bindings(task=ToyTask(sizes=(64, 32, 32))))
    assert first == whole(problem.space.smallest).values[0]
    settings = SearchSettings(objectives=("error", "macs"), low_fidelity=0.25)
    study = study_for(settings, problem, bindings, {})
    assert study.algorithm.endswith(",low_fidelity=0.25")
    assert study.data_hash.endswith(":examples=8,seed=0:float32")


def test_settings_that_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r"between 0 and 1, got 1\.5"):
        SearchSettings(low_fidelity=1.5)
    with pytest.raises(ValueError, match="give one"):
        SearchRequest(search=SearchSettings(low_fidelity=0.5), evaluation_examples=9)


def test_values_of_no_data_are_comparable_with_all_shares() -> None:
    cost = Value(objective="size", number=1.0, provenance="computed")
    sampled = Value(objective="error", number=1.0, provenance="supernet", data_hash="d", data_fraction=0.5)
    assert [ValueFilter(data_fraction=f).passes(cost) for f in (None, 0.5, 1.0)] == [True] * 3
    assert [ValueFilter(data_fraction=f).passes(sampled) for f in (None, 0.5, 1.0)] == [True, True, False]
