"""What every database must do with the expert layouts of candidates; each test runs on SQLite and on PostgreSQL."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import text

from studies.layout_book import CalibrationRecord, LayerExperts
from studies.schema import VERSION_TABLE
from studies.store import StudyStore
from tests.contracts.test_store_contract import STUDY, evaluation

FULL = LayerExperts(layer=1, operator="", experts=3, top_k=2, width=16, kept=(0, 1, 2))
MERGED = LayerExperts(layer=1, operator="uncurl", experts=2, top_k=1, width=8, kept=(2, 0), merged=((2, 1),))
CALIBRATION = CalibrationRecord(hash="f" * 64, data_hash="text", uri="/supernet")


@pytest.fixture
def demo(store: StudyStore) -> StudyStore:
    store.create_or_resume(STUDY)
    return store


def test_layouts_of_candidates_are_kept_once(demo: StudyStore) -> None:
    for name in ("demo", "again", "other"):
        demo.create_or_resume(replace(STUDY, name=name, supernet_hash="others" if name == "other" else "weights"))
        demo.append(name, [evaluation((0,), 0.5, 1.0), evaluation((1,), 0.4, 2.0)])
    demo.put_layouts("demo", {(0,): [MERGED]}, CALIBRATION)
    demo.put_layouts("demo", {(0,): [FULL], (1,): [replace(FULL, layer=2), FULL]}, CALIBRATION)
    assert demo.layouts("demo") == {(0,): (MERGED,), (1,): (FULL, replace(FULL, layer=2))}
    assert demo.layouts("again") == demo.layouts("demo"), "same networks, same weights"
    assert demo.layouts("other") == {}, "other weights"
    assert demo.calibrations("weights") == [CALIBRATION]
    demo.delete("demo")
    assert demo.layouts("again")[(0,)] == (MERGED,)


def test_networks_without_experts_have_no_layout(demo: StudyStore) -> None:
    demo.append("demo", [evaluation((0,), 0.5, 1.0)])
    demo.put_layouts("demo", {(0,): []})
    assert demo.layouts("demo") == {}
    with pytest.raises(ValueError, match="there is no study named 'none'"):
        demo.layouts("none")


def test_the_first_schema_is_migrated(url: str) -> None:
    """What 0.1.0 wrote before it knew layouts of candidates."""
    with StudyStore.open(url) as opened:
        opened.create_or_resume(STUDY)
        opened.append("demo", [evaluation((0,), 0.5, 1.0)])
        with opened.writing() as connection:
            for table in ("moe_layer", "moe_layout"):
                connection.execute(text(f"DROP TABLE {table}"))
            connection.execute(text("CREATE TABLE moe_layout (id INTEGER PRIMARY KEY, artifact_id INTEGER)"))
            connection.execute(text("CREATE TABLE moe_layer (layout_id INTEGER PRIMARY KEY, layer INTEGER)"))
            connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = 'v0_1_0'"))
    with StudyStore.open(url) as opened:
        opened.put_layouts("demo", {(0,): [MERGED]})
        assert opened.layouts("demo") == {(0,): (MERGED,)}


def test_a_question_may_be_long(store: StudyStore) -> None:
    """A database that checks lengths has room for every mark that an algorithm can carry."""
    algorithm = f"guided:batch=20,low_fidelity=0.25,known={16 * 'a'},related={16 * 'b'}"
    long = replace(STUDY, name="long", algorithm=algorithm, data_hash=100 * "d")
    assert store.create_or_resume(long) == store.study("long")
    assert (store.study("long").algorithm, store.study("long").data_hash) == (algorithm, 100 * "d")
