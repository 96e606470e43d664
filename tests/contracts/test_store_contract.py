"""What every database of the study store must do; each test runs on SQLite and on PostgreSQL."""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func, inspect, select, text

from studies import database
from studies.errors import StorageError
from studies.pareto import ParetoFront
from studies.records import Evaluation, Genotype, Measurement, Objective, Study, Value
from studies.schema import REVISION, VERSION_TABLE, ArchitectureRow, Base, ObjectiveValueRow
from studies.store import StudyStore
from studies.study_book import Artifact

ERROR = Objective(name="error", unit="fraction", reference=1.0)
LATENCY = Objective(name="latency", unit="ms", settings=(("batch", "8"), ("sequence", "64")))
STUDY = Study(
    name="demo",
    space_fingerprint="space",
    supernet_hash="weights",
    data_hash="data",
    objectives=(ERROR, LATENCY),
    constraints={LATENCY.key: 12.5},
    algorithm="random",
    seed=2**40,
    budget=10,
    space={"family": "bert"},
    settings={"population": 10},
    versions={"torch": "2.13.0"},
)


def evaluation(genotype: Genotype, error: float, latency: float, device: str = "box") -> Evaluation:
    values = (
        Value(objective=ERROR.key, number=error, provenance="supernet", weights_hash="weights", data_hash="data", n=9),
        Value(objective=LATENCY.key, number=latency, provenance="extracted", device=device, context="b8", spread=0.1),
    )
    return Evaluation(genotype=genotype, values=values)


@pytest.fixture
def demo(store: StudyStore) -> StudyStore:
    store.create_or_resume(STUDY)
    return store


def test_a_study_is_stored_as_it_was_given(demo: StudyStore) -> None:
    stored = demo.study("demo")
    assert stored.created_utc is not None
    assert stored.created_utc.utcoffset() == timedelta(0)
    assert replace(stored, created_utc=None) == STUDY
    assert demo.studies() == [stored]


def test_only_the_budget_may_grow(demo: StudyStore) -> None:
    assert demo.create_or_resume(replace(STUDY, budget=30)).budget == 30
    assert demo.create_or_resume(replace(STUDY, budget=20, settings={}, versions={})).settings == STUDY.settings
    assert demo.study("demo").budget == 30


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"space_fingerprint": "other"}, "space fingerprint 'space', not 'other'"),
        ({"supernet_hash": "other"}, "supernet hash 'weights', not 'other'"),
        ({"data_hash": "other"}, "data hash 'data', not 'other'"),
        ({"objectives": (ERROR,)}, r"latency:batch=8,sequence=64 \[ms\], not min error \[fraction\] up to 1.0;"),
        ({"constraints": {}}, "constraints latency:batch=8,sequence=64=12.5, not none"),
        ({"algorithm": "tpe"}, "algorithm 'random', not 'tpe'"),
        ({"seed": 2}, "seed 1099511627776, not 2"),
        ({"latency_table_hash": "t"}, "latency table hash '', not 't'"),
    ],
)
def test_another_question_is_refused_and_changes_nothing(
    demo: StudyStore, change: dict[str, object], shown: str
) -> None:
    with pytest.raises(ValueError, match=shown):
        demo.create_or_resume(replace(STUDY, budget=99, **change))  # type: ignore[arg-type]
    assert demo.study("demo").budget == 10


def test_an_unknown_study_is_named_with_the_known_ones(demo: StudyStore) -> None:
    with pytest.raises(ValueError, match=r"no study named 'demmo'; stored studies: demo"):
        demo.evaluations("demmo")


def test_evaluations_come_back_as_they_were_with_numbers_in_order(demo: StudyStore) -> None:
    failed = Evaluation(genotype=(0, 2), status="failed", failure="out of memory")
    given = [evaluation((2, 1), 0.1, 5.0), failed, evaluation((1, 1), 0.2, 4.0)]
    stored = demo.append("demo", given[:2]) + demo.append("demo", given[2:])
    assert stored == [replace(e, number=i) for i, e in enumerate(given)]
    assert demo.evaluations("demo") == stored


def test_a_finished_evaluation_is_never_changed(demo: StudyStore) -> None:
    first = demo.append("demo", [evaluation((1, 1), 0.2, 4.0)])
    again = [evaluation((1, 1), 0.9, 9.0), evaluation((3, 3), 0.3, 3.0), evaluation((3, 3), 0.4, 4.0)]
    stored = demo.append("demo", again)
    assert stored[0] == first[0]
    assert stored[1] == stored[2] == replace(again[1], number=1)
    assert demo.evaluations("demo") == stored[:2]


def test_an_append_is_all_or_nothing(demo: StudyStore) -> None:
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"error of \(1, 2\) is {bad}; store such an evaluation as failed"):
            demo.append("demo", [evaluation((1, 1), 0.1, 1.0), evaluation((1, 2), bad, 1.0)])
    with pytest.raises(ValueError, match="'running'"):
        demo.append("demo", [evaluation((1, 1), 0.1, 1.0), Evaluation(genotype=(1, 2), status="running")])
    assert demo.evaluations("demo") == []


def test_architectures_are_shared_between_studies_of_a_space(demo: StudyStore) -> None:
    demo.create_or_resume(replace(STUDY, name="second", seed=2))
    demo.create_or_resume(replace(STUDY, name="elsewhere", space_fingerprint="other"))
    for name in ("demo", "second", "elsewhere"):
        demo.append(name, [evaluation((1, 1), 0.2, 4.0)])
    with demo.reading() as connection:
        assert connection.scalar(select(func.count()).select_from(ArchitectureRow)) == 2


def test_the_latest_value_counts_and_the_older_ones_stay(demo: StudyStore) -> None:
    demo.append("demo", [evaluation((1, 1), 0.2, 4.0), evaluation((2, 2), 0.3, 4.5)])
    newer = Value(objective=LATENCY.key, number=5.0, provenance="extracted", device="box")
    updated = demo.add_values("demo", (1, 1), [newer])
    assert [v.number for v in updated.values] == [0.2, 4.0, 5.0]
    assert updated.value(LATENCY.key) == newer
    assert demo.evaluations("demo")[0] == updated
    assert demo.front("demo").costs.tolist() == [[0.2, 5.0], [0.3, 4.5]]
    with pytest.raises(ValueError, match=r"no evaluation of \(9, 9\)"):
        demo.add_values("demo", (9, 9), [newer])


def test_lookup_reuses_only_what_answers_the_question(demo: StudyStore) -> None:
    demo.append("demo", [evaluation((1, 1), 0.2, 4.0), evaluation((2, 2), 0.3, 3.0, device="other")])
    genotypes = [(1, 1), (2, 2), (3, 3)]

    def known(objective: Objective, space: str = "space", **wanted: str) -> dict[Genotype, float]:
        found = demo.lookup(space, genotypes, objective.key, **wanted)  # type: ignore[arg-type]
        return {genotype: value.number for genotype, value in found.items()}

    assert known(ERROR, weights_hash="weights", data_hash="data") == {(1, 1): 0.2, (2, 2): 0.3}
    assert known(ERROR, weights_hash="recovered") == {}
    assert known(ERROR, space="other") == {}
    assert known(LATENCY, device="box", context="b8") == {(1, 1): 4.0}
    assert known(LATENCY, device="box", context="b1") == {}
    half = Value(objective=ERROR.key, number=0.1, provenance="supernet", data_fraction=0.5)
    demo.add_values("demo", (1, 1), [half])
    assert known(ERROR) == {(1, 1): 0.2, (2, 2): 0.3}
    demo.add_values("demo", (1, 1), [replace(half, number=0.15, data_fraction=1.0)])
    assert known(ERROR) == {(1, 1): 0.15, (2, 2): 0.3}
    assert demo.lookup("space", genotypes, ERROR.key, data_fraction=0.5)[1, 1] == half


def test_the_front_is_that_of_all_evaluations(demo: StudyStore) -> None:
    rng = random.Random(4)
    given = [evaluation((i % 7, i // 7), x := rng.random(), 1 - x + rng.random()) for i in range(40)]
    failed = Evaluation(genotype=(9, 9), status="failed", values=evaluation((9, 9), 0.0, 0.0).values)
    stored = demo.append("demo", [*given, failed])
    assert demo.front("demo") == ParetoFront.of(STUDY.objectives, stored)
    assert len(demo.front("demo")) > 3
    fastest = min(stored[:-1], key=lambda e: e.values[1].number)
    assert demo.front("demo", [LATENCY]).evaluations == (fastest,)
    assert len(demo.front("demo", [replace(ERROR, name="never")])) == 0


def test_a_front_stands_on_one_device_and_on_measurements(demo: StudyStore) -> None:
    demo.append("demo", [evaluation((1, 1), 0.2, 4.0), evaluation((2, 2), 0.1, 9.0)])
    demo.add_values("demo", (1, 1), [Value(objective=LATENCY.key, number=7.0, provenance="supernet", device="phone")])
    demo.add_values("demo", (1, 1), [Value(objective=LATENCY.key, number=0.1, provenance="predicted", device="box")])
    assert demo.front("demo", device="box").costs.tolist() == [[0.1, 9.0], [0.2, 4.0]]
    assert demo.front("demo", device="phone").costs.tolist() == [[0.2, 7.0]]
    assert demo.front("demo", device="car").costs.tolist() == []
    assert demo.front("demo", provenances=frozenset({"supernet", "predicted"})).costs.tolist() == [[0.2, 0.1]]


def test_front_snapshots_tell_the_history(demo: StudyStore) -> None:
    demo.append("demo", [evaluation((1, 1), 0.5, 4.0), evaluation((2, 2), 0.6, 5.0)])
    first = demo.snapshot_front("demo", demo.front("demo"), reference=(1.0, 10.0))
    demo.append("demo", [evaluation((3, 3), 0.4, 6.0)])
    second = demo.snapshot_front("demo", demo.front("demo"))
    assert (first.members, first.evaluations) == ((0,), 2)
    assert first.hypervolume == pytest.approx(0.5 * 6.0)
    assert (second.members, second.evaluations, second.hypervolume) == ((0, 2), 3, None)
    assert demo.fronts("demo") == [first, second]
    assert first.objectives == STUDY.objectives


def test_predictions_stay_apart_from_values(demo: StudyStore) -> None:
    stored = demo.append("demo", [evaluation((1, 1), 0.5, 4.0)])
    says = Value(objective=LATENCY.key, number=3.5, provenance="predicted", spread=0.2, device="box")
    given = [((1, 1), says), ((5, 5), replace(says, number=1.0))]
    for number in (9.9, 3.5):
        again = [((1, 1), replace(says, number=number)), given[1]]
        demo.add_predictions("demo", "gbt", again, training_hash="t1", error={"mape": 0.03})
    found = demo.predictions("demo")
    assert [(p.genotype, p.value) for p in found] == given
    assert (found[0].predictor, found[0].training_hash, found[0].error) == ("gbt", "t1", {"mape": 0.03})
    assert demo.evaluations("demo") == stored
    with pytest.raises(ValueError, match="provenance 'predicted', got 'supernet'"):
        demo.add_predictions(
            "demo", "gbt", [((1, 1), replace(says, provenance="supernet"))], training_hash="", error={}
        )


def test_measurements_are_kept_once_per_device_and_operation(store: StudyStore) -> None:
    def timing(key: str, device: str = "box", seconds: float = 1.0) -> Measurement:
        return Measurement(
            op_key=key,
            device=device,
            seconds_median=seconds,
            seconds_iqr=0.1,
            seconds_p95=1.2,
            repeats=9,
            reference_seconds=0.5,
            clock="thread_cpu",
            load=0.25,
            noisy=True,
            versions={"torch": "2.13.0"},
        )

    store.put_measurements([timing("linear[a_b]"), timing("LINEAR[a_b]"), timing("norm"), timing("linear[a]", "other")])
    store.put_measurements([timing("norm", seconds=2.0)])
    store.put_measurements([])
    assert store.measurements("box") == [timing("LINEAR[a_b]"), timing("linear[a_b]"), timing("norm", seconds=2.0)]
    assert store.measurements("box", prefix="linear[a_") == [timing("linear[a_b]")]
    assert store.measurements("box", prefix="linear%") == []


def test_devices_checkpoints_notes_and_artifacts_come_back(demo: StudyStore) -> None:
    demo.put_device("box", {"cpu": "x", "cores": 2})
    demo.put_device("box", {"cpu": "y"})
    assert demo.devices() == {"box": {"cpu": "y"}}
    assert demo.checkpoint("weights") is None
    demo.put_checkpoint("weights", "/models/bert")
    assert demo.checkpoint("weights") == "/models/bert"
    demo.note("demo", "stage", {"name": "tune"})
    demo.note("demo", "stage", {"name": "search"})
    assert demo.notes("demo") == {"stage": {"name": "search"}}
    demo.append("demo", [evaluation((1, 1), 0.5, 4.0)])
    made = Artifact(genotype=(1, 1), kind="checkpoint", uri="/out", sha256="a" * 64, description={"layout": "free"})
    demo.put_artifact("demo", replace(made, sha256="b" * 64))
    demo.put_artifact("demo", made)
    (found,) = demo.artifacts("demo")
    assert found.created_utc is not None
    assert replace(found, created_utc=None) == made


def test_deleting_a_study_leaves_the_others(demo: StudyStore) -> None:
    demo.create_or_resume(replace(STUDY, name="second"))
    for name in ("demo", "second"):
        demo.append(name, [evaluation((1, 1), 0.5, 4.0)])
        demo.snapshot_front(name, demo.front(name))
        demo.note(name, "key", 1)
    demo.delete("demo")
    assert [study.name for study in demo.studies()] == ["second"]
    with demo.reading() as connection:
        assert connection.scalar(select(func.count()).select_from(ObjectiveValueRow)) == 2
    assert demo.create_or_resume(STUDY).name == "demo"
    assert demo.evaluations("demo") == []
    assert len(demo.evaluations("second")) == len(demo.fronts("second")) == 1


def test_batches_longer_than_a_parameter_list(demo: StudyStore) -> None:
    given = [evaluation((i, 1), 1 / (i + 1), float(i)) for i in range(1201)]
    demo.append("demo", given)
    assert [e.number for e in demo.append("demo", given)] == list(range(1201))
    assert len(demo.lookup("space", [e.genotype for e in given], ERROR.key)) == 1201
    assert len(demo.front("demo")) == 13, "the limit is 12.5 ms, and latencies are 0, 1, 2 and so on"


def test_limits_hold_for_what_is_no_objective_and_for_the_latest_value(demo: StudyStore) -> None:
    """A network leaves the front when it is measured to break a limit; one without a value breaks none."""
    demo.append("demo", [evaluation((1, 1), 0.5, 4.0), evaluation((2, 1), 0.4, 12.0)])
    assert len(demo.front("demo")) == 2
    slower = replace(evaluation((2, 1), 0.4, 13.0).values[1], provenance="extracted")
    demo.add_values("demo", (2, 1), [slower])
    assert [e.genotype for e in demo.front("demo").evaluations] == [(1, 1)]
    assert len(demo.front("demo", objectives=[ERROR])) == 1, "whatever the front compares"
    size = Objective(name="size", unit="")
    for name, settings, kept in (("most", {}, (1, 1)), ("least", {"limited_from_below": ["size"]}, (2, 1))):
        study = replace(STUDY, name=name, constraints={"size": 5.0}, settings=settings)
        demo.create_or_resume(study)
        for genotype, error, number in (((1, 1), 0.5, 4.0), ((2, 1), 0.4, 6.0)):
            known = evaluation(genotype, error, 1.0)
            value = Value(objective=size.key, number=number, provenance="computed")
            demo.append(name, [replace(known, values=(*known.values, value))])
        demo.append(name, [evaluation((3, 1), 0.9, 0.5)])
        assert {e.genotype for e in demo.front(name).evaluations} == {kept, (3, 1)}


def test_a_second_opening_finds_everything(demo: StudyStore, url: str) -> None:
    stored = demo.append("demo", [evaluation((1, 1), 0.5, 4.0)])
    with StudyStore.open(url, create=False) as again:
        assert again.evaluations("demo") == stored


def test_the_migrations_make_the_tables_of_the_schema(store: StudyStore) -> None:
    with store.reading() as connection:
        options = {"compare_type": True, "version_table": VERSION_TABLE}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata) == []
        assert connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}")) == REVISION


def test_a_newer_database_is_refused(store: StudyStore, url: str) -> None:
    with store.writing() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = 'v9_0_0'"))
    with pytest.raises(StorageError, match=r"newer supernas \(schema v9_0_0, this one knows v0_1_0_2\); upgrade"):
        StudyStore.open(url)


def test_the_database_of_another_program_is_refused_untouched(url: str) -> None:
    foreign = database.Database(database._connect(database._parse(url)))
    with foreign.writing() as connection:
        connection.execute(text("CREATE TABLE trials (id INTEGER)"))
    with pytest.raises(StorageError, match=r"belongs to another program \(it has a table 'trials'\)"):
        StudyStore.open(url)
    with foreign.reading() as connection:
        assert inspect(connection).get_table_names() == ["trials"]
    foreign.close()


def test_an_interrupted_creation_leaves_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from alembic import op

    create = op.create_table

    def fail_late(name: str, *columns: object) -> None:
        if name == "moe_layer":
            raise KeyboardInterrupt
        create(name, *columns)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(op, "create_table", fail_late)
        with pytest.raises(KeyboardInterrupt):
            StudyStore.open(url)
    with StudyStore.open(url) as opened:
        assert opened.studies() == []


APPEND_FOREVER = """
import sys
from itertools import count
from studies.store import StudyStore
from tests.contracts.test_store_contract import STUDY, evaluation

store = StudyStore.open(sys.argv[1])
store.create_or_resume(STUDY)
for i in count():
    stored = store.append("demo", [evaluation((int(sys.argv[2]), i), 0.5, float(i))])
    print(i, flush=True)
"""


def test_killed_writers_lose_nothing_that_was_acknowledged(url: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", APPEND_FOREVER, url, str(writer)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for writer in range(2)
    ]
    acknowledged: set[Genotype] = set()
    for writer, process in enumerate(writers):
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(15)]
        os.kill(process.pid, signal.SIGKILL)
        lines += process.stdout.readlines()
        process.stdout.close()
        process.wait()
        acknowledged |= {(writer, int(line)) for line in lines if line.endswith("\n")}
    with StudyStore.open(url, create=False) as store:
        stored = store.evaluations("demo")
    assert acknowledged <= {e.genotype for e in stored}
    assert len(acknowledged) >= 30
    assert len(stored) <= len(acknowledged) + 2
    assert [e.number for e in stored] == list(range(len(stored)))
    assert all(len(e.values) == 2 for e in stored)
