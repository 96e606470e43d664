"""Raw rows on disk: kept in a fixed order, rewritten whole and at once, so that an interrupted race can be resumed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tests.benchmarks.common import write_rows
from tests.benchmarks.race.runner import Job, Row

Key = tuple[str, str, int]


def read_rows(path: Path) -> dict[Key, Row]:
    """Kept rows by (task, algorithm, seed); empty if there is no file."""
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    return {key_of(row): row for row in lines}


def key_of(row: Row) -> Key:
    """What tells a row from others."""
    return row["task"], row["algorithm"], row["seed"]


def keep_rows(path: Path, rows: Mapping[Key, Row], about: Mapping[str, object]) -> None:
    """Replace the file."""
    part = path.with_suffix(".part")
    ordered = [rows[key] for key in sorted(rows)]
    write_rows(part, ordered, {"benchmark": "search_race", "libraries": _libraries(), **about})
    part.replace(path)


def missing(jobs: Iterable[Job], rows: Mapping[Key, Row], hashes: Mapping[str, str]) -> list[Job]:
    """Jobs without a row, or whose row is shorter or about another table."""
    return [job for job in jobs if not _answers(rows.get(job.key), job, hashes)]


def _answers(row: Row | None, job: Job, hashes: Mapping[str, str]) -> bool:
    if row is None or row["budget"] < job.budget:
        return False
    return bool(row["table"] == hashes.get(job.task.name, row["table"]))


def disagreements(kept: Mapping[Key, Row], again: Sequence[Row]) -> list[str]:
    """A line for every repeated row whose trace is another one."""
    lines = []
    for row in again:
        old = kept[key_of(row)]
        if row["trace"] != old["trace"]:
            values = old.get("hypervolume", []), row.get("hypervolume", [])
            apart = max((abs(a - b) for a, b in zip(*values, strict=False)), default=float("nan"))
            task, algorithm, seed = key_of(row)
            lines.append(f"{algorithm} on {task}, seed {seed}: another trace, hypervolume up to {apart:.4f} apart")
    return lines


def _libraries() -> dict[str, str]:
    """Versions of what the competitors are made of; what is not installed is left out."""
    found = {}
    for name in ("botorch", "gpytorch", "moocore", "nas-bench-graph", "numba", "pymoo", "scikit-learn", "scipy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
