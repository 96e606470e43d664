"""Guess the words that are masked in plain text: what a supernet learns before it is fine-tuned for any task.

A share of every text's tokens is replaced by the mask token (Devlin et al., BERT, arXiv 1810.04805; always by that
token, which Wettig et al., arXiv 2202.08005, found no worse than BERT's mixture). Words are scored by the product of
the last hidden state with the input embeddings (Press and Wolf, arXiv 1608.05859), so that the network has no
parameters that a classifier lacks; a classification head stays untrained.

Shape suffixes: B examples of a batch, T tokens, D hidden size, M masked tokens of a batch, V words of the vocabulary, N
examples of a split.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from studies.records import content_hash
from supernets.supernet import Supernet
from supernets.task import UNLABELLED, Batch, Task, TaskSettings, TaskSummary
from supernets.tasks.text_classification import TextClassification

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MASKED_SHARE = 0.15
NO_CLASSES = ("0", "1")
"""Of a head that nothing trains."""


class MaskedLanguageModelling(Task):
    """Plain text, cross entropy of the masked words, and the share of them that is guessed."""

    trains_head = False

    def __init__(self, texts: TextClassification, settings: TaskSettings, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.mask_token_id is None:
            raise ValueError("masked language modelling needs a tokenizer with a mask token; this one has none")
        self.settings, self.labels = settings, texts.labels
        self._texts = texts
        self._mask = int(tokenizer.mask_token_id)
        self._kept = torch.tensor(sorted(set(tokenizer.all_special_ids)))

    @classmethod
    def open(cls, settings: TaskSettings, tokenizer: PreTrainedTokenizerBase) -> MaskedLanguageModelling:
        """Read and tokenise the texts the settings name; labels are ignored. ValueError if they cannot be used."""
        if settings.metric != "accuracy":
            raise ValueError(f"masked language modelling is judged by accuracy, got the metric {settings.metric!r}")
        plain = replace(settings, label=None, labels=settings.labels or NO_CLASSES, class_weights=None)
        return cls(TextClassification.open(plain, tokenizer), settings, tokenizer)

    @property
    def splits(self) -> tuple[str, ...]:
        """The non-empty splits."""
        return self._texts.splits

    def size(self, split: str) -> int:
        """Texts in a split."""
        return self._texts.size(split)

    def data_hash(self, split: str) -> str:
        """Identity of the tokens and of which are masked."""
        return content_hash([self._texts.data_hash(split), MASKED_SHARE, self.settings.seed])

    def batches(
        self, split: str, batch_size: int, *, seed: int | None = None, indices: Sequence[int] | None = None
    ) -> Iterator[Batch]:
        """Every text once, with the ids of its masked words as labels [M]; other words with every training seed."""
        for batch in self._texts.batches(split, batch_size, seed=seed, indices=indices):
            yield self._masked(batch, f"{self.settings.seed}:{split}:{seed}")

    def _masked(self, batch: Batch, epoch: str) -> Batch:
        ids_BT = batch.inputs["input_ids"]
        free_BT = batch.inputs["attention_mask"].bool() & ~torch.isin(ids_BT, self._kept)
        chosen_BT = torch.zeros_like(free_BT)
        for row, index in enumerate(batch.indices.tolist()):
            places = free_BT[row].nonzero()[:, 0].tolist()
            count = min(len(places), max(1, round(MASKED_SHARE * len(places))))
            chosen_BT[row, random.Random(f"{epoch}:{index}").sample(places, count)] = True
        hidden_BT = ids_BT.masked_fill(chosen_BT, self._mask)
        words_BT = ids_BT.masked_fill(~chosen_BT, UNLABELLED)
        inputs = {**batch.inputs, "input_ids": hidden_BT}
        return Batch(inputs=inputs, labels=words_BT[hidden_BT == self._mask], indices=batch.indices)

    def logits(self, network: Any, batch: Batch) -> Tensor:
        """Scores of all words at the masked tokens [M, V], text by text."""
        model: Any = network.model if isinstance(network, Supernet) else network
        hidden_BTD = model.base_model(**batch.inputs).last_hidden_state
        hidden_MD = hidden_BTD[batch.inputs["input_ids"] == self._mask]
        embedding_VD = model.get_input_embeddings().weight
        return F.linear(hidden_MD, embedding_VD).float()

    def answers(self, network: Any, batch: Batch) -> tuple[Tensor, None]:
        """Masked tokens of every text that were guessed, and all of them, [B, 2]."""
        assert batch.labels is not None
        masked_BT = batch.inputs["input_ids"] == self._mask
        known_M = batch.labels != UNLABELLED
        right_M = (self.logits(network, batch).argmax(-1) == batch.labels) & known_M
        counts_BT2 = torch.zeros(*masked_BT.shape, 2, device=right_M.device)
        counts_BT2[masked_BT] = torch.stack([right_M, known_M], dim=-1).float()
        return counts_BT2.sum(1), None

    def loss(self, logits_MV: Tensor, labels_M: Tensor) -> Tensor:
        """Mean cross entropy of the masked words; 0 if there are none."""
        if not bool((labels_M != UNLABELLED).any()):
            return logits_MV.sum() * 0.0
        return F.cross_entropy(logits_MV, labels_M, ignore_index=UNLABELLED)

    def metrics(self, counts_N2: Tensor, labels_N: Tensor) -> dict[str, float]:
        """The share of masked words that is guessed."""
        right, known = counts_N2.double().sum(0).tolist()
        return {"accuracy": right / max(known, 1.0)}

    def standard_error(self, counts_N2: Tensor, labels_N: Tensor) -> float:
        """Of that share, over the sampling of texts (ratio estimator)."""
        right_N, known_N = counts_N2.double().unbind(1)
        residual_N = right_N - self.metrics(counts_N2, labels_N)["accuracy"] * known_N
        return float(residual_N.square().sum().sqrt() / known_N.sum().clamp(min=1.0))

    def length_quantiles(self, split: str, n: int = 5) -> tuple[int, ...]:
        """The lengths in the middle of `n` equal shares of a split, in tokens."""
        return self._texts.length_quantiles(split, n)

    def summary(self) -> TaskSummary:
        """Lengths and dropped rows; no text counts as unlabelled, since every text is its own label."""
        summary = self._texts.summary()
        splits = {split: replace(found, unlabelled=0) for split, found in summary.splits.items()}
        return replace(summary, splits=splits)

    def labelled_by(self, predictions: Mapping[str, Sequence[int]]) -> MaskedLanguageModelling:
        """The task itself."""
        return self


TASK = MaskedLanguageModelling
