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
        fresh: forget finished rows; a stopped run that was fresh as well goes on.
    """

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        self.path, self._part = path, path.with_suffix(".full.part" if fresh else ".part")
        self.rows: dict[tuple[Any, ...], Row] = {}
        finished = path.read_text().splitlines()[1:] if path.exists() and not fresh else []
        unfinished = self._whole_lines()
        for line in (*finished, *unfinished):
            row = json.loads(line)
            self.rows[tuple(row["key"])] = row

    def _whole_lines(self) -> list[str]:
        """Lines of the unfinished file; one that was cut off by a kill is removed."""
        if not self._part.exists():
            return []
        whole, end, _ = self._part.read_text().rpartition("\n")
        self._part.write_text(whole + end)
        return whole.splitlines()

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
