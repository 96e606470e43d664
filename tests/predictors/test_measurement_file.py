"""Round trips, and every way a file can be wrong."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.measurement_file import export_measurements, import_measurements
from studies.records import Measurement

seconds = st.floats(1e-9, 1e6)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=64)
measurements = st.builds(
    Measurement,
    op_key=texts,
    device=texts,
    seconds_median=seconds,
    seconds_iqr=st.floats(0, 10),
    seconds_p95=seconds,
    repeats=st.integers(1, 100),
    reference_seconds=seconds,
    clock=texts.filter(lambda text: len(text) <= 16),
    load=st.floats(0, 100),
    noisy=st.booleans(),
    versions=st.dictionaries(texts, texts, max_size=2),
)

GOOD: dict[str, Any] = {
    "op_key": "linear[in=1]",
    "device": "cpu-1",
    "seconds_median": 1.0,
    "seconds_iqr": 0.0,
    "seconds_p95": 1.0,
    "repeats": 5,
    "reference_seconds": 1.0,
    "clock": "wall",
    "load": 0.5,
    "noisy": False,
    "versions": {"torch": "2"},
}


def written(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def envelope(*rows: object) -> dict[str, object]:
    return {"format": "supernas-measurements", "version": 1, "measurements": list(rows)}


@given(st.lists(measurements, min_size=1, max_size=3))
def test_round_trip(rows: list[Measurement]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        export_measurements(rows, path)
        assert import_measurements(path) == rows
        assert list(path.parent.iterdir()) == [path]


def test_documented_format_is_read(tmp_path: Path) -> None:
    assert import_measurements(written(tmp_path / "rows.json", envelope(GOOD))) == [Measurement(**GOOD)]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("op_key", "", "row 2: op_key must be a text of 1 to 512 characters without NUL, got ''"),
        ("op_key", "a\0b", "row 2: op_key must be a text of 1 to 512 characters without NUL, got 'a\\x00b'"),
        ("clock", 17 * "c", "row 2: clock must be a text of 1 to 16 characters without NUL, got 'ccccccccccccccccc'"),
        ("seconds_median", 0.0, "row 2: seconds_median must be a number > 0 below 1e15, got 0.0"),
        ("seconds_p95", "1", "row 2: seconds_p95 must be a number > 0 below 1e15, got '1'"),
        ("seconds_iqr", float("nan"), "row 2: seconds_iqr must be a number >= 0 below 1e15, got nan"),
        ("load", True, "row 2: load must be a number >= 0 below 1e15, got True"),
        ("load", 10**15, f"row 2: load must be a number >= 0 below 1e15, got {10**15}"),
        ("repeats", 10**15, f"row 2: repeats must be a whole number from 1 to 2147483647, got {10**15}"),
        ("repeats", 2**31, "row 2: repeats must be a whole number from 1 to 2147483647, got 2147483648"),
        ("repeats", 2.5, "row 2: repeats must be a whole number from 1 to 2147483647, got 2.5"),
        ("noisy", 1, "row 2: noisy must be true or false, got 1"),
        ("versions", {"torch": 2}, "row 2: versions must be an object of texts, got {'torch': 2}"),
        ("extra", 1, "row 2: fields differ: extra"),
    ],
)
def test_an_impossible_row_is_named(tmp_path: Path, field: str, value: object, message: str) -> None:
    path = written(tmp_path / "rows.json", envelope(GOOD, {**GOOD, field: value}))
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        import_measurements(path)
    assert str(caught.value) == f"{path}, {message}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "its format is not 'supernas-measurements'"),
        ({"format": "other"}, "its format is not 'supernas-measurements'"),
        ({**envelope(), "version": 2}, "has version 2, this program reads 1"),
        ({**envelope(), "measurements": {}}, "holds no list of measurements"),
        (envelope(), "holds no list of measurements"),
        (envelope([1]), r"row 1: expected an object, got \[1\]"),
        (envelope({}), "row 1: fields differ: clock, device"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        import_measurements(written(tmp_path / "rows.json", content))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_an_unreadable_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as measurements"):
        import_measurements(path)
    with pytest.raises(ValueError, match="cannot be read as measurements"):
        import_measurements(tmp_path / "absent.json")


def test_a_failed_export_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    export_measurements([Measurement(**GOOD)], path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        export_measurements([Measurement(**{**GOOD, "load": object()})], path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
