"""What a new search takes over from other studies, and that it sees the same when it resumes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest

from nas.algorithm import AlgorithmSettings, Search, SearchProblem
from nas.evaluator import Evaluator
from nas.objective import Bindings
from nas.problem import build_problem, full_evaluator, study_for
from nas.search import run
from nas.settings import SearchSettings
from nas.starting import begin
from nas.warm_start import AUTO, Rows, WarmStart, known_rows, related_rows
from studies.records import Evaluation
from studies.store import StudyStore
from supernets.supernet import Supernet
from tests.toy_bindings import tiny_bindings
from tests.toy_task import tiny_model

COSTLY = ("error", "latency")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StudyStore]:
    with StudyStore.open(f"sqlite:///{tmp_path}/s.db") as opened:
        yield opened


def searched(
    store: StudyStore, name: str, bindings: Bindings, count: int = 6, objectives: tuple[str, ...] = COSTLY
) -> list[Evaluation]:
    """A small study of random networks."""
    settings = SearchSettings(objectives=objectives, algorithm="random", batch=count, budget=count, study_name=name)
    problem, evaluate = build_problem(objectives, {}, bindings, store)
    study, algorithm = begin(settings, problem, evaluate, study_for(settings, problem, bindings, {}), store)
    run(problem, algorithm, evaluate, store, study)
    return store.evaluations(name)


def rows_for(store: StudyStore, bindings: Bindings, *sources: str) -> Rows:
    problem, _ = build_problem(COSTLY, {}, bindings, store)
    return known_rows(sources, problem, full_evaluator(problem, bindings).columns, store, "new")


def elsewhere() -> Bindings:
    """The same weights and data for a machine whose operations take their own time."""
    bindings = tiny_bindings(table_device="cpu-elsewhere")
    assert bindings.table is not None
    slower = {key: 2 * seconds + 1e-5 for key, seconds in bindings.table.seconds.items()}
    return replace(bindings, table=replace(bindings.table, seconds=slower))


def retrained() -> Bindings:
    """The same space, other weights."""
    bindings = tiny_bindings()
    bindings.supernet.model.get_parameter("classifier.bias").data += 0.1
    return bindings


def test_another_device_keeps_every_quality_and_computes_its_own_costs(store: StudyStore) -> None:
    known = searched(store, "here", tiny_bindings())
    there = elsewhere()
    problem, _ = build_problem(COSTLY, {}, there)
    rows = rows_for(store, there, "here")
    assert list(rows) == [evaluation.genotype for evaluation in known]
    for evaluation in known:
        error, latency = rows[evaluation.genotype]
        assert error == evaluation.values[0].number
        assert latency == problem.exact([evaluation.genotype])[0, 1] > evaluation.values[1].number


def test_the_objectives_of_the_source_need_not_agree(store: StudyStore) -> None:
    known = searched(store, "sizes", tiny_bindings(), objectives=("error", "parameters"))
    rows = rows_for(store, tiny_bindings(), "sizes")
    assert [row[0] for row in rows.values()] == [evaluation.values[0].number for evaluation in known]
    assert all(math.isfinite(cost) for row in rows.values() for cost in row)


def test_of_other_weights_only_the_place_of_the_front_counts(store: StudyStore) -> None:
    searched(store, "old", retrained(), count=12)
    rows = rows_for(store, tiny_bindings(), "old")
    front = store.front("old", provenances=frozenset({"supernet", "predicted"}))
    assert set(rows) == {evaluation.genotype for evaluation in front.evaluations}
    assert len(rows) < 12
    assert all(math.isnan(error) and math.isfinite(latency) for error, latency in rows.values())


def test_qualities_under_other_weights_are_related_not_known(store: StudyStore) -> None:
    searched(store, "few", retrained(), count=4)
    old = searched(store, "old", retrained(), count=12)
    searched(store, "same", tiny_bindings(), count=20)
    problem, _ = build_problem(COSTLY, {}, tiny_bindings(), store)
    columns = full_evaluator(problem, tiny_bindings()).columns
    related = related_rows(("few", "old", "same"), problem, columns, store, "new")
    assert list(related) == [evaluation.genotype for evaluation in old]
    for evaluation in old:
        error, latency = related[evaluation.genotype]
        assert error == evaluation.values[0].number
        assert math.isnan(latency)
    assert related_rows(("same",), problem, columns, store, "new") == {}


def test_a_sample_of_the_data_is_no_quality(store: StudyStore) -> None:
    searched(store, "sampled", tiny_bindings(examples=8))
    assert not any(math.isfinite(error) for error, _ in rows_for(store, tiny_bindings(), "sampled").values())


def test_a_known_quality_is_not_replaced_by_an_unknown_one(store: StudyStore) -> None:
    searched(store, "good", tiny_bindings(), count=30)
    searched(store, "old", retrained(), count=30)
    for order in (("good", "old"), ("old", "good"), (AUTO,)):
        rows = rows_for(store, tiny_bindings(), *order)
        good = rows_for(store, tiny_bindings(), "good")
        assert {genotype: rows[genotype] for genotype in good} == good


def test_sources_that_do_not_fit_are_refused_and_auto_leaves_them_out(store: StudyStore) -> None:
    bindings = tiny_bindings()
    space = bindings.supernet.space
    other = replace(bindings, supernet=Supernet.wrap(tiny_model(), space.reordered(space.layer_order[::-1])))
    searched(store, "reordered", other)
    with pytest.raises(ValueError, match="'reordered' searched another space"):
        rows_for(store, bindings, "reordered")
    with pytest.raises(ValueError, match="no study named 'nowhere'"):
        rows_for(store, bindings, "nowhere")
    with pytest.raises(ValueError, match="cannot warm-start itself"):
        rows_for(store, bindings, "new")
    assert rows_for(store, bindings, AUTO) == {}


class Telling:
    """An algorithm that only remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[WarmStart] = []

    def __call__(self, problem: SearchProblem, settings: AlgorithmSettings) -> Search:
        self.told.append(WarmStart(dict(settings.known), dict(settings.related)))
        yield [problem.space.sample(Random(0))]


def test_a_resumed_search_is_told_the_same_whatever_the_source_has_learnt(
    store: StudyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched(store, "source", tiny_bindings())
    searched(store, "other", retrained())
    telling = Telling()
    monkeypatch.setattr("nas.starting.load_algorithm", lambda _: telling)
    settings = SearchSettings(algorithm="random", study_name="new", warm_start=("source", "other"))
    for sources in (("source", "other"), ("source", "other"), ()):
        bindings = tiny_bindings()
        problem, evaluate = build_problem(COSTLY, {}, bindings, store)
        study = study_for(settings, problem, bindings, {})
        asked = replace(settings, warm_start=sources)
        stored, algorithm = begin(asked, problem, evaluate, study, store)
        next(algorithm)
        algorithm.close()
        grown = Evaluation(genotype=problem.space.largest, values=evaluate(problem.space.largest).values)
        store.append("source", [grown])
    first = telling.told[0]
    assert len(first.known) >= 6
    assert len(first.related) == 6
    assert [told.mark for told in telling.told] == [first.mark] * 3
    assert stored.algorithm.endswith(first.mark)
    assert ",known=" in first.mark
    assert ",related=" in first.mark
    assert stored.settings["warm_start"] == ["source", "other"]


def test_a_cold_study_cannot_be_warmed_later(store: StudyStore) -> None:
    searched(store, "source", tiny_bindings())
    searched(store, "new", tiny_bindings())
    settings = SearchSettings(algorithm="random", study_name="new", batch=6, warm_start=("source",))
    bindings = tiny_bindings()
    problem, evaluate = build_problem(COSTLY, {}, bindings, store)
    with pytest.raises(ValueError, match="was made with algorithm"):
        begin(settings, problem, evaluate, study_for(settings, problem, bindings, {}), store)


def test_a_new_device_measures_no_quality_again(store: StudyStore) -> None:
    searched(store, "here", tiny_bindings())
    there = elsewhere()
    problem, evaluate = build_problem(COSTLY, {}, there, store)
    costly = evaluate.columns[0]
    never = replace(costly, evaluate=lambda _: pytest.fail("a stored quality was measured again"))
    again = Evaluator((never, *evaluate.columns[1:]), problem.space, store)
    for genotype, row in rows_for(store, there, "here").items():
        found = [value.number for value in again(genotype).values]
        assert np.allclose(found, row, rtol=0, atol=0)
