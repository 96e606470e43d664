"""The latency benchmark: rows that survive a kill, sizes that tables have, bad input in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from predictors.hat_csv import HatTable
from tests.benchmarks.latency_parts import hat
from tests.benchmarks.latency_parts.kept import Kept

ROOT = Path(__file__).resolve().parent.parent


def some_table(rows: int) -> HatTable:
    rng = np.random.default_rng(0)
    options = (
        [512, 640],
        [6],
        [512, 1024, 2048],
        [2, 4, 8],
        [512, 640],
        range(1, 7),
        [512, 2048],
        [2, 4],
        [4, 8],
        [1, 2],
    )
    features = np.array([[float(rng.choice(each)) for each in options] for _ in range(rows)])
    return HatTable(name="some", features_NF=features, seconds_N=1e-3 * features[:, 5] * (1 + 0.01 * rng.random(rows)))


def test_a_row_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    kept = Kept(path)
    kept.row(("a", 1), lambda: {"x": 1})
    with path.with_suffix(".part").open("a") as file:
        file.write('{"key": ["b", 2], "x')
    resumed = Kept(path)
    assert list(resumed.rows) == [("a", 1)]
    assert resumed.row(("b", 2), lambda: {"x": 2})["x"] == 2
    assert list(Kept(path).rows) == [("a", 1), ("b", 2)]


def test_a_fresh_run_forgets_what_was_finished_and_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    Kept(path).finish({"benchmark": "some"})
    finished = Kept(path)
    finished.row(("a", 1), lambda: {"x": 1})
    finished.finish({"benchmark": "some"})
    fresh = Kept(path, fresh=True)
    assert not fresh.rows
    fresh.row(("a", 1), lambda: {"x": 2})
    again = Kept(path, fresh=True)
    assert again.row(("a", 1), dict)["x"] == 2
    assert Kept(path).row(("a", 1), dict)["x"] == 1
    again.finish({"benchmark": "some"})
    assert Kept(path).row(("a", 1), dict)["x"] == 2


def test_sizes_beyond_a_table_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = Kept(tmp_path / "rows.jsonl")
    hat.run([some_table(60)], kept, (20, 48, 50), 1, ("boosted-trees",))
    assert [key[3] for key in kept.rows] == [20, 48]
    assert "50 rows are skipped, 48 are left to learn from" in capsys.readouterr().out
    assert hat.agreement([some_table(60)], kept, sample=5)
    assert hat.agreement([], kept, sample=5), "rows of tables that are not given are not repeated"


@pytest.mark.parametrize(("content", "message"), [(None, "cannot be read"), ("a,b\n1,2\n", "lacks the columns")])
def test_a_bad_table_is_one_line(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "bad.csv"
    if content is not None:
        path.write_text(content)
    command = [sys.executable, "tests/benchmarks/latency.py", "--parts", "tables", "--csv", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
