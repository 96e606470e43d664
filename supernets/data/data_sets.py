"""Find the tables of a data set: one file, a folder with a file per split, or a Hugging Face data set saved to disk."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from supernets.data.table_files import READABLE, Table, concatenate, read_table
from supernets.task import SPLITS, TEST, TRAIN, VALIDATION

WHOLE = "all"
"""Name of a table that is not yet split."""

_SPLIT_OF_NAME = {TRAIN: TRAIN, TEST: TEST, **dict.fromkeys((VALIDATION, "valid", "val", "dev"), VALIDATION)}

# A split's name, with the shard number that published data sets add: train.csv, test-00000-of-00002.parquet.
_SPLIT_FILE = re.compile(rf"({'|'.join(_SPLIT_OF_NAME)})(-\d+-of-\d+)?\.\w+", re.IGNORECASE)


def split_of(name: str) -> str | None:
    """The split a word means, such as ``dev`` for validation, or None."""
    return _SPLIT_OF_NAME.get(name.strip().lower())


def read_data_set(data: str | Mapping[str, str]) -> dict[str, Table]:
    """Split name → table, or `WHOLE` → table where the data say nothing about splits.

    Args:
        data: split name → path, or one path: a file, a folder with ``train``, ``validation`` (``valid``, ``val``,
            ``dev``) and ``test`` files, also in its ``data`` folder, or a data set or dictionary of data sets that
            was saved to disk in Arrow format. Other splits of a folder are left alone.

    Raises:
        ValueError: nothing readable is there.
    """
    if not isinstance(data, str):
        return _read_given_splits(data)
    path = Path(data)
    if not path.is_dir():
        return {WHOLE: read_table(path)}
    if (path / "dataset_dict.json").is_file():
        names = _read_json(path / "dataset_dict.json").get("splits", [])
        return _require_splits(path, {split: _read_saved(path / name) for name in names if (split := split_of(name))})
    if (path / "state.json").is_file():
        return {WHOLE: _read_saved(path)}
    return _require_splits(path, _read_split_files(path))


def _read_given_splits(data: Mapping[str, str]) -> dict[str, Table]:
    if TRAIN not in data or set(data) - set(SPLITS):
        raise ValueError(f"split files must be named {', '.join(SPLITS)} and include {TRAIN}, got {list(data)}")
    return {split: read_table(Path(data[split])) for split in SPLITS if split in data}


def _read_split_files(folder: Path) -> dict[str, Table]:
    files: dict[str, list[Path]] = {}
    for path in sorted([*folder.iterdir(), *(folder / "data").glob("*")]):
        match = _SPLIT_FILE.fullmatch(path.name)
        if match and path.suffix.lower() in READABLE:
            files.setdefault(_SPLIT_OF_NAME[match[1].lower()], []).append(path)
    return {split: _read_shards(folder, files[split]) for split in SPLITS if split in files}


def _read_shards(folder: Path, paths: list[Path]) -> Table:
    stems = {path.stem.lower() for path in paths if "-of-" not in path.stem}
    if stems and len(paths) > 1:
        raise ValueError(f"{folder} holds several files for one split, {[p.name for p in paths]}; leave one")
    tables = [read_table(path) for path in paths]
    return tables[0] if len(tables) == 1 else concatenate(tables, folder)


def _read_saved(folder: Path) -> Table:
    """One data set saved to disk: its state names the Arrow files in order."""
    files = [folder / entry["filename"] for entry in _read_json(folder / "state.json").get("_data_files", [])]
    if not files:
        raise ValueError(f"{folder / 'state.json'} names no data files; save the data set again")
    return concatenate([read_table(path) for path in files], folder)


def _require_splits(folder: Path, tables: dict[str, Table]) -> dict[str, Table]:
    if TRAIN not in tables:
        raise ValueError(
            f"{folder} holds no {TRAIN} split (found {sorted(tables) or 'none'}); name its files "
            f"{TRAIN}, {VALIDATION} and {TEST} with one of {', '.join(READABLE)}, or give one file"
        )
    return {split: tables[split] for split in SPLITS if split in tables}


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} does not exist; save the data set again")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object; save the data set again")
    return content
