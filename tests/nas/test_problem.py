"""From texts and limits to a problem, its evaluator and its study."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nas.problem import build_problem, study_for
from nas.settings import SearchSettings
from studies.errors import LimitError
from studies.records import Study
from studies.store import StudyStore
from tests.toy_bindings import tiny_bindings


def test_exact_columns_are_filled_and_the_others_are_unknown() -> None:
    bindings = tiny_bindings()
    problem, evaluator = build_problem(["error", "latency", "parameters"], {}, bindings)
    genotypes = [problem.space.smallest, problem.space.largest]
    exact = problem.exact(genotypes)
    assert problem.exact_columns == (False, True, True)
    assert np.isnan(exact[:, 0]).all()
    for row, genotype in zip(exact, genotypes, strict=True):
        assert row[1:].tolist() == [value.number for value in evaluator(genotype).values[1:]]


def test_an_exact_objective_counts_up_to_the_largest_network() -> None:
    problem, evaluator = build_problem(["error", "latency"], {}, tiny_bindings())
    largest = evaluator(problem.space.largest)
    assert [objective.reference for objective in problem.objectives] == [1.0, largest.values[1].number]


def test_a_limit_on_an_objective_binds_it_and_any_other_is_an_extra_column() -> None:
    bindings = tiny_bindings()
    problem, evaluator = build_problem(["error", "latency:batch=8,sequence=16"], {"latency": 9.0}, bindings)
    assert (problem.limits, problem.limited) == ({1: 9.0}, ())
    problem, evaluator = build_problem(["error", "macs"], {"latency": 9.0}, bindings)
    assert [objective.key for objective in problem.limited] == ["latency"]
    assert problem.limits == {2: 9.0}
    assert len(evaluator(problem.space.largest).values) == 3


def test_violations_are_relative_and_ignore_what_is_unknown() -> None:
    problem, _ = build_problem(["error", "latency"], {"error": 0.5, "latency": 10.0}, tiny_bindings())
    costs = np.array([[0.5, 10.0], [0.6, 15.0], [np.nan, 20.0], [np.inf, np.inf]])
    assert problem.violations(costs).tolist() == pytest.approx([0.0, 0.7, 1.0, np.inf])


def test_an_impossible_limit_names_the_best_there_is() -> None:
    bindings = tiny_bindings()
    smallest = bindings.supernet.count_parameters(bindings.supernet.space.decode(bindings.supernet.space.smallest))
    with pytest.raises(LimitError, match=rf"can meet parameters 10 parameters; the best is {smallest}"):
        build_problem(["error"], {"parameters": 10}, bindings)


@pytest.mark.parametrize(
    ("objectives", "limits", "message"),
    [
        ([], {}, "at least one objective"),
        (["error", "error"], {}, "named once"),
        (["error", "speed"], {}, "unknown objective 'speed'"),
        (["error"], {"latency": float("nan")}, "finite number"),
    ],
)
def test_bad_objectives_and_limits_are_refused(objectives: list[str], limits: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_problem(objectives, limits, tiny_bindings())


def test_a_study_states_everything_a_resumed_search_must_agree_on(tmp_path: Path) -> None:
    settings = SearchSettings(budget=7, batch=4, study_name="s", limits={"latency": 5.0})
    studies = []
    for _ in range(2):
        bindings = tiny_bindings(examples=5)
        problem, _ = build_problem(settings.objectives, settings.limits, bindings)
        studies.append(study_for(settings, problem, bindings, {"torch": "2"}))
    assert studies[0] == studies[1]
    assert (studies[0].algorithm, studies[0].constraints) == ("guided:batch=4", {"latency": 5.0})
    with StudyStore.open(f"sqlite:///{tmp_path}/s.db") as store:
        stored = store.create_or_resume(studies[0])
        assert stored.objectives == studies[0].objectives
        assert store.create_or_resume(studies[1]) == stored


def test_a_quality_of_another_study_is_taken_over(tmp_path: Path) -> None:
    settings = SearchSettings(study_name="first")
    bindings = tiny_bindings()
    with StudyStore.open(f"sqlite:///{tmp_path}/s.db") as store:
        problem, evaluator = build_problem(settings.objectives, {}, bindings, store)
        study: Study = study_for(settings, problem, bindings, {})
        store.create_or_resume(study)
        (first,) = store.append("first", [evaluator(problem.space.middle)])
        calls = []

        def no_forward(*_: object, **__: object) -> None:
            calls.append(1)

        bindings.supernet.model.register_forward_pre_hook(no_forward)
        _, other = build_problem(["error", "macs"], {}, bindings, store)
        assert other(problem.space.middle).values[0] == first.values[0]
        assert not calls
        other(problem.space.largest)
        assert calls


def test_settings_are_checked_before_anything_is_loaded() -> None:
    with pytest.raises(ValueError, match=r"unknown algorithm 'hyperband'.*linas"):
        SearchSettings(algorithm="hyperband")
    with pytest.raises(ValueError, match="unknown objective 'speed'"):
        SearchSettings(limits={"speed": 3.0})
    with pytest.raises(ValueError, match="at least 1 evaluation"):
        SearchSettings(budget=0)
    with pytest.raises(ValueError, match="at least 1 genotype"):
        SearchSettings(batch=0)


def test_the_record_of_settings_never_holds_the_storage_url() -> None:
    assert "secret" not in repr(SearchSettings(storage="postgresql+psycopg://me:secret@host/db").to_json())
