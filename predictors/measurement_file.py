"""Carries measurements from one machine to another: tune on a server, measure on the target, search anywhere.

The file is one JSON object: ``{"format": "supernas-measurements", "version": 1, "measurements": [...]}``, with the
fields of `studies.records.Measurement` in every element. Each keeps the fingerprint of the device it was taken on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from studies.records import Measurement

FORMAT = "supernas-measurements"
VERSION = 1
_MOST = 1e15
"""No duration or load is that large, and every database holds what is smaller."""
_MOST_REPEATS = 2**31 - 1
"""What a column of whole numbers holds, as the lengths of texts below are those of theirs."""


def export_measurements(measurements: Iterable[Measurement], path: Path) -> None:
    """Write a file that `import_measurements` reads; an existing one is replaced in one step."""
    content = {"format": FORMAT, "version": VERSION, "measurements": [asdict(one) for one in measurements]}
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def import_measurements(path: Path) -> list[Measurement]:
    """Read what `export_measurements` wrote.

    Raises:
        ValueError: it is not such a file, was written by a newer version, or holds an impossible row; the row is named.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as measurements ({error}); export them again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} holds no exported measurements: its format is not {FORMAT!r}")
    if content.get("version") != VERSION:
        raise ValueError(f"{path} has version {content.get('version')!r}, this program reads {VERSION}; update it")
    rows = content.get("measurements")
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path} holds no list of measurements; export them again")
    return [_measurement(row, f"{path}, row {number}") for number, row in enumerate(rows, 1)]


def _measurement(row: object, where: str) -> Measurement:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object, got {row!r}")
    if set(row) != set(_RULES):
        raise ValueError(f"{where}: fields differ: {', '.join(sorted(set(row) ^ set(_RULES)))}")
    for name, (rule, holds) in _RULES.items():
        if not holds(row[name]):
            raise ValueError(f"{where}: {name} must be {rule}, got {row[name]!r}")
    return Measurement(**row)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _MOST


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and _is_positive(value) and value <= _MOST_REPEATS


def _are_versions(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(one, str) and "\0" not in one for one in (*value, *value.values())
    )


_NUMBER = ("a number >= 0 below 1e15", _is_number)
_POSITIVE = ("a number > 0 below 1e15", _is_positive)


def _text(most: int) -> tuple[str, Callable[[Any], bool]]:
    return (
        f"a text of 1 to {most} characters without NUL",
        lambda value: isinstance(value, str) and 0 < len(value) <= most and "\0" not in value,
    )


_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "op_key": _text(512),
    "device": _text(64),
    "seconds_median": _POSITIVE,
    "seconds_iqr": _NUMBER,
    "seconds_p95": _POSITIVE,
    "repeats": (f"a whole number from 1 to {_MOST_REPEATS}", _is_count),
    "reference_seconds": _POSITIVE,
    "clock": _text(16),
    "load": _NUMBER,
    "noisy": ("true or false", lambda value: isinstance(value, bool)),
    "versions": ("an object of texts", _are_versions),
}
