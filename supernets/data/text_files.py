"""Find the documents of a text corpus: plain text files, folders of them, or tables with a text column."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from supernets.data.data_sets import WHOLE, read_data_set, split_of
from supernets.data.splits import separate
from supernets.data.table_files import READABLE, Table, read_table, read_text
from supernets.task import SPLITS, TRAIN

SUFFIX = ".txt"


def read_corpus(data: str | Mapping[str, str], column: str) -> dict[str, list[str]]:
    """Split name → documents, or `WHOLE` → documents where the data say nothing about splits; none is blank.

    Args:
        data: split name → path, or one path. A path is a text file (one document, suffix ``.txt``), a table (one
            document a row, in the splits that its column ``split`` names if it has one), or a folder of text files,
            subfolders included. A folder that holds ``train.txt`` is read split by split (``validation``, ``valid``,
            ``val``, ``dev``; ``test``), one without text files as `supernets.data.data_sets.read_data_set` reads it.
        column: where tables keep the text.

    Raises:
        ValueError: nothing readable is there, a file is not UTF-8 or blank, or a table lacks the column.
    """
    if isinstance(data, str):
        return _read_path(Path(data), column)
    if TRAIN not in data or set(data) - set(SPLITS):
        raise ValueError(f"split files must be named {', '.join(SPLITS)} and include {TRAIN}, got {list(data)}")
    return {split: _documents(Path(data[split]), column) for split in SPLITS if split in data}


def _read_path(path: Path, column: str) -> dict[str, list[str]]:
    if path.suffix.lower() in READABLE and path.is_file():
        return _texts({WHOLE: read_table(path)}, column)
    if not path.is_dir():
        return {WHOLE: _documents(path, column)}
    named = {split: file for file in sorted(path.glob(f"*{SUFFIX}")) if (split := split_of(file.stem))}
    if TRAIN in named:
        return {split: _documents(named[split], column) for split in SPLITS if split in named}
    if any(path.rglob(f"*{SUFFIX}")):
        return {WHOLE: _documents(path, column)}
    return _texts(read_data_set(str(path)), column)


def _texts(tables: Mapping[str, Table], column: str) -> dict[str, list[str]]:
    return {split: _filled(table, column) for split, table in separate(tables).items()}


def _filled(table: Table, column: str) -> list[str]:
    texts = [text for text in table.column(column) if text.strip()]
    if not texts:
        raise ValueError(f"{table.source} holds no text in column {column!r}; name the column with --text")
    return texts


def _documents(path: Path, column: str) -> list[str]:
    if path.is_dir():
        files = sorted(path.rglob(f"*{SUFFIX}"))
        texts = [text for file in files if (text := read_text(file)).strip()]
    elif path.suffix.lower() in READABLE:
        return _filled(read_table(path), column)
    elif not path.is_file():
        raise ValueError(f"{path} does not exist; check the path")
    elif path.suffix.lower() != SUFFIX:
        raise ValueError(f"{path} is not a text that can be read; use {SUFFIX}, {', '.join(READABLE)} or a folder")
    else:
        texts = [text] if (text := read_text(path)).strip() else []
    if not texts:
        raise ValueError(f"{path} holds no text; give UTF-8 text files with the suffix {SUFFIX}")
    return texts
