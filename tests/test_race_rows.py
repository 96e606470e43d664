"""What is kept of the race, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.benchmarks.race.report import Report
from tests.benchmarks.race.rows import Key, disagreements, keep_rows, missing, read_rows
from tests.benchmarks.race.runner import CHECKPOINTS, OURS, Job, Row
from tests.benchmarks.race.tasks import Task


def row(task: str, algorithm: str, seed: int, value: float) -> Row:
    """A row whose hypervolume grows with the algorithm's value."""
    curve = [round(value * n / 400, 5) for n in CHECKPOINTS if n <= 400]
    return {
        "task": task,
        "algorithm": algorithm,
        "seed": seed,
        "budget": 400,
        "seconds": 1.0,
        "hypervolume": curve,
        "to_99": 100 + seed if value > 0.9 else None,
        "cpu_ms": [50.0, 100.0, 150.0, 500.0],
        "trace": f"{algorithm}{seed}",
        "table": "t",
    }


def some_rows() -> dict[Key, Row]:
    values = {OURS: (1.0, 0.98), "random": (0.5, 0.4), "optuna-tpe": (0.9, 0.99)}
    rows = [row("macro", name, seed, value) for name, found in values.items() for seed, value in enumerate(found)]
    return {(each["task"], each["algorithm"], each["seed"]): each for each in rows}


class TestRows:
    def test_rows_are_kept_and_only_what_is_missing_is_run(self, tmp_path: Path) -> None:
        path, rows = tmp_path / "rows.jsonl", some_rows()
        keep_rows(path, rows, {})
        assert read_rows(path) == rows
        assert read_rows(tmp_path / "nothing.jsonl") == {}
        jobs = [Job(task=Task(table="macro"), algorithm=OURS, seed=seed, budget=400) for seed in (0, 1, 2)]
        assert missing(jobs, rows, {"macro": "t"}) == jobs[2:]
        assert missing(jobs, rows, {"macro": "another"}) == jobs
        longer = [Job(task=Task(table="macro"), algorithm=OURS, seed=0, budget=500)]
        assert missing(longer, rows, {}) == longer

    def test_other_traces_are_told(self) -> None:
        rows = some_rows()
        other = {**row("macro", OURS, 0, 0.9), "trace": "another"}
        assert disagreements(rows, [rows["macro", "random", 1]]) == []
        (line,) = disagreements(rows, [other])
        assert "guided on macro, seed 0" in line

    def test_means_over_other_seeds_are_not_compared(self) -> None:
        rows = some_rows()
        del rows["macro", "optuna-tpe", 1]
        result = Report(rows).result()
        assert result["difference"]["macro"]["100"][0] == "random"
        assert result["wins_at_100"] == {"macro": 2}
        assert result["incomplete"] == {"macro": ["optuna-tpe"]}

    def test_the_result_line(self) -> None:
        result = Report(some_rows()).result()
        assert result["hypervolume"]["macro"][OURS]["400"] == [0.99, 0.01414]
        assert result["wins_at_100"] == {"macro": 1}
        assert result["evaluations_to_99"]["macro"] == {OURS: 100.5, "optuna-tpe": None, "random": None}
        assert result["difference"]["macro"]["100"][0] == "optuna-tpe"
        assert result["cpu_ms_per_evaluation"][OURS] == 2.0
        assert result["worse_than_random"] == {}
        assert Report(some_rows()).reached("macro", "random", 400) == 190
        json.dumps(result, allow_nan=False)
