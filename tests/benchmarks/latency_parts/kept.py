"""Rows of a long benchmark: each is appended when it is finished, so that a stopped run goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.common import write_rows

Row = dict[str, Any]


class Kept:
    """Rows by key. Finished runs leave `path`; unfinished ones a second file beside it.

    Args:
        fresh: forget what is kept.
    """

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        self.path, self._part = path, path.with_suffix(".part")
        self.rows: dict[tuple[Any, ...], Row] = {}
        if fresh:
            self._part.unlink(missing_ok=True)
            return
        finished = path.read_text().splitlines()[1:] if path.exists() else []
        unfinished = self._part.read_text().splitlines() if self._part.exists() else []
        for line in (*finished, *unfinished):
            row = json.loads(line)
            self.rows[tuple(row["key"])] = row

    def row(self, key: tuple[Any, ...], make: Callable[[], Mapping[str, Any]]) -> Row:
        """The row of a key, made where it is missing."""
        if key not in self.rows:
            row = {"key": list(key), **make()}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._part.open("a") as file:
                file.write(json.dumps(row) + "\n")
            self.rows[key] = row
        return self.rows[key]

    def finish(self, about: Mapping[str, Any]) -> None:
        """Write all rows in order of key, and remove the second file."""
        write_rows(self.path, [self.rows[key] for key in sorted(self.rows, key=str)], about)
        self._part.unlink(missing_ok=True)
