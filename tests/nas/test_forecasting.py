"""What is predicted of networks nobody has evaluated, stored apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest

from nas.algorithm import SearchProblem
from nas.evaluator import Evaluator
from nas.forecasting import EXACT, forecast
from nas.objective import BoundObjective
from studies.pareto import non_dominated
from studies.predicted import predicted_front
from studies.records import Evaluation, Genotype, Value
from studies.store import StudyStore
from tests.toy_search import ERROR, LATENCY, toy_costs, toy_problem, toy_study


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StudyStore]:
    with StudyStore.open(f"sqlite:///{tmp_path}/s.db") as opened:
        yield opened


def evaluator(problem: SearchProblem) -> Evaluator:
    def value(column: int, genotype: Genotype) -> Value:
        number = float(toy_costs(problem.space, [genotype])[0, column])
        name, provenance = (("error", "supernet"), ("latency", "predicted"))[column]
        return Value(objective=name, number=number, provenance=provenance, device="" if column == 0 else "box")  # type: ignore[arg-type]

    error = BoundObjective(objective=ERROR, exact=False, evaluate=lambda g: value(0, g))
    latency = BoundObjective(objective=LATENCY, exact=True, evaluate=lambda g: value(1, g))
    return Evaluator((error, latency), problem.space)


def study_of(store: StudyStore, problem: SearchProblem, count: int) -> list[Evaluation]:
    store.create_or_resume(toy_study(problem, count))
    rng, evaluate = Random(0), evaluator(problem)
    genotypes = dict.fromkeys(problem.space.sample(rng) for _ in range(count))
    return store.append("toy", [evaluate(genotype) for genotype in genotypes])


def test_a_forecast_names_new_networks_that_are_worth_their_cost(store: StudyStore) -> None:
    problem = toy_problem({1: 6.0})
    known = study_of(store, problem, 60)
    for _ in range(2):
        forecast(problem, evaluator(problem), store, "toy")
    predictions = store.predictions("toy")
    genotypes = list(dict.fromkeys(one.genotype for one in predictions))
    assert 5 <= len(genotypes) <= 50
    assert len(predictions) == 2 * len(genotypes), "a repeated forecast replaces the first"
    assert not {e.genotype for e in known} & set(genotypes)
    front = predicted_front(problem.objectives, predictions, known)
    assert len(front) == len(genotypes)
    assert {e.number for e in front.evaluations} == {-1}
    by_objective = {name: [p for p in predictions if p.value.objective == name] for name in ("error", "latency")}
    assert {p.predictor for p in by_objective["latency"]} == {EXACT}
    for one in by_objective["latency"]:
        assert one.value.number == toy_costs(problem.space, [one.genotype])[0, 1] <= 6.0
        assert one.value.device == "box"
    (tau,) = {p.error["rank_correlation"] for p in by_objective["error"]}
    assert tau > 0.7
    real = toy_costs(problem.space, [p.genotype for p in by_objective["error"]])[:, 0]
    said = np.array([p.value.number for p in by_objective["error"]])
    spread = by_objective["error"][0].value.spread
    assert spread is not None
    assert np.sqrt(((real - said) ** 2).mean()) < 5 * spread
    measured = toy_costs(problem.space, [e.genotype for e in known])
    improved = np.vstack([measured, toy_costs(problem.space, genotypes)])
    assert non_dominated(improved)[len(measured) :].sum() >= len(genotypes) / 2
    assert store.evaluations("toy") == known


def test_nothing_is_forecast_from_too_little_or_where_all_is_known(store: StudyStore) -> None:
    problem = toy_problem()
    study_of(store, problem, 3)
    forecast(problem, evaluator(problem), store, "toy")
    store.append("toy", [evaluator(problem)(genotype) for genotype in problem.space.uniform()])
    exact = replace(problem, exact_columns=(True, True))
    forecast(exact, evaluator(problem), store, "toy")
    assert store.predictions("toy") == []
    forecast(problem, evaluator(problem), store, "toy")
    assert store.predictions("toy")


def test_qualities_of_a_share_teach_nothing_beside_those_of_the_whole(store: StudyStore) -> None:
    problem = toy_problem()
    known = study_of(store, problem, 30)
    forecast(problem, evaluator(problem), store, "toy")
    before = {one.training_hash for one in store.predictions("toy")}
    misleading = Value(objective="error", number=0.0, provenance="supernet", data_hash="d", data_fraction=0.1)
    unseen = problem.space.largest
    assert unseen not in {e.genotype for e in known}
    latency = Value(objective="latency", number=1.0, provenance="predicted")
    store.append("toy", [Evaluation(genotype=unseen, values=(misleading, latency))])
    forecast(problem, evaluator(problem), store, "toy")
    assert len(before) == 2, "one per objective"
    assert {one.training_hash for one in store.predictions("toy")} == before
