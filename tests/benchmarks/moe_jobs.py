"""Small resumable pieces of a long benchmark: a job has a key, its row is appended to a file as soon as it is there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studies.records import content_hash
from tests.benchmarks.common import versions

Row = Mapping[str, Any]
Key = Mapping[str, str | int]
"""What tells a job from all others, its part of the benchmark first."""


@dataclass(frozen=True, slots=True)
class Job:
    """One row to be computed."""

    key: Key
    run: Callable[[], Row]

    @property
    def identity(self) -> str:
        """Equal for equal keys."""
        return content_hash(dict(self.key))


class Rows:
    """Rows in a file of JSON lines: a job's key, what it found, and which versions computed it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        read = [json.loads(line) for line in lines]
        self._versions = {row["hash"] for row in read if row["part"] == "versions"}
        self._rows: dict[str, Row] = {row.pop("job"): row for row in read if row["part"] != "versions"}

    def __contains__(self, job: Job) -> bool:
        return job.identity in self._rows

    def of(self, part: str) -> Iterator[Row]:
        """The rows of a part, in the order in which they were computed."""
        return (row for row in self._rows.values() if row["part"] == part)

    def row(self, job: Job) -> Row:
        """The row of a job that is done."""
        return self._rows[job.identity]

    def append(self, job: Job, found: Row) -> None:
        """Add a job's row to the file in one write, after the versions if they are new."""
        used = versions()
        mark = content_hash(used)[:8]
        lines = [] if mark in self._versions else [{"part": "versions", "hash": mark, **used}]
        row = {**job.key, **found, "versions": mark}
        lines.append({**row, "job": job.identity})
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
        self._versions.add(mark)
        self._rows[job.identity] = row


def work(jobs: Iterable[Job], rows: Rows, seconds: float) -> int:
    """Run the jobs that have no row yet until the time is up; how many are left."""
    start, left = time.monotonic(), 0
    for job in jobs:
        if job in rows:
            continue
        if time.monotonic() - start >= seconds:
            left += 1
            continue
        begun = time.monotonic()
        found = job.run()
        rows.append(job, {**found, "seconds": round(time.monotonic() - begun, 2)})
        print(" ".join(f"{value}" for value in job.key.values()), f"{time.monotonic() - begun:.1f} s", flush=True)
    return left
