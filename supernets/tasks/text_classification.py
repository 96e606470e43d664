"""Classify one text, or a pair of texts. Shape suffixes: N examples of a split, B of a batch, C classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from studies.records import content_hash
from supernets.data.batching import evaluation_order, pad, padded_length, training_order
from supernets.data.data_sets import read_data_set
from supernets.data.encoding import EncodedSplit, encode, length_limit, padding_values
from supernets.data.labels import class_names, label_ids, require_two_classes
from supernets.data.metrics import METRICS, Counts, confusion, jackknife_error
from supernets.data.splits import Example, examples_of, sample, separate, split_examples
from supernets.data.table_files import Table
from supernets.task import SPLITS, TRAIN, UNLABELLED, VALIDATION, Batch, SplitSummary, Task, TaskSettings, TaskSummary

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


class TextClassification(Task):
    """Sentences or pairs of them, cross entropy, and accuracy, F1 or Matthews correlation.

    Made by `load` or `open`. `supernets.data.splits` states the default split and what happens to duplicates.
    """

    def __init__(
        self,
        settings: TaskSettings,
        labels: tuple[str, ...],
        encoded: Mapping[str, EncodedSplit],
        dropped: Mapping[str, int],
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self.settings = settings
        self.labels = labels
        self._encoded = encoded
        self._dropped = dropped
        self._tokenizer = tokenizer
        self._fill = padding_values(tokenizer)
        self._max_length = settings.max_length or length_limit(tokenizer)
        self._hashes: dict[str, str] = {}

    @classmethod
    def load(
        cls,
        data: Path | str | Mapping[str, Path | str],
        *,
        tokenizer: PreTrainedTokenizerBase,
        text: str = "text",
        pair: str | None = None,
        label: str | None = "label",
        labels: Sequence[str] | None = None,
        max_length: int | None = None,
        metric: str = "accuracy",
        class_weights: str | None = None,
        limit: int | None = None,
        seed: int = 0,
    ) -> TextClassification:
        """Read, split and tokenise a data set; the arguments are those of `TaskSettings`.

        Args:
            data: what `supernets.data.data_sets.read_data_set` takes.
            pair: column of the second text, for pairs.
            labels: classes of a checkpoint's head in id order; required where `label` is None.

        Raises:
            ValueError: the data or an argument cannot be used; the message says what to change.
        """
        paths = {split: str(path) for split, path in data.items()} if isinstance(data, Mapping) else str(data)
        settings = TaskSettings(
            kind="text-classification",
            data=paths,
            text=(text,) if pair is None else (text, pair),
            label=label,
            labels=None if labels is None else tuple(labels),
            max_length=max_length,
            metric=metric,
            class_weights=class_weights,
            limit=limit,
            seed=seed,
        )
        return cls.open(settings, tokenizer)

    @classmethod
    def open(cls, settings: TaskSettings, tokenizer: PreTrainedTokenizerBase) -> TextClassification:
        """Read, split and tokenise the data set that the settings name. ValueError if it cannot be used."""
        _validate(settings)
        tables = separate(read_data_set(settings.data))
        examples, dropped = _examples(tables, settings)
        path = next(iter(tables.values())).source
        source = f"column {settings.label!r} of {path}"
        given = {split: [example.label for example in rows] for split, rows in examples.items()}
        labels = _labels(given, settings, source)
        for split in (TRAIN, VALIDATION):
            if not examples[split]:
                raise ValueError(f"{path}: no rows are left for {split} (dropped: {dropped or 0}); give more rows")
        max_length = settings.max_length or length_limit(tokenizer)
        everything = {label for of_split in given.values() for label in of_split}
        encoded: dict[str, EncodedSplit] = {}
        for split in SPLITS:
            if kept := sample(examples.get(split, ()), settings.limit, settings.seed):
                ids = label_ids((example.label for example in kept), labels, source, everything)
                encoded[split] = encode([example.texts for example in kept], ids, tokenizer, max_length)
        return cls(settings, labels, encoded, dropped, tokenizer)

    def labelled_by(self, predictions: Mapping[str, Sequence[int]]) -> TextClassification:
        """The same task with a teacher's answers, split → class ids in order, where examples have no label.

        `error` then counts disagreement with the teacher on what was unlabelled.
        """
        encoded = {
            split: replace(old, labels=_filled(old.labels, predictions[split])) for split, old in self._encoded.items()
        }
        return TextClassification(self.settings, self.labels, encoded, self._dropped, self._tokenizer)

    @property
    def splits(self) -> tuple[str, ...]:
        """The non-empty splits, in the order train, validation, test."""
        return tuple(self._encoded)

    def size(self, split: str) -> int:
        """Examples in a split."""
        return len(self._split(split).labels)

    def data_hash(self, split: str) -> str:
        """Identity of the token ids, labels and metric of a split."""
        if split not in self._hashes:
            encoded = self._split(split)
            self._hashes[split] = content_hash([dict(encoded.inputs), list(encoded.labels), self.settings.metric])
        return self._hashes[split]

    def batches(
        self, split: str, batch_size: int, *, seed: int | None = None, indices: Sequence[int] | None = None
    ) -> Iterator[Batch]:
        """Every example exactly once, like lengths together (see `supernets.data.batching`).

        Args:
            seed: shuffles, for training; None gives the fixed order for evaluation, longest first.
            indices: positions in the split, to use a part of it.
        """
        encoded = self._split(split)
        chosen = range(len(encoded.labels)) if indices is None else indices
        if seed is None:
            order = evaluation_order(encoded.lengths, chosen, batch_size)
        else:
            order = training_order(encoded.lengths, chosen, batch_size, seed)
        return (self._collate(encoded, batch) for batch in order)

    def loss(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """Mean cross entropy over the labelled examples, weighted by class if asked for; 0 if none is labelled."""
        if not bool((labels_B != UNLABELLED).any()):
            return logits_BC.sum() * 0.0
        weights_C = None if self._class_weights is None else logits_BC.new_tensor(self._class_weights)
        return functional.cross_entropy(logits_BC, labels_B, weight=weights_C, ignore_index=UNLABELLED)

    def metrics(self, logits_NC: Tensor, labels_N: Tensor) -> dict[str, float]:
        """Accuracy, F1 (of class 1 for two classes, macro for more) and Matthews correlation."""
        counts_CC = self._confusion(logits_NC, labels_N)
        return {name: metric(counts_CC) for name, metric in METRICS.items()}

    def standard_error(self, logits_NC: Tensor, labels_N: Tensor) -> float:
        """Jackknife standard error of the chosen metric."""
        return jackknife_error(METRICS[self.settings.metric], self._confusion(logits_NC, labels_N))

    def length_quantiles(self, split: str, n: int = 5) -> tuple[int, ...]:
        """The lengths in the middle of `n` equal shares of a split, in tokens, ascending."""
        if n < 1:
            raise ValueError(f"n must be positive, got {n}")
        lengths = sorted(self._split(split).lengths)
        return tuple(lengths[(2 * i + 1) * len(lengths) // (2 * n)] for i in range(n))

    def summary(self) -> TaskSummary:
        """Label balance, lengths and dropped rows."""
        splits = {split: self._summary(encoded) for split, encoded in self._encoded.items()}
        return TaskSummary(splits=splits, dropped=self._dropped)

    def _summary(self, encoded: EncodedSplit) -> SplitSummary:
        counts = Counter(encoded.labels)
        return SplitSummary(
            examples=len(encoded.labels),
            labels={name: counts[i] for i, name in enumerate(self.labels)},
            unlabelled=counts[UNLABELLED],
            truncated_share=fmean(length > self._max_length for length in encoded.full_lengths),
            mean_tokens=fmean(encoded.lengths),
            max_tokens=max(encoded.lengths),
        )

    def _split(self, split: str) -> EncodedSplit:
        if split not in self._encoded:
            raise ValueError(f"the data have no {split} split; use one of {', '.join(self._encoded)}")
        return self._encoded[split]

    def _collate(self, encoded: EncodedSplit, batch: Sequence[int]) -> Batch:
        rows = {name: [values[i] for i in batch] for name, values in encoded.inputs.items()}
        rows["attention_mask"] = [[1] * len(ids) for ids in rows["input_ids"]]
        length = padded_length(max(encoded.lengths[i] for i in batch), self._max_length)
        return Batch(
            inputs=pad(rows, self._fill, length, self._tokenizer.padding_side),
            labels=torch.tensor([encoded.labels[i] for i in batch]) if encoded.has_labels else None,
            indices=torch.tensor(batch),
        )

    @cached_property
    def _class_weights(self) -> list[float] | None:
        """``N / (classes that occur * examples of the class)``, so that every class weighs the same; else None."""
        if self.settings.class_weights is None:
            return None
        occurrences = Counter(self._encoded[TRAIN].labels)
        counts = [occurrences[i] for i in range(self.num_labels)]
        share = sum(counts) / sum(count > 0 for count in counts)
        return [share / count if count else 1.0 for count in counts]

    def _confusion(self, logits_NC: Tensor, labels_N: Tensor) -> Counts:
        true_N = labels_N.cpu().numpy().astype(np.int64)
        predicted_N = logits_NC.argmax(-1).cpu().numpy().astype(np.int64)
        labelled_N = true_N != UNLABELLED
        return confusion(true_N[labelled_N], predicted_N[labelled_N], self.num_labels)


def _filled(labels: Sequence[int], predictions: Sequence[int]) -> list[int]:
    if len(labels) != len(predictions):
        raise ValueError(f"a split of {len(labels)} examples needs as many predictions, got {len(predictions)}")
    return [int(guess) if label == UNLABELLED else label for label, guess in zip(labels, predictions, strict=True)]


def _validate(settings: TaskSettings) -> None:
    if settings.metric not in METRICS:
        raise ValueError(f"unknown metric {settings.metric!r}; use one of {', '.join(METRICS)}")
    if settings.class_weights not in (None, "balanced"):
        raise ValueError(f"class_weights must be balanced or left out, got {settings.class_weights!r}")
    if len(settings.text) not in (1, 2):
        raise ValueError(f"name one text column, or two for pairs, got {list(settings.text)}")
    if settings.label is None and settings.labels is None:
        raise ValueError("unlabelled text needs a checkpoint with a classification head; name a label column")
    if settings.labels is not None and len(settings.labels) < 2:
        raise ValueError(f"classification needs two classes or more, got {list(settings.labels)}; use another head")
    for name, value in (("max_length", settings.max_length), ("limit", settings.limit)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be positive, got {value}")


def _examples(tables: Mapping[str, Table], settings: TaskSettings) -> tuple[dict[str, list[Example]], dict[str, int]]:
    """Examples by split after the duplicate rule, and reason → dropped rows."""
    first = next(iter(tables.values()))
    if settings.label and not any(any(table.columns.get(settings.label, ())) for table in tables.values()):
        first.column(settings.label)  # raises; one split with labels suffices
    read = {split: examples_of(table, settings.text, settings.label) for split, table in tables.items()}
    splits, dropped = split_examples({split: examples for split, (examples, _) in read.items()}, settings.seed)
    if empty := sum(count for _, count in read.values()):
        dropped["empty text"] = empty
    return splits, dropped


def _labels(given: Mapping[str, Sequence[str]], settings: TaskSettings, source: str) -> tuple[str, ...]:
    """The class names, of the checkpoint's head if the settings hold them."""
    if settings.class_weights is not None and not any(given[TRAIN]):
        raise ValueError("class_weights need labelled training rows; name a label column or leave them out")
    if settings.labels is None:
        return class_names(given, source)
    if any(given[TRAIN]):
        require_two_classes(given[TRAIN], source)
    return settings.labels


TASK = TextClassification
