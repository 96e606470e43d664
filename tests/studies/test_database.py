"""What is refused when a study database is opened, in one line and with nothing changed."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Timer

import pytest

from studies.errors import StorageError
from studies.store import StudyStore
from tests.contracts.test_store_contract import STUDY, evaluation


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nas.db", "'nas.db' is not a database address; use sqlite:///study.db or postgresql://user@host/name"),
        ("mysql://host/name", "kept in SQLite or PostgreSQL, not mysql"),
        ("sqlite:////no/such/folder/nas.db", "cannot be a database file; name a file in a folder that exists"),
        ("postgresql://user:secret@127.0.0.1:1/name", r"user:\*\*\*@127\.0\.0\.1:1/name: .*refused"),
    ],
)
def test_an_address_that_leads_nowhere(url: str, message: str) -> None:
    with pytest.raises(StorageError, match=message) as caught:
        StudyStore.open(url)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_missing_file_is_only_created_when_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "nas.db"
    with pytest.raises(StorageError, match=r"there is no study database at .*nas\.db"):
        StudyStore.open(f"sqlite:///{path}", create=False)
    assert not path.exists()
    path.touch()
    with pytest.raises(StorageError, match="holds no studies yet"):
        StudyStore.open(f"sqlite:///{path}", create=False)
    assert path.stat().st_size == 0


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_corrupt_file_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "nas.db"
    path.write_bytes(content)
    with pytest.raises(StorageError, match="cannot use the study database") as caught:
        StudyStore.open(f"sqlite:///{path}")
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


def test_a_foreign_file_keeps_its_journal_mode(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE trials (id INTEGER)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(StorageError, match="belongs to another program"):
        StudyStore.open(f"sqlite:///{path}")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_damage_found_later_is_one_line_too(tmp_path: Path) -> None:
    with StudyStore.open(f"sqlite:///{tmp_path}/nas.db") as store:
        with store.writing() as connection:
            connection.exec_driver_sql("DROP TABLE note")
            connection.exec_driver_sql("PRAGMA writable_schema=ON")
            connection.exec_driver_sql("UPDATE sqlite_master SET sql = 'CREATE TABLE study(' WHERE name = 'study'")
        with pytest.raises(StorageError, match="malformed") as caught:
            StudyStore.open(f"sqlite:///{tmp_path}/nas.db")
    assert "\n" not in str(caught.value)


def test_commits_reach_the_disk(tmp_path: Path) -> None:
    with StudyStore.open(f"sqlite:///{tmp_path}/nas.db") as store, store.reading() as connection:
        found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")]
    assert found == ["wal", 2]


def test_many_may_create_the_same_file_at_once(tmp_path: Path) -> None:
    program = f"from studies.store import StudyStore; print(StudyStore.open('sqlite:///{tmp_path}/nas.db').studies())"

    def run(_: int) -> str:
        return subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
        ).stdout

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(run, range(4))) == {"[]\n"}


def test_a_file_that_another_process_is_writing_is_waited_for(tmp_path: Path) -> None:
    writer = sqlite3.connect(tmp_path / "nas.db", isolation_level=None, check_same_thread=False)
    writer.execute("BEGIN IMMEDIATE")
    timer = Timer(0.2, writer.execute, ["COMMIT"])
    timer.start()
    with StudyStore.open(f"sqlite:///{tmp_path}/nas.db") as store:
        assert store.studies() == []
    timer.join()
    writer.close()


def test_opening_an_up_to_date_store_needs_no_migrations(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/nas.db"
    StudyStore.open(url).close()
    program = (
        f"import sys; from studies.store import StudyStore; StudyStore.open({url!r}); print('alembic' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout == "False\n"


def test_a_database_in_memory_has_fronts() -> None:
    """It has one connection only, so that nothing may open a second one meanwhile."""
    with StudyStore.open("sqlite://") as store:
        store.create_or_resume(STUDY)
        store.append("demo", [evaluation((1,), 0.5, 4.0)])
        assert [e.genotype for e in store.front("demo").evaluations] == [(1,)]
