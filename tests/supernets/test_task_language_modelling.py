"""Text as a task: what is read, how it is cut and split, and that its figures are those of a slow loop."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from supernets.data.byte_tokenizer import VOCABULARY, byte_tokenizer
from supernets.evaluation import evaluate
from supernets.task import SPLITS, TaskSettings
from supernets.tasks.language_modelling import METRICS, LanguageModelling

TOKENIZER = byte_tokenizer()
TEXT = "".join(f"{number:02} squared: {number**2:04}\n" for number in range(70))


def _settings(data: Any, **changes: Any) -> TaskSettings:
    paths = {split: str(path) for split, path in data.items()} if isinstance(data, dict) else str(data)
    return TaskSettings(
        **{"kind": "language-modelling", "data": paths, "max_length": 16, "metric": "nll", "label": None, **changes}
    )


def _open(data: Any, **changes: Any) -> LanguageModelling:
    return LanguageModelling.open(_settings(data, **changes), TOKENIZER)


def _blocks(task: LanguageModelling, split: str) -> torch.Tensor:
    return torch.cat([batch.inputs["input_ids"] for batch in task.batches(split, 7)])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


class Network:
    """Logits that depend on the token alone, from a random table that expects blanks."""

    def __init__(self) -> None:
        self.table_VV = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0))
        self.table_VV[:, TOKENIZER(" ")["input_ids"]] += 5

    def __call__(self, input_ids: torch.Tensor) -> Any:
        return SimpleNamespace(logits=self.table_VV[input_ids])


# -- the tokenizer ----------------------------------------------------------------------------------------------------


@given(st.text())
def test_every_text_becomes_its_bytes_and_comes_back(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    assert len(ids) == len(text.encode())
    assert all(0 <= token < VOCABULARY - 1 for token in ids)
    assert TOKENIZER.decode(ids) == text


def test_the_tokenizer_is_the_same_after_saving(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    TOKENIZER.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("Grüße, 世界 ")["input_ids"] == TOKENIZER("Grüße, 世界 ")["input_ids"]
    assert (len(again), again.eos_token_id, again.pad_token_id) == (VOCABULARY, VOCABULARY - 1, VOCABULARY - 1)


# -- reading, cutting, splitting --------------------------------------------------------------------------------------


def test_one_text_is_cut_by_position(file: Path) -> None:
    task = _open(file)
    joined = torch.cat([_blocks(task, split) for split in SPLITS]).flatten().tolist()
    whole = [*TOKENIZER(TEXT)["input_ids"], TOKENIZER.eos_token_id]
    assert joined == whole[: len(joined)]
    assert len(whole) - len(joined) < 16  # less than a block is left over
    sizes = {split: task.size(split) for split in task.splits}
    assert sizes["test"] == sizes["validation"] == round(0.1 * sum(sizes.values()))


def test_the_same_documents_make_the_same_task_wherever_they_come_from(tmp_path: Path) -> None:
    documents = [" ".join(f"{word} {n}" for n in range(30)) for word in ("one", "two", "three", "four", "five")]
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    for number, text in enumerate(documents):
        place = tmp_path / "folder" / ("inner" if number % 2 else "")
        (place / f"{9 - number}.txt").write_text(text)
    (tmp_path / "folder" / "repeated.txt").write_text(documents[0])
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"content": text}) + "\n" for text in [*documents, documents[0], " "]))
    folder, table = _open(tmp_path / "folder"), _open(rows, text=("content",))
    assert folder.fingerprint == table.fingerprint
    assert folder.summary().dropped["repeats"] == 1
    assert _open(rows, text=("content",), seed=1).fingerprint != folder.fingerprint


def test_given_splits_stay_and_blocks_held_out_do_not_train(tmp_path: Path) -> None:
    pieces = [f"{number:15}\n" for number in range(40)]
    for split, chosen in (("train", pieces), ("dev", pieces[5:8]), ("test", pieces[7:10])):
        (tmp_path / f"{split}.txt").write_text("".join(chosen))
    task = _open(tmp_path)
    texts = {split: [TOKENIZER.decode(row) for row in _blocks(task, split)] for split in task.splits}
    assert texts["test"] == pieces[7:10]
    assert texts["validation"] == pieces[5:7]
    assert texts["train"] == pieces[:5] + pieces[10:]
    assert task.summary().dropped == {"also held out": 6}
    named = {"train": tmp_path / "train.txt", "test": tmp_path / "test.txt"}
    assert _open(named).splits == SPLITS  # validation is cut from training


def test_rows_of_a_table_go_where_its_column_says(tmp_path: Path) -> None:
    long = {split: " ".join(f"{split} {number}" for number in range(40)) for split in ("test", "train", "dev")}
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text, "split": split}) + "\n" for split, text in long.items()))
    files = tmp_path / "files"
    files.mkdir()
    for split, text in long.items():
        (files / f"{split}.txt").write_text(text)
    assert _open(rows).fingerprint == _open(files).fingerprint
    rows.write_text(json.dumps({"text": "x", "split": "elsewhere"}) + "\n")
    with pytest.raises(ValueError, match="column 'split' must say train, validation, test"):
        _open(rows)


def test_a_limit_keeps_some_blocks(file: Path) -> None:
    task = _open(file, limit=3)
    assert {split: task.size(split) for split in task.splits} == dict.fromkeys(SPLITS, 3)
    every = [row.tolist() for row in _blocks(_open(file), "train")]
    positions = [every.index(row.tolist()) for row in _blocks(task, "train")]
    assert positions == sorted(positions)


def test_batches_hold_every_block_once(file: Path) -> None:
    task = _open(file)
    shuffled = list(task.batches("train", 8, seed=1))
    assert sorted(torch.cat([batch.indices for batch in shuffled]).tolist()) == list(range(task.size("train")))
    assert [len(batch) for batch in task.batches("train", 8, indices=range(10))] == [8, 2]
    for batch in shuffled:
        assert batch.labels is not None
        assert torch.equal(batch.labels, batch.inputs["input_ids"])
        assert torch.equal(batch.labels, _blocks(task, "train")[batch.indices])
    assert task.length_quantiles("train", 2) == (16, 16)


# -- figures ----------------------------------------------------------------------------------------------------------


def test_figures_are_those_of_a_loop(file: Path) -> None:
    task, network = _open(file), Network()
    losses, hits = [], []
    for row in _blocks(task, "validation").tolist():
        for token, following in pairwise(row):
            log_V = network.table_VV[token].double().log_softmax(-1)
            losses.append(-float(log_V[following]))
            hits.append(int(log_V.argmax()) == following)
    nll = sum(losses) / len(losses)
    quality = evaluate(network, task, "validation", batch_size=2)
    assert quality.metrics == {
        "accuracy": pytest.approx(sum(hits) / len(hits)),
        "nll": pytest.approx(nll, rel=1e-6),
        "perplexity": pytest.approx(math.exp(nll), rel=1e-5),
    }
    assert quality.error == quality.metrics["nll"]
    blocks = torch.tensor(losses).view(-1, 15).mean(1)
    assert quality.standard_error == pytest.approx(float(blocks.std()) / math.sqrt(len(blocks)), rel=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_error_follows_the_metric(file: Path, metric: str) -> None:
    quality = evaluate(Network(), _open(file, metric=metric), "test")
    value = quality.metrics[metric]
    assert quality.error == (1 - value if metric == "accuracy" else value)
    assert quality.standard_error > 0
    assert evaluate(Network(), _open(file, metric=metric), "test", indices=[0]).standard_error == 0


def test_the_loss_is_that_of_transformers(file: Path) -> None:
    from transformers.loss.loss_utils import ForCausalLMLoss

    task, network = _open(file), Network()
    batch = next(task.batches("train", 4))
    assert batch.labels is not None
    logits = network(**batch.inputs).logits
    torch.testing.assert_close(task.loss(logits, batch.labels), ForCausalLMLoss(logits, batch.labels, VOCABULARY))
    unknown = torch.full_like(batch.labels, -100)
    assert task.loss(logits, unknown) == 0
    half = batch.labels.clone()
    half[2:] = -100
    torch.testing.assert_close(task.loss(logits, half), task.loss(logits[:2], half[:2]))
    assert task.outcomes(logits, half)[:, 1].tolist() == [15, 15, 0, 0]


def test_the_data_hash_knows_tokens_and_metric(file: Path, tmp_path: Path) -> None:
    task, other = _open(file), tmp_path / "other.txt"
    other.write_text(TEXT.replace("69", "96"))
    moved = tmp_path / "moved.txt"
    moved.write_text(TEXT)
    assert _open(moved).data_hash("test") == task.data_hash("test")
    assert _open(other).fingerprint != task.fingerprint
    assert _open(file, metric="accuracy").data_hash("test") != task.data_hash("test")


# -- what cannot be used ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        (b"", {}, r"text\.txt holds no text; give UTF-8 text files"),
        (b" \n\n", {}, r"text\.txt holds no text"),
        (b"short", {}, r"the text has 6 tokens, not even one block of 16; give more or a lower max_length"),
        (b"x" * 40, {}, r"makes 2 blocks of 16 tokens, too few to hold some out for validation and test"),
        (b"abc\n\xff\xfe", {}, r"text\.txt:2: byte 0xff is not UTF-8; save the file as UTF-8"),
        (b"x" * 900, {}, r"every block of validation is also held out; give other text for it"),
        (b"x", {"metric": "f1"}, r"unknown metric 'f1'; use one of accuracy, nll, perplexity"),
        (b"x", {"max_length": 1}, r"max_length must be 2 tokens or more.*got 1"),
        (b"x", {"text": ("a", "b")}, r"reads one text column, got \['a', 'b'\]"),
        (b"x", {"class_weights": "balanced"}, r"no classes to weight; leave out 'balanced'"),
        (b"x", {"limit": 0}, r"limit must be positive, got 0"),
    ],
)
def test_bad_text_is_one_line(file: Path, content: bytes, changes: dict[str, Any], message: str) -> None:
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        _open(file, **changes)
    assert "\n" not in str(caught.value)


def test_bad_places_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.txt does not exist"):
        _open(tmp_path / "gone.txt")
    (tmp_path / "image.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"image\.png is not a text that can be read; use \.txt"):
        _open(tmp_path / "image.png")
    with pytest.raises(ValueError, match="holds no train split"):
        _open(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"content": "x"}\n')
    with pytest.raises(ValueError, match="has no column 'text'; its columns are"):
        _open(tmp_path)
    with pytest.raises(ValueError, match="must be named train, validation, test and include train"):
        _open({"test": tmp_path / "train.jsonl"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no text"):
        _open({"train": tmp_path / "empty"})


def test_what_has_no_meaning_for_text_is_refused(file: Path) -> None:
    task = _open(file)
    with pytest.raises(ValueError, match="no labels that a teacher could give"):
        task.labelled_by({})
    with pytest.raises(ValueError, match="n must be positive"):
        task.length_quantiles("train", 0)
    pair = _open({"train": file})
    with pytest.raises(ValueError, match="the data have no test split; use one of train, validation"):
        pair.size("test")
