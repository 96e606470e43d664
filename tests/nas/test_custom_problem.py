"""A super-network that is not ours: how it is loaded, what becomes of what it offers, and how it resumes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernels.op_cost import custom
from kernels.op_spec import Context, OpSpec
from nas.custom_problem import LATENCY, CustomColumns, Score, available, load_problem
from nas.custom_search import search_problem
from nas.searching import LATENCY_TABLE_NOTE, SearchRequest
from nas.settings import SearchSettings
from studies.errors import LimitError
from studies.records import Genotype, Objective
from studies.store import StudyStore
from supernets.space import Choice, SearchSpace
from tests.toy_job import QUICK
from tests.toy_search import toy_costs, toy_space

ACCURACY = Objective(name="accuracy", unit="fraction", goal="max", reference=0.0)
SIZE = Objective(name="size", unit="genes")
ALL = (ACCURACY.key, SIZE.key)


class Plain:
    """Accuracy and size, both from one evaluation."""

    space = toy_space()
    objectives: Sequence[Objective] = (ACCURACY, SIZE)
    weights_hash = "w"
    data_hash = "d"

    def __init__(self) -> None:
        self.calls: list[Genotype] = []
        self.break_after: int | None = None

    def evaluate(self, genotype: Genotype) -> Mapping[str, Score]:
        if len(self.calls) == self.break_after:
            raise KeyboardInterrupt
        self.calls.append(genotype)
        error = float(toy_costs(self.space, [genotype])[0, 0])
        return {"accuracy": (1 - error, 0.01), "size": sum(genotype)}


class Exact(Plain):
    """Its size is known without running."""

    def evaluate(self, genotype: Genotype) -> Mapping[str, Score]:
        return {"accuracy": super().evaluate(genotype)["accuracy"]}

    def exact(self, genotype: Genotype) -> Mapping[str, float]:
        return {"size": sum(genotype)}


class Timed(Exact):
    """Every kept layer is one operation, slower the more heads it has."""

    def all_operators(self, context: Context) -> Sequence[OpSpec]:
        return [self._layer(heads, context) for heads in (2, 4, 6, 8)]

    def operators(self, genotype: Genotype, context: Context) -> Sequence[OpSpec]:
        return [self._layer(layer.kept("heads") or 0, context) for layer in self.space.decode(genotype).layers]

    def _layer(self, heads: int, context: Context) -> OpSpec:
        return custom("toy.layer", {"heads": heads}, context)

    def build(self, spec: OpSpec) -> Callable[[], object]:
        return lambda: sum(range(200 * spec.size["heads"]))


class Whole(Timed):
    """Whole networks can be run too."""

    def network(self, genotype: Genotype, context: Context) -> Callable[[], object]:
        calls = [self.build(spec) for spec in self.operators(genotype, context)]
        return lambda: [call() for call in calls]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StudyStore]:
    with StudyStore.open(f"sqlite:///{tmp_path}/s.db") as opened:
        yield opened


def request(*objectives: str, budget: int = 12, finalists: int = 3, **settings: Any) -> SearchRequest:
    searched = SearchSettings(
        objectives=objectives,
        algorithm="nsga2",
        batch=6,
        budget=budget,
        problem="x:Y",
        **settings,
    )
    return SearchRequest(search=searched, finalists=finalists, timing=QUICK)


def test_every_network_is_evaluated_once_for_all_objectives(store: StudyStore) -> None:
    problem = Plain()
    front = search_problem(request(), problem, store)
    assert len(problem.calls) == len(set(problem.calls)) == 12
    assert [objective.key for objective in front.objectives] == ["accuracy", "size"]
    assert front.costs.tolist() == store.front("study").costs.tolist()
    value = store.evaluations("study")[0].value("accuracy")
    assert value is not None
    assert (value.spread, value.weights_hash, value.data_hash) == (0.01, "w", "d")
    assert store.study("study").settings["problem"] == "x:Y"


def test_exact_costs_are_computed_and_limit_what_is_evaluated(store: StudyStore) -> None:
    problem = Exact()
    search_problem(request(limits={"size": 9.0}), problem, store)
    assert problem.calls
    assert all(sum(genotype) <= 9 for genotype in problem.calls)
    (provenance,) = {e.values[1].provenance for e in store.evaluations("study")}
    assert provenance == "computed"
    known = len(problem.calls)
    assert not search_problem(request(limits={"size": -1.0}, study_name="none"), problem, store)
    assert len(problem.calls) == known, "nothing within the limit, nothing evaluated"
    with pytest.raises(LimitError, match="no sub-network can meet size 1"):
        search_problem(request(limits={"size": 1.0}, study_name="small"), Odd(), store)


class Odd(Plain):
    """Its costs do not grow with the options: 5, 1, 9 and 5, 9, 1, added."""

    space = SearchSpace("odd", 2, (0, 1), tuple(Choice(axis="kind", options=(1, 2, 3), layer=i) for i in range(2)))

    def evaluate(self, genotype: Genotype) -> Mapping[str, Score]:
        self.calls.append(genotype)
        return {"accuracy": 0.1 * sum(genotype)}

    def exact(self, genotype: Genotype) -> Mapping[str, float]:
        return {"size": (5, 1, 9)[genotype[0]] + (5, 9, 1)[genotype[1]]}


def test_a_limit_that_only_mixed_networks_meet_is_no_mistake(store: StudyStore) -> None:
    problem = Odd()
    front = search_problem(request(limits={"size": 5.0}), problem, store)
    assert [e.genotype for e in front.evaluations] == [(1, 2)] == problem.calls


def test_fronts_are_within_limits_that_have_to_be_measured(store: StudyStore) -> None:
    front = search_problem(request(limits={"size": 9.0}), Plain(), store)
    assert any(sum(e.genotype) > 9 for e in store.evaluations("study")), "or the test shows nothing"
    assert [e.number for e in front.evaluations] == [e.number for e in store.front("study").evaluations]
    assert all(0 <= sum(e.genotype) <= 9 and e.number >= 0 for e in front.evaluations)


def test_a_latency_of_its_own_is_not_mixed_with_measured_ones(store: StudyStore) -> None:
    class Own(Whole):
        objectives: Sequence[Objective] = (ACCURACY, LATENCY)

        def evaluate(self, genotype: Genotype) -> Mapping[str, Score]:
            return {**super().evaluate(genotype), "latency": 1000.0 + sum(genotype)}

    front = search_problem(request("accuracy", "latency"), Own(), store)
    assert {front.value(e, LATENCY).provenance for e in front.evaluations} == {"supernet"}
    assert not store.devices()


@pytest.mark.parametrize("refusal", [ValueError, RuntimeError, ZeroDivisionError])
def test_costs_that_cannot_be_computed_for_some_networks(store: StudyStore, refusal: type[Exception]) -> None:
    """They are as good as infinite: such a network is left out, or becomes a failed row; the search goes on."""

    class Holes(Exact):
        def exact(self, genotype: Genotype) -> Mapping[str, float]:
            if sum(genotype) % 3 == 1 or genotype == self.space.smallest:
                raise refusal("no such shape")
            return {"size": math.nan if sum(genotype) % 3 == 2 else sum(genotype)}

    for algorithm in ("guided", "nsga2"):
        asked = request(budget=40, study_name=algorithm)
        front = search_problem(replace(asked, search=replace(asked.search, algorithm=algorithm)), Holes(), store)
        assert len(front)
        assert all(sum(e.genotype) % 3 == 0 for e in front.evaluations)
        assert len(store.evaluations(algorithm)) == 40


def test_the_last_options_say_nothing_about_what_is_worth_having(store: StudyStore) -> None:
    """Options need not be sizes: no exact cost is a reference that better networks would lie beyond."""
    front = search_problem(request(), Exact(), store)
    assert [objective.reference for objective in front.objectives] == [0.0, None]


def test_a_spread_that_is_no_number_is_none(store: StudyStore) -> None:
    class Unsure(Plain):
        def evaluate(self, genotype: Genotype) -> Mapping[str, Score]:
            return {**super().evaluate(genotype), "size": (sum(genotype), math.inf)}

    search_problem(request(), Unsure(), store)
    assert {v.spread for e in store.evaluations("study") for v in e.values if v.objective == "size"} == {None}


def test_an_interrupted_search_resumes_to_the_same_trace(store: StudyStore) -> None:
    whole, parts = Exact(), Exact()
    search_problem(request(study_name="whole", budget=18), whole, store)
    store.delete("whole")
    parts.break_after = 7
    with pytest.raises(KeyboardInterrupt):
        search_problem(request(budget=18), parts, store)
    parts.break_after = None
    search_problem(request(budget=18), parts, store)
    assert parts.calls == whole.calls


def test_another_study_reuses_what_was_evaluated(store: StudyStore) -> None:
    search_problem(request(), Exact(), store)
    again = Exact()
    search_problem(request("accuracy", study_name="again"), again, store)
    known = {evaluation.genotype for evaluation in store.evaluations("study")}
    assert not known & set(again.calls)


def test_latency_is_composed_of_timed_operations(store: StudyStore) -> None:
    front = search_problem(request(), Timed(), store)
    assert [objective.key for objective in front.objectives] == ["accuracy", "size", "latency"]
    assert {front.value(e, LATENCY).provenance for e in front.evaluations} == {"predicted"}
    (device,) = store.devices()
    rows = store.measurements(device)
    assert [row.op_key for row in rows] == sorted(spec.key for spec in Timed().all_operators(Context(sequences=(1,))))
    seconds = {row.op_key: row.seconds_median for row in rows}
    context = Context(sequences=(1,))
    for evaluation in store.evaluations("study"):
        value = evaluation.value("latency", frozenset({"predicted"}))
        assert value is not None
        total = sum(seconds[spec.key] for spec in Timed().operators(evaluation.genotype, context))
        assert value.number == pytest.approx(1e3 * total)


def test_the_finalists_are_timed_as_whole_networks_once(store: StudyStore) -> None:
    for _ in range(2):
        front = search_problem(request("accuracy", "latency"), Whole(), store)
    assert 1 <= len(front) <= 3
    assert {front.value(e, LATENCY).provenance for e in front.evaluations} == {"extracted"}
    values = [v for e in store.evaluations("study") for v in e.values if v.provenance == "extracted"]
    assert len(values) <= 3
    (device,) = store.devices()
    networks = [row for row in store.measurements(device) if row.op_key.startswith("model[")]
    assert 5 <= len(networks) <= 8


def test_predicted_latencies_are_not_compared_with_measured_ones(store: StudyStore) -> None:
    timed = search_problem(request("accuracy", "latency"), Whole(), store)
    front = search_problem(request("accuracy", "latency", finalists=0), Whole(), store)
    assert {timed.value(e, LATENCY).provenance for e in timed.evaluations} == {"extracted"}
    assert {front.value(e, LATENCY).provenance for e in front.evaluations} == {"predicted"}


def test_another_machine_does_not_go_on_with_the_latencies_of_the_first(store: StudyStore) -> None:
    search_problem(request("accuracy", "latency"), Whole(), store)
    table = store.notes("study")[LATENCY_TABLE_NOTE]
    store.note("study", LATENCY_TABLE_NOTE, {**table, "device": "cpu-elsewhere"})
    with pytest.raises(ValueError, match=r"study 'study' is about device cpu-elsewhere, asked for is cpu-"):
        search_problem(request("accuracy", "latency"), Whole(), store)


def test_an_operation_that_is_not_listed_is_named(store: StudyStore) -> None:
    class Forgetful(Timed):
        def all_operators(self, context: Context) -> Sequence[OpSpec]:
            return super().all_operators(context)[:1]

    with pytest.raises(ValueError, match=r"custom\[heads=.\].*#toy.layer, which all_operators does not list"):
        search_problem(request(), Forgetful(), store)


class Broken(Plain):
    """Fails for some, and gives too little for others."""

    def evaluate(self, genotype: Genotype) -> Mapping[str, Score]:
        found = dict(super().evaluate(genotype))
        if sum(genotype) % 4 == 0:
            raise RuntimeError("no kernel for this shape\nand a long story")
        if sum(genotype) % 4 == 1:
            del found["accuracy"]
        if sum(genotype) % 4 == 2:
            found["accuracy"] = math.nan
        return found


def test_networks_that_fail_become_failed_rows(store: StudyStore) -> None:
    front = search_problem(request(budget=40), Broken(), store)
    failures = {e.failure for e in store.evaluations("study") if e.status == "failed"}
    assert failures == {"no kernel for this shape", "evaluate gave no accuracy", "accuracy is nan"}
    assert len(front) > 0
    assert all(sum(e.genotype) % 4 == 3 for e in front.evaluations)


def test_an_objective_is_named_by_key_or_name() -> None:
    accuracy = [Objective(name="accuracy", unit="fraction", goal="max", settings=(("task", t),)) for t in ("a", "b")]
    problem = Plain()
    problem.objectives = (*accuracy, SIZE)
    columns = CustomColumns(problem, Context(sequences=(1,)))
    assert columns.bind("accuracy:task=b").objective == accuracy[1]
    assert columns.bind("size").objective == SIZE
    with pytest.raises(ValueError, match="has the objectives accuracy:task=a, accuracy:task=b, size, not 'accuracy'"):
        columns.bind("accuracy")
    assert [objective.key for objective in available(Timed())] == ["accuracy", "size", "latency"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (request(low_fidelity=0.5), "leave out low fidelity"),
        (request("beauty"), "not 'beauty'"),
        (replace(request(), sequences=(16, 64)), "at one sequence length"),
    ],
)
def test_what_means_nothing_to_a_problem_is_refused(store: StudyStore, asked: SearchRequest, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search_problem(asked, Plain(), store)
    nameless = Plain()
    nameless.weights_hash = ""
    with pytest.raises(ValueError, match="needs a weights_hash"):
        search_problem(request(), nameless, store)
    assert not store.studies()


def test_a_problem_is_found_from_the_present_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_all_mine.py").write_text(
        "from tests.nas.test_custom_problem import Exact\nnothing = 3\ndef make():\n    return Exact()\n"
    )
    (tmp_path / "broken_import.py").write_text("import no_such_package\n")
    (tmp_path / "broken_text.py").write_text("def make(:\n")
    (tmp_path / "wants_more.py").write_text("def make(folder):\n    return folder\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for text in ("mine_all_mine:Exact", "mine_all_mine:make"):
        assert load_problem(text).space == Plain.space
    for text, message in {
        "mine_all_mine": "reads package.module:Class, got 'mine_all_mine'",
        "mine_all_mine:Other": "'mine_all_mine' has no 'Other'",
        "mine_all_mine:nothing": "is no search problem: it lacks space, objectives",
        "no_such_module:X": "cannot import 'no_such_module'",
        "broken_import:X": "No module named 'no_such_package'",
        "broken_text:make": "cannot import 'broken_text' for the problem",
        "wants_more:make": "must be made without arguments: missing a required argument: 'folder'",
        ".relative:X": "cannot import '.relative'",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_problem(text)
