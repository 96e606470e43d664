"""Read a table of text cells from TSV, CSV, JSONL, Parquet or Arrow. Errors name the file, and the line if any."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow

READABLE = (".tsv", ".csv", ".jsonl", ".parquet", ".arrow")


@dataclass(frozen=True, slots=True)
class Table:
    """Columns of text, all of one length; a missing value is the empty string.

    Attributes:
        source: the file or folder it was read from, for messages.
    """

    source: Path
    columns: Mapping[str, Sequence[str]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def column(self, name: str) -> Sequence[str]:
        """A column by name; ValueError names the columns there are."""
        if name not in self.columns:
            raise ValueError(f"{self.source} has no column {name!r}; its columns are {list(self.columns)}")
        if not any(cell.strip() for cell in self.columns[name]):
            raise ValueError(f"{self.source}: column {name!r} is empty; name a column that holds values")
        return self.columns[name]


def read_table(path: Path) -> Table:
    """Read one file by its suffix, one of `READABLE`.

    TSV cells are plain text up to the next tab; a cell in double quotes whose inner quotes are doubled is unquoted.
    CSV follows RFC 4180. JSONL is one object a line; a key that a line lacks is an empty cell.

    Raises:
        ValueError: unknown suffix, missing, empty or undecodable file, or a row that cannot be read.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path} is not a table that can be read; use one of {', '.join(READABLE)}")
    if not path.is_file():
        raise ValueError(f"{path} does not exist; check the path")
    table = Table(path, reader(path))
    if len(table) == 0:
        raise ValueError(f"{path} is empty; it needs at least one row of data")
    return table


def concatenate(tables: Sequence[Table], source: Path) -> Table:
    """Tables with the same columns, one under the other."""
    for table in tables[1:]:
        if set(table.columns) != set(tables[0].columns):
            raise ValueError(
                f"{table.source} has the columns {list(table.columns)}, but {tables[0].source} has "
                f"{list(tables[0].columns)}; give all parts the same columns"
            )
    return Table(source, {name: [cell for t in tables for cell in t.columns[name]] for name in tables[0].columns})


def read_text(path: Path) -> str:
    """The text of a file without a byte order mark; ValueError names the line that is not UTF-8."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}:{line}: byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from error


def _read_csv(path: Path) -> dict[str, list[str]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default refuses cells beyond 128 KiB
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)

    def rows() -> Iterable[tuple[int, list[str]]]:
        try:
            for cells in reader:
                yield reader.line_num, cells
        except csv.Error as error:
            raise ValueError(f"{path}:{reader.line_num}: {error}; fix the quoting of this row") from error

    return _from_rows(path, rows())


def _read_tsv(path: Path) -> dict[str, list[str]]:
    lines = io.StringIO(read_text(path), newline=None)
    rows = ((number, line.rstrip("\n").split("\t")) for number, line in enumerate(lines, start=1))
    return _from_rows(path, ((number, [_unquoted(cell) for cell in cells]) for number, cells in rows))


def _unquoted(cell: str) -> str:
    """Undo the quoting that spreadsheet writers add; text that merely begins and ends with a quotation stays."""
    if len(cell) < 2 or cell[0] != '"' or cell[-1] != '"' or '"' in cell[1:-1].replace('""', ""):
        return cell
    return cell[1:-1].replace('""', '"')


def _from_rows(path: Path, rows: Iterable[tuple[int, list[str]]]) -> dict[str, list[str]]:
    """Columns from (line number, cells), the first row naming them. Lines without any cell are skipped."""
    filled = ((number, cells) for number, cells in rows if cells not in ([], [""]))
    _, names = next(iter(filled), (0, []))
    if len(set(names)) != len(names):
        raise ValueError(f"{path}:1: column names must differ, got {names}; rename the repeated ones")
    table: list[list[str]] = []
    for number, cells in filled:
        if len(cells) != len(names):
            raise ValueError(
                f"{path}:{number}: {len(cells)} cells, but the header names {len(names)} ({', '.join(names)}); fix or "
                "quote this row"
            )
        table.append(cells)
    return {name: [cells[i] for cells in table] for i, name in enumerate(names)}


def _read_jsonl(path: Path) -> dict[str, list[str]]:
    rows: list[dict[str, str]] = []
    for number, line in enumerate(io.StringIO(read_text(path), newline=None), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not valid JSON ({error.msg}); write one object a line") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: a line must be a JSON object, got {type(row).__name__}")
        rows.append({name: _cell(value) for name, value in row.items()})
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name, "") for row in rows] for name in names}


def _cell(value: object) -> str:
    """A value as text; whole floats lose their ``.0``, since integer labels with gaps arrive as floats."""
    if value is None or value != value:  # NaN, the usual mark of a missing number, differs from itself
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _read_parquet(path: Path) -> dict[str, list[str]]:
    _require_pyarrow(path)
    import pyarrow
    from pyarrow import parquet

    try:
        return _from_arrow(parquet.read_table(path))
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(_unreadable(path, error)) from error


def _read_arrow(path: Path) -> dict[str, list[str]]:
    _require_pyarrow(path)
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as source:
            return _from_arrow(pyarrow.ipc.open_stream(source).read_all())
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(_unreadable(path, error)) from error


def _require_pyarrow(path: Path) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"{path} needs pyarrow to be read; run `pip install pyarrow`, or save the data as CSV"
        ) from error


def _unreadable(path: Path, error: Exception) -> str:
    return f"{path} cannot be read ({' '.join(str(error).split())}); write the file again"


def _from_arrow(table: pyarrow.Table) -> dict[str, list[str]]:
    names_of = _class_names(table.schema.metadata or {})
    columns = zip(table.column_names, table.columns, strict=True)
    return {name: _arrow_cells(column.to_pylist(), names_of.get(name)) for name, column in columns}


def _arrow_cells(values: list[Any], class_names: Sequence[str] | None) -> list[str]:
    if class_names is None:
        return [_cell(value) for value in values]
    return ["" if value is None or value < 0 else class_names[value] for value in values]


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Column → class names of the columns that Hugging Face data sets store as class ids (-1: no label)."""
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    return {
        name: feature["names"]
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }


_READERS: Mapping[str, Callable[[Path], dict[str, list[str]]]] = {
    ".tsv": _read_tsv,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}
