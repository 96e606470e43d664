"""What the user sees: tables and progress on terminals, plain lines elsewhere, machine formats on request.

Results go to stdout, everything else to stderr, so that `nas front -f json | jq` works.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from types import TracebackType
from typing import Annotated, Any, Self, TextIO

import typer

Row = Mapping[str, object]


class Format(StrEnum):
    """How rows are written."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    YAML = "yaml"


FormatOption = Annotated[Format, typer.Option("--format", "-f", help="How the result is written.")]


def write_rows(rows: Sequence[Row], style: Format = Format.TABLE, title: str = "", file: TextIO | None = None) -> None:
    """Write rows that share their columns; numbers keep full precision in every format but `table`."""
    out = file or sys.stdout
    if style is Format.JSON:
        out.write(json.dumps([dict(row) for row in rows], indent=2, default=str) + "\n")
    elif style is Format.YAML:
        import yaml

        out.write(yaml.safe_dump([dict(row) for row in rows], sort_keys=False, allow_unicode=True))
    elif style is Format.CSV:
        writer = csv.DictWriter(out, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    elif out.isatty():
        _write_rich_table(rows, title, out)
    else:
        _write_plain_table(rows, out)


def _write_rich_table(rows: Sequence[Row], title: str, out: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, title_justify="left")
    for column in rows[0] if rows else ():
        table.add_column(column, justify="right" if _is_numeric(rows, column) else "left")
    for row in rows:
        table.add_row(*map(cell, row.values()))
    Console(file=out).print(table)


def _write_plain_table(rows: Sequence[Row], out: TextIO) -> None:
    """Columns two spaces apart, numbers to the right."""
    columns = list(rows[0]) if rows else []
    texts = [columns, *([cell(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in texts) for i in range(len(columns))]
    right = [_is_numeric(rows, column) for column in columns]
    for line in texts:
        parts = [
            text.rjust(width) if flush else text.ljust(width)
            for text, width, flush in zip(line, widths, right, strict=True)
        ]
        out.write("  ".join(parts).rstrip() + "\n")


def _is_numeric(rows: Sequence[Row], column: str) -> bool:
    values = [row[column] for row in rows if row[column] is not None]
    return bool(values) and all(isinstance(value, int | float) for value in values)


def cell(value: object) -> str:
    """A value as a table shows it: four significant digits, whole numbers in full, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 10_000 and value == value else f"{value:.4g}"
    return str(value)


def quiet_libraries() -> None:
    """Keep transformers' load reports and progress bars out of what the user reads."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def duration(seconds: float) -> str:
    """``8 s``, ``3 min 05 s`` or ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class Progress:
    """One long-running task: a bar with an estimate on a terminal, a plain line every few seconds elsewhere.

        with Progress("search", total=200) as progress:
            progress.update(40, "loss 0.31")

    `update` takes what is done so far, not an increment, so that a resumed task starts where it stopped.
    """

    def __init__(
        self,
        title: str,
        total: float,
        *,
        file: TextIO | None = None,
        every_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title = title
        self.total = total
        self._file = file or sys.stderr
        self._every_seconds = every_seconds
        self._clock = clock
        self._start: tuple[float, float] | None = None
        self._last_line = -float("inf")
        self._bar = _bar(self._file) if self._file.isatty() else None

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
            self._bar.add_task(self.title, total=self.total, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: float, note: str = "") -> None:
        """Show that `done` of `total` are done; the first call is where the estimate starts."""
        now = self._clock()
        self._start = self._start or (now, done)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, note=note)
        elif done >= self.total or now - self._last_line >= self._every_seconds:
            self._last_line = now
            parts = [f"{self.title}: {done:g}/{self.total:g}", self._remaining(now, done), note]
            print(", ".join(filter(None, parts)), file=self._file, flush=True)

    def say(self, text: str) -> None:
        """A line of its own, above the bar on a terminal."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._file, flush=True)

    def _remaining(self, now: float, done: float) -> str:
        assert self._start is not None
        seconds, advanced = now - self._start[0], done - self._start[1]
        if advanced <= 0 or done >= self.total:
            return ""
        return f"{duration(seconds / advanced * (self.total - done))} left"


def _bar(file: TextIO) -> Any:
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[note]}"),
        console=Console(file=file),
    )
