"""Reading tables and data sets: every format agrees, every error names its place."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supernets.data.data_sets import WHOLE, read_data_set, split_of
from supernets.data.table_files import read_table

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

ROWS = [('Good, "really" good', "positive"), ("bad – naïve\u2028film", "negative"), ("", "negative")]
COLUMNS = {"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]}


def _write_delimited(path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerows([("text", "label"), *ROWS])


def _write_jsonl(path: Path) -> None:
    rows = [{"text": text or None, "label": label} for text, label in ROWS]
    path.write_text("\n\n".join(json.dumps(row) for row in rows), encoding="utf-8")


def _write_parquet(path: Path) -> None:
    parquet.write_table(pyarrow.table(COLUMNS), path)


def _write_arrow(path: Path, columns: dict[str, list[object]] | None = None, names: list[str] | None = None) -> None:
    table = pyarrow.table(columns or COLUMNS)
    if names:
        features = {"label": {"_type": "ClassLabel", "names": names}, "text": {"_type": "Value"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


WRITERS: dict[str, Callable[[Path], None]] = {
    "tsv": _write_delimited,
    "csv": _write_delimited,
    "jsonl": _write_jsonl,
    "parquet": _write_parquet,
    "arrow": _write_arrow,
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_format_gives_the_same_columns(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data.{suffix}"
    WRITERS[suffix](path)
    table = read_table(path)
    assert {name: list(cells) for name, cells in table.columns.items()} == COLUMNS
    assert len(table) == 3


@given(cell=st.text(st.characters(exclude_characters="\t\r\n", exclude_categories=["Cs"]), min_size=1))
def test_a_tsv_cell_survives_a_spreadsheet_writer(tmp_path_factory: pytest.TempPathFactory, cell: str) -> None:
    path = tmp_path_factory.mktemp("tsv") / "data.tsv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([("text", "label"), (cell, "a")])
    assert read_table(path).column("label") == ["a"]
    if not (cell[0] == cell[-1] == '"'):
        assert read_table(path).columns["text"] == [cell]


def test_unquoted_quotation_marks_in_tsv_stay(tmp_path: Path) -> None:
    path = tmp_path / "data.tsv"
    path.write_text('text\tlabel\n"Odd" it said\t0\n"One" or "two"\t1\n', encoding="utf-8")
    assert read_table(path).columns["text"] == ['"Odd" it said', '"One" or "two"']


def test_numbers_and_gaps_become_text(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    columns = {"text": ["a", "b", "c"], "label": pyarrow.array([1.0, None, 0.0]), "flag": [True, False, True]}
    parquet.write_table(pyarrow.table(columns), path)
    table = read_table(path)
    assert table.columns["label"] == ["1", "", "0"]
    assert table.columns["flag"] == ["true", "false", "true"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text,label\na,0\nb\n", r"a\.csv:3: 1 cells, but the header names 2"),
        ("a.csv", b'text,label\n"a,0\nb,1\n', r"a\.csv:\d: unexpected end of data"),
        ("a.csv", b"text,text\na,0\n", r"a\.csv:1: column names must differ"),
        ("a.tsv", b"text\tlabel\na\t0\nb\t1\t2\n", r"a\.tsv:3: 3 cells, but the header names 2"),
        ("a.tsv", b"text\tlabel\na\t0\ncaf\xe9\t1\n", r"a\.tsv:3: byte 0xe9 is not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a\.jsonl:2: not valid JSON"),
        ("a.jsonl", b'{"text": "a"}\n\n[1]\n', r"a\.jsonl:3: a line must be a JSON object, got list"),
        ("a.csv", b"", r"a\.csv is empty"),
        ("a.csv", b"text,label\n", r"a\.csv is empty"),
        ("a.jsonl", b"\n", r"a\.jsonl is empty"),
        ("a.parquet", b"PAR1 no", r"a\.parquet cannot be read"),
        ("a.arrow", b"no arrow", r"a\.arrow cannot be read"),
        ("a.xlsx", b"", r"a\.xlsx is not a table that can be read; use one of \.tsv"),
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_table(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_missing_and_empty_columns_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\na, \nb,\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"no column 'sentence'; its columns are \['text', 'label'\]"):
        read_table(path).column("sentence")
    with pytest.raises(ValueError, match="column 'label' is empty"):
        read_table(path).column("label")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.csv does not exist"):
        read_data_set(str(tmp_path / "gone.csv"))


def test_missing_pyarrow_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_parquet(tmp_path / "a.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ValueError, match="needs pyarrow to be read"):
        read_table(tmp_path / "a.parquet")


def test_a_folder_of_split_files_with_aliases_and_shards(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"):
        _write_parquet(tmp_path / name)
    _write_delimited(tmp_path / "dev.csv")
    (tmp_path / "README.md").write_text("not data", encoding="utf-8")
    tables = read_data_set(str(tmp_path))
    assert {split: len(table) for split, table in tables.items()} == {"train": 6, "validation": 3}


def test_a_folder_with_rival_files_or_without_train_is_refused(tmp_path: Path) -> None:
    _write_delimited(tmp_path / "test.csv")
    with pytest.raises(ValueError, match=r"holds no train split \(found \['test'\]\)"):
        read_data_set(str(tmp_path))
    _write_delimited(tmp_path / "train.csv")
    _write_delimited(tmp_path / "train.tsv")
    with pytest.raises(ValueError, match=r"several files for one split, \['train.csv', 'train.tsv'\]"):
        read_data_set(str(tmp_path))


def _save_to_disk(folder: Path, labels: list[int]) -> None:
    """The layout that saved Hugging Face data sets have."""
    folder.mkdir(parents=True)
    _write_arrow(folder / "data-0.arrow", {"text": list("abc"), "label": list(labels)}, ["neg", "pos"])
    _write_arrow(folder / "data-1.arrow", {"text": ["d"], "label": [1]}, ["neg", "pos"])
    files = [{"filename": "data-0.arrow"}, {"filename": "data-1.arrow"}]
    (folder / "state.json").write_text(json.dumps({"_data_files": files}), encoding="utf-8")


def test_saved_data_sets_keep_their_class_names(tmp_path: Path) -> None:
    _save_to_disk(tmp_path / "one", [0, 1, -1])
    assert read_data_set(str(tmp_path / "one"))[WHOLE].columns["label"] == ["neg", "pos", "", "pos"]
    for split in ("train", "validation"):
        _save_to_disk(tmp_path / "both" / split, [0, 1, 1])
    content = json.dumps({"splits": ["train", "validation", "extra"]})
    (tmp_path / "both" / "dataset_dict.json").write_text(content, encoding="utf-8")
    assert list(read_data_set(str(tmp_path / "both"))) == ["train", "validation"]
    (tmp_path / "one" / "state.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"state\.json is not a JSON object"):
        read_data_set(str(tmp_path / "one"))


def test_given_splits_need_their_names(tmp_path: Path) -> None:
    _write_delimited(tmp_path / "a.csv")
    path = str(tmp_path / "a.csv")
    assert list(read_data_set({"validation": path, "train": path})) == ["train", "validation"]
    with pytest.raises(ValueError, match="must be named train, validation, test and include train"):
        read_data_set({"validation": path})


def test_split_words() -> None:
    assert [split_of(word) for word in (" Dev", "train", "extra")] == ["validation", "train", None]
