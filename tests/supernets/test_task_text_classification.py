"""The text classification task end to end, with a tokenizer of a few words."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from supernets.finetune import Tuner, TuneSettings
from supernets.task import UNLABELLED, TaskSettings
from supernets.tasks.text_classification import TextClassification

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(300))]
CLS, SEP = 2, 3


def _tokenizer(**options: object) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    settings = {
        "unk_token": "[UNK]",
        "pad_token": "[PAD]",
        "model_max_length": 16,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
    }
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{**settings, **options})


def _text(i: int) -> str:
    return " ".join(f"w{i}" for _ in range(1 + i % 7))


def _rows(count: int = 100) -> list[dict[str, str]]:
    return [{"text": _text(i), "other": f"w{i} w1", "label": "good" if i % 4 else "bad"} for i in range(count)]


def _write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return _write(tmp_path / "reviews.jsonl", _rows())


def test_batches_hold_every_example_once_with_its_own_words(data: Path) -> None:
    task = TextClassification.load(data, tokenizer=_tokenizer())
    assert task.splits == ("train", "validation", "test")
    assert task.id2label == {0: "bad", 1: "good"}
    assert task.label2id == {"bad": 0, "good": 1}
    for seed in (None, 0):
        seen: dict[int, tuple[int, int]] = {}
        for batch in task.batches("train", 8, seed=seed):
            assert batch.labels is not None
            assert {tensor.dtype for tensor in batch.inputs.values()} == {torch.int64}
            assert batch.inputs.keys() == {"input_ids", "token_type_ids", "attention_mask"}
            for row, mask, label, index in zip(
                batch.inputs["input_ids"], batch.inputs["attention_mask"], batch.labels, batch.indices, strict=True
            ):
                tokens = row[mask.bool()]
                assert tokens[0] == CLS
                assert tokens[-1] == SEP
                assert row[~mask.bool()].eq(0).all()
                word = int(tokens[1]) - 4
                assert len(tokens) == 2 + 1 + word % 7
                seen[int(index)] = (word, int(label))
        assert sorted(seen) == list(range(task.size("train")))
        assert all(label == (word % 4 > 0) for word, label in seen.values())


def test_batches_are_functions_of_their_arguments(data: Path) -> None:
    task = TextClassification.load(data, tokenizer=_tokenizer())
    again = TextClassification.load(data, tokenizer=_tokenizer())
    for seed in (None, 3):
        for one, two in zip(task.batches("train", 8, seed=seed), again.batches("train", 8, seed=seed), strict=True):
            assert torch.equal(one.indices, two.indices)
            assert torch.equal(one.inputs["input_ids"], two.inputs["input_ids"])
    chosen = [5, 1, 9]
    assert sorted(int(i) for b in task.batches("train", 2, indices=chosen) for i in b.indices) == sorted(chosen)
    with pytest.raises(ValueError, match="the data have no extra split; use one of train, validation, test"):
        list(task.batches("extra", 8))


def test_pairs_truncation_and_left_padding(data: Path) -> None:
    tokenizer = _tokenizer(padding_side="left")
    task = TextClassification.load(data, tokenizer=tokenizer, pair="other", max_length=7)
    batch = next(task.batches("train", 8))
    assert batch.inputs["input_ids"].shape == (8, 7)
    assert batch.inputs["token_type_ids"].max() == 1
    shortest = next(task.batches("train", task.size("train"))).inputs["attention_mask"][-1].tolist()
    assert shortest == sorted(shortest)
    assert shortest[0] == 0
    summary = task.summary().splits["train"]
    assert summary.max_tokens == 7
    lengths = [1 + i % 7 + 2 + 3 for i in range(100)]
    whole = sum(s.truncated_share * s.examples for s in task.summary().splits.values())
    assert round(whole) == sum(length > 7 for length in lengths)


def test_a_tokenizer_without_type_ids_or_limit(data: Path) -> None:
    tokenizer = _tokenizer(model_input_names=["input_ids", "attention_mask"], model_max_length=10**30)
    batch = next(TextClassification.load(data, tokenizer=tokenizer).batches("test", 4))
    assert batch.inputs.keys() == {"input_ids", "attention_mask"}
    with pytest.raises(ValueError, match="no padding token"):
        TextClassification.load(data, tokenizer=_tokenizer(pad_token=None))


def test_loss_weights_classes_and_skips_the_unlabelled(data: Path) -> None:
    task = TextClassification.load(data, tokenizer=_tokenizer(), class_weights="balanced")
    train = [int(label) for batch in task.batches("train", 8) if batch.labels is not None for label in batch.labels]
    weights = compute_class_weight("balanced", classes=np.array([0, 1]), y=train)
    logits = torch.tensor([[1.0, -1.0], [0.5, 2.0], [0.0, 3.0]], requires_grad=True)
    labels = torch.tensor([0, 0, UNLABELLED])
    losses = [-float(torch.log_softmax(logits.detach().double(), -1)[i, int(labels[i])]) for i in range(2)]
    assert math.isclose(float(task.loss(logits.detach(), labels)), sum(losses) / 2, rel_tol=1e-6)
    mixed = torch.tensor([0, 1, UNLABELLED])
    other = -float(torch.log_softmax(logits.detach().double(), -1)[1, 1])
    expected = (weights[0] * losses[0] + weights[1] * other) / weights.sum()
    assert math.isclose(float(task.loss(logits.detach(), mixed)), expected, rel_tol=1e-6)
    nothing = task.loss(logits, torch.full((3,), UNLABELLED))
    (gradient,) = torch.autograd.grad(nothing, logits)
    assert float(nothing.detach()) == 0.0
    assert not gradient.any()


def test_error_is_one_minus_the_metric_and_ignores_the_unlabelled(data: Path) -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    labels = torch.tensor([0, 1, 0, UNLABELLED])
    errors = {}
    for metric in ("accuracy", "f1", "matthews"):
        task = TextClassification.load(data, tokenizer=_tokenizer(), metric=metric)
        errors[metric] = task.error(logits, labels)
        assert errors[metric] == 1 - task.metrics(logits, labels)[metric]
    assert errors == pytest.approx({"accuracy": 1 / 3, "f1": 1 / 3, "matthews": 0.5})
    assert task.standard_error(logits, labels) > 0


def test_settings_open_the_same_task_again(data: Path) -> None:
    options = {"pair": "other", "limit": 20, "max_length": 8, "metric": "f1", "class_weights": "balanced", "seed": 3}
    task = TextClassification.load(data, tokenizer=_tokenizer(), **options)  # type: ignore[arg-type]
    stored = json.loads(json.dumps(task.settings.to_json()))
    again = TextClassification.open(TaskSettings.from_json(stored), _tokenizer())
    assert again.settings == task.settings
    assert again.fingerprint == task.fingerprint
    assert task.size("train") == 20
    with pytest.raises(ValueError, match=r"task settings do not know \['colour'\]"):
        TaskSettings.from_json({**stored, "colour": "red"})


def test_hashes_follow_content_not_paths(data: Path, tmp_path: Path) -> None:
    task = TextClassification.load(data, tokenizer=_tokenizer())
    copy = TextClassification.load(_write(tmp_path / "copy.jsonl", _rows()), tokenizer=_tokenizer())
    assert copy.fingerprint == task.fingerprint
    changed = [{**row, "label": "bad"} if row["text"] == _text(42) else row for row in _rows()]
    different = TextClassification.load(_write(tmp_path / "copy.jsonl", changed), tokenizer=_tokenizer())
    assert different.fingerprint != task.fingerprint
    shorter = TextClassification.load(data, tokenizer=_tokenizer(), max_length=4)
    assert shorter.data_hash("train") != task.data_hash("train")
    assert TextClassification.load(data, tokenizer=_tokenizer(), metric="f1").fingerprint != task.fingerprint


def test_summary_and_quantiles(data: Path, tmp_path: Path) -> None:
    rows = [*_rows(), _rows()[3], {"text": " ", "other": "", "label": "bad"}]
    task = TextClassification.load(_write(tmp_path / "more.jsonl", rows), tokenizer=_tokenizer())
    summary = task.summary()
    assert summary.dropped == {"repeats": 1, "empty text": 1}
    assert sum(split.examples for split in summary.splits.values()) == 100
    assert summary.splits["train"].labels == {"bad": 21, "good": 59}
    quantiles = task.length_quantiles("train", 5)
    assert list(quantiles) == sorted(quantiles)
    assert task.length_quantiles("train", 1)[0] == 6
    with pytest.raises(ValueError, match="n must be positive"):
        task.length_quantiles("train", 0)


def test_unlabelled_text_needs_and_uses_a_head(data: Path) -> None:
    with pytest.raises(ValueError, match="unlabelled text needs a checkpoint with a classification head"):
        TextClassification.load(data, tokenizer=_tokenizer(), label=None)
    task = TextClassification.load(data, tokenizer=_tokenizer(), label=None, labels=["no", "yes"])
    assert all(batch.labels is None for batch in task.batches("train", 8))
    assert task.num_labels == 2
    guesses = {split: [i % 2 for i in range(task.size(split))] for split in task.splits}
    taught = task.labelled_by(guesses)
    batch = next(taught.batches("validation", 4))
    assert batch.labels is not None
    assert batch.labels.tolist() == [i % 2 for i in batch.indices.tolist()]
    assert taught.data_hash("train") != task.data_hash("train")
    with pytest.raises(ValueError, match="needs as many predictions, got 0"):
        task.labelled_by({**guesses, "train": []})


def test_partly_labelled_text_keeps_its_labels(tmp_path: Path) -> None:
    rows = [{**row, "label": ""} if i < 40 else row for i, row in enumerate(_rows())]
    task = TextClassification.load(_write(tmp_path / "part.jsonl", rows), tokenizer=_tokenizer())
    assert sum(split.unlabelled for split in task.summary().splits.values()) == 40
    taught = task.labelled_by({split: [0] * task.size(split) for split in task.splits})
    assert sum(split.labels["good"] for split in taught.summary().splits.values()) == 45


def test_training_looks_at_the_examples_that_have_a_label(tmp_path: Path) -> None:
    """Also where validation begins with more unlabelled texts than are looked at; where all are labelled, the first."""
    rows = [{**row, "label": ""} if i < 12 else row for i, row in enumerate(_rows(30))]
    paths = {"train": _write(tmp_path / "a.jsonl", _rows(60)[30:]), "validation": _write(tmp_path / "b.jsonl", rows)}
    labelled = {**paths, "validation": _write(tmp_path / "c.jsonl", _rows(90)[60:])}
    for data, expected in ((paths, [12, 13, 14]), (labelled, [0, 1, 2])):
        task = TextClassification.load(data, tokenizer=_tokenizer())
        looking = SimpleNamespace(task=task, settings=TuneSettings(steps=1, watched_examples=3))
        assert Tuner._watched_examples(cast(Any, looking)) == expected


def test_an_unlabelled_training_split_beside_labelled_validation(tmp_path: Path) -> None:
    plain = [{"text": row["text"]} for row in _rows(50)]
    paths = {
        "train": _write(tmp_path / "a.jsonl", plain),
        "validation": _write(tmp_path / "b.jsonl", _rows()[50:]),
    }
    task = TextClassification.load(paths, tokenizer=_tokenizer(), labels=["bad", "good"])
    assert task.splits == ("train", "validation")
    assert next(task.batches("train", 4)).labels is None
    assert next(task.batches("validation", 4)).labels is not None
    with pytest.raises(ValueError, match="class_weights need labelled training rows"):
        TextClassification.load(paths, tokenizer=_tokenizer(), labels=["bad", "good"], class_weights="balanced")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "bleu"}, "unknown metric 'bleu'; use one of accuracy, f1, matthews"),
        ({"class_weights": "odd"}, "class_weights must be balanced or left out, got 'odd'"),
        ({"max_length": 0}, "max_length must be positive, got 0"),
        ({"limit": -1}, "limit must be positive, got -1"),
        ({"text": "body"}, r"reviews.jsonl has no column 'body'; its columns are \['text', 'other', 'label'\]"),
        ({"label": "class"}, r"reviews.jsonl has no column 'class'"),
        ({"label": "other"}, "column 'other' of .*reviews.jsonl holds 100 different values in 100 rows"),
        ({"labels": ["x", "y"]}, r"column 'label' of .*reviews.jsonl holds \['bad', 'good'\], which the classes"),
        ({"labels": ["x"]}, r"classification needs two classes or more, got \['x'\]"),
    ],
)
def test_unusable_arguments_are_named(data: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        TextClassification.load(data, tokenizer=_tokenizer(), **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("labels", [None, ["bad", "good"]])
def test_one_class_only_and_too_few_rows_are_refused(tmp_path: Path, labels: list[str] | None) -> None:
    rows = [{**row, "label": "good"} for row in _rows()]
    with pytest.raises(ValueError, match=r"must hold two classes or more, got \['good'\]"):
        TextClassification.load(_write(tmp_path / "one.jsonl", rows), tokenizer=_tokenizer(), labels=labels)
    few = _write(tmp_path / "few.jsonl", _rows(2))
    with pytest.raises(ValueError, match=r"few\.jsonl: no rows are left for validation"):
        TextClassification.load(few, tokenizer=_tokenizer(), labels=labels)


def test_batches_move_and_count(data: Path) -> None:
    batch = next(TextClassification.load(data, tokenizer=_tokenizer()).batches("train", 8))
    moved = batch.to("meta")
    assert len(batch) == len(moved) == 8
    assert moved.inputs["input_ids"].device.type == "meta"
    assert moved.labels is not None
    assert moved.labels.device.type == "meta"
    assert moved.indices.device.type == "cpu"
