"""Tables, machine formats and progress, on a terminal and elsewhere."""

from __future__ import annotations

import csv
import io
import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cli.output import Format, Progress, cell, duration, write_rows

ROWS = [{"name": "small", "latency": 1.23456789, "spread": None}, {"name": "größer", "latency": 12345.6, "spread": 0.5}]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def written(style: Format, rows: list[dict[str, object]] = ROWS) -> str:
    out = io.StringIO()
    write_rows(rows, style, file=out)
    return out.getvalue()


def test_machine_formats_keep_full_precision() -> None:
    assert json.loads(written(Format.JSON)) == ROWS
    assert yaml.safe_load(written(Format.YAML)) == ROWS
    read = list(csv.DictReader(io.StringIO(written(Format.CSV))))
    assert [float(row["latency"]) for row in read] == [1.23456789, 12345.6]
    assert read[0]["spread"] == ""


def test_plain_table_aligns_numbers_to_the_right() -> None:
    assert written(Format.TABLE).splitlines() == [
        "name    latency  spread",
        "small     1.235",
        "größer    12346     0.5",
    ]


def test_table_on_a_terminal_holds_the_same_cells() -> None:
    out = Terminal()
    write_rows(ROWS, title="front", file=out)
    assert all(text in out.getvalue() for text in ("front", "latency", "größer", "1.235", "12346"))


@pytest.mark.parametrize("style", list(Format))
def test_no_rows(style: Format) -> None:
    assert written(style, []).strip() in ("", "[]")


@pytest.mark.parametrize(("value", "text"), [(None, ""), (True, "True"), (3, "3"), (float("nan"), "nan"), (0.5, "0.5")])
def test_cell(value: object, text: str) -> None:
    assert cell(value) == text


@given(st.floats(min_value=1e-6, max_value=1e12))
def test_cell_is_right_to_four_digits(value: float) -> None:
    assert float(cell(value)) == pytest.approx(value, rel=5e-4)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7_800, "2 h 10 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_progress_writes_plain_lines_now_and_then() -> None:
    out, clock = io.StringIO(), FakeClock()
    with Progress("search", total=200, file=out, clock=clock) as progress:
        progress.update(100)  # resumed half-way: the estimate counts from here
        for done in range(101, 201):
            clock.now += 1
            progress.update(done, f"loss {done}")
        progress.say("finished")
    lines = out.getvalue().splitlines()
    assert lines[:2] == ["search: 100/200", "search: 105/200, 1 min 35 s left, loss 105"]
    assert lines[-2:] == ["search: 200/200, loss 200", "finished"]
    assert len(lines) == 22


def test_progress_on_a_terminal_draws_a_bar() -> None:
    out = Terminal()
    with Progress("search", total=2, file=out) as progress:
        progress.update(2, "loss 0.5")
        progress.say("a [line] of its own")
    assert all(text in out.getvalue() for text in ("search", "2/2", "loss 0.5", "a [line] of its own"))
