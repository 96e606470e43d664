"""Predict the next token of text, cut into blocks of one length.

Documents of unsplit data are put in an order that depends on their text and the seed alone, joined with the tokenizer's
end token, and cut into blocks: the last tenth of the blocks is the test split, the tenth before it validation. Repeated
documents are used once, and a training block that is also held out is dropped. Given splits stay as they are, except
that without validation the last tenth of training becomes it.

Shape suffixes: N blocks of a split, B of a batch, T tokens of a block, V vocabulary, O outcomes.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from studies.records import content_hash
from supernets.data.batching import evaluation_order, training_order
from supernets.data.data_sets import WHOLE
from supernets.data.encoding import DEFAULT_MAX_LENGTH, length_limit
from supernets.data.splits import HELD_OUT_SHARE
from supernets.data.text_files import read_corpus
from supernets.task import (
    SPLITS,
    TEST,
    TRAIN,
    UNLABELLED,
    VALIDATION,
    Batch,
    SplitSummary,
    Task,
    TaskSettings,
    TaskSummary,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

METRICS = ("accuracy", "nll", "perplexity")
"""Share of tokens predicted, mean negative log likelihood in nats per token, and its exponential."""
NLL, TOKENS, CORRECT = range(3)
"""Columns of the outcomes: per block its summed negative log likelihood, predicted tokens, correct ones."""


class LanguageModelling(Task):
    """Text files, folders or tables; next-token cross entropy. `labels` of a batch are its tokens, not yet shifted.

    `error` is the negative log likelihood or the perplexity where that is the metric, else one minus the accuracy.
    """

    usual_length = DEFAULT_MAX_LENGTH

    labels: tuple[str, ...] = ()

    def __init__(self, settings: TaskSettings, blocks: Mapping[str, Tensor], dropped: Mapping[str, int]) -> None:
        self.settings = settings
        self._blocks = blocks
        self._dropped = dropped

    @classmethod
    def open(cls, settings: TaskSettings, tokenizer: PreTrainedTokenizerBase) -> LanguageModelling:
        """Read, tokenise and cut the text that the settings name. ValueError if it cannot be used.

        `TaskSettings.max_length` is the tokens of a block; by default the tokenizer's limit, `DEFAULT_MAX_LENGTH` at
        most. `TaskSettings.limit` counts blocks.
        """
        length = _validated_length(settings, tokenizer)
        corpus, repeats = _without_repeats(read_corpus(settings.data, settings.text[0]), settings.seed)
        cut = {split: _blocks(texts, tokenizer, length) for split, texts in corpus.items()}
        blocks, shared = _disjoint(_held_out(cut, length))
        kept = {split: _limited(blocks[split], settings) for split in SPLITS if split in blocks}
        return cls(settings, kept, {k: n for k, n in (("repeats", repeats), ("also held out", shared)) if n})

    @property
    def splits(self) -> tuple[str, ...]:
        """Train, validation, and test if there is one."""
        return tuple(self._blocks)

    def size(self, split: str) -> int:
        """Blocks in a split."""
        return len(self._split(split))

    def data_hash(self, split: str) -> str:
        """Identity of the tokens and metric of a split."""
        ids_NT = self._split(split)
        digest = hashlib.sha256(ids_NT.numpy().tobytes()).hexdigest()
        return content_hash([list(ids_NT.shape), digest, self.settings.metric])

    def batches(
        self, split: str, batch_size: int, *, seed: int | None = None, indices: Sequence[int] | None = None
    ) -> Iterator[Batch]:
        """Every block (of `indices`, if given) exactly once: shuffled by `seed`, or in order without."""
        ids_NT = self._split(split)
        chosen = range(len(ids_NT)) if indices is None else indices
        lengths = [ids_NT.shape[1]] * len(ids_NT)
        if seed is None:
            order = evaluation_order(lengths, chosen, batch_size)
        else:
            order = training_order(lengths, chosen, batch_size, seed)
        return (Batch(inputs={"input_ids": ids_NT[i]}, labels=ids_NT[i], indices=torch.tensor(i)) for i in order)

    def loss(self, logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
        """Mean cross entropy in nats per predicted token; 0 if no token is to be predicted."""
        targets = labels_BT[:, 1:]
        if not bool((targets != UNLABELLED).any()):
            return logits_BTV.sum() * 0.0
        logits = logits_BTV[:, :-1].flatten(0, 1).float()
        return functional.cross_entropy(logits, targets.flatten(), ignore_index=UNLABELLED)

    def outcomes(self, logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
        """Three numbers a block, [B, 3] float64, in the order of `NLL`, `TOKENS` and `CORRECT`."""
        logits, targets = logits_BTV[:, :-1].float(), labels_BT[:, 1:]
        losses = functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none", ignore_index=UNLABELLED)
        counted = targets != UNLABELLED
        correct = (logits.argmax(-1) == targets) & counted
        return torch.stack([losses.double().sum(1), counted.sum(1).double(), correct.sum(1).double()], dim=1)

    def metrics(self, outcomes_NO: Tensor, labels_NT: Tensor) -> dict[str, float]:
        """The three of `METRICS`, over all tokens; larger is better only for the accuracy."""
        totals = outcomes_NO.sum(0)
        nll = float(totals[NLL] / totals[TOKENS])
        perplexity = math.exp(nll) if nll < 700 else math.inf
        return {"accuracy": float(totals[CORRECT] / totals[TOKENS]), "nll": nll, "perplexity": perplexity}

    def error(self, outcomes_NO: Tensor, labels_NT: Tensor) -> float:
        """The metric where small is good, else one minus it."""
        value = self.metrics(outcomes_NO, labels_NT)[self.settings.metric]
        return 1 - value if self.settings.metric == "accuracy" else value

    @property
    def error_unit(self) -> str:
        """Nats per token for the negative log likelihood."""
        return {"accuracy": "fraction", "nll": "nats"}.get(self.settings.metric, self.settings.metric)

    def standard_error(self, outcomes_NO: Tensor, labels_NT: Tensor) -> float:
        """Over the sampling of blocks; of the perplexity by the delta method. 0 for one block."""
        if len(outcomes_NO) < 2:
            return 0.0
        column = CORRECT if self.settings.metric == "accuracy" else NLL
        means_N = outcomes_NO[:, column] / outcomes_NO[:, TOKENS]
        spread = float(means_N.std() / math.sqrt(len(means_N)))
        slope = self.metrics(outcomes_NO, labels_NT)["perplexity"] if self.settings.metric == "perplexity" else 1.0
        return slope * spread

    def length_quantiles(self, split: str, n: int = 5) -> tuple[int, ...]:
        """All blocks have one length."""
        if n < 1:
            raise ValueError(f"n must be positive, got {n}")
        return (self._split(split).shape[1],) * n

    def summary(self) -> TaskSummary:
        """Blocks and their length; what was dropped."""
        splits = {
            split: SplitSummary(
                examples=len(ids_NT),
                labels={},
                unlabelled=0,
                truncated_share=0.0,
                mean_tokens=float(ids_NT.shape[1]),
                max_tokens=ids_NT.shape[1],
            )
            for split, ids_NT in self._blocks.items()
        }
        return TaskSummary(splits=splits, dropped=self._dropped)

    def labelled_by(self, predictions: Mapping[str, Sequence[int]]) -> LanguageModelling:
        """Text is its own label: there is nothing to fill in."""
        raise ValueError("language modelling has no labels that a teacher could give; leave the teacher out")

    def _split(self, split: str) -> Tensor:
        if split not in self._blocks:
            raise ValueError(f"the data have no {split} split; use one of {', '.join(self._blocks)}")
        return self._blocks[split]


def _validated_length(settings: TaskSettings, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of a block."""
    if settings.metric not in METRICS:
        raise ValueError(f"unknown metric {settings.metric!r}; use one of {', '.join(METRICS)}")
    if len(settings.text) != 1:
        raise ValueError(f"language modelling reads one text column, got {list(settings.text)}")
    if settings.class_weights is not None:
        raise ValueError(f"language modelling has no classes to weight; leave out {settings.class_weights!r}")
    if settings.limit is not None and settings.limit < 1:
        raise ValueError(f"limit must be positive, got {settings.limit}")
    length = settings.max_length or min(length_limit(tokenizer), DEFAULT_MAX_LENGTH)
    if length < 2:
        raise ValueError(f"max_length must be 2 tokens or more, one to read and one to predict; got {length}")
    return length


def _without_repeats(corpus: Mapping[str, Sequence[str]], seed: int) -> tuple[dict[str, list[str]], int]:
    """Unsplit documents once each, in an order that their text and the seed decide; given splits as they are."""
    if WHOLE not in corpus:
        return {split: list(texts) for split, texts in corpus.items()}, 0
    once = sorted(set(corpus[WHOLE]), key=lambda text: hashlib.blake2b(f"{seed}\t{text}".encode()).digest())
    return {WHOLE: once}, len(corpus[WHOLE]) - len(once)


def _blocks(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int) -> Tensor:
    """int64 [N, T]; what is left over at the end is not used."""
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    ids = [token for row in encoded["input_ids"] for token in (*row, *end)]
    used = len(ids) // length * length
    if not used:
        raise ValueError(
            f"the text has {len(ids)} tokens, not even one block of {length}; give more or a lower max_length"
        )
    return torch.tensor(ids[:used], dtype=torch.int64).view(-1, length)


def _held_out(cut: Mapping[str, Tensor], length: int) -> dict[str, Tensor]:
    """The default splits, by position."""
    missing = (VALIDATION, TEST) if WHOLE in cut else tuple({VALIDATION} - set(cut))
    source_NT = cut[WHOLE if WHOLE in cut else TRAIN]
    size = max(1, round(HELD_OUT_SHARE * len(source_NT)))
    left = len(source_NT) - size * len(missing)
    if left < 1:
        raise ValueError(
            f"the text makes {len(source_NT)} blocks of {length} tokens, too few to hold some out for "
            f"{' and '.join(missing)}; give more text or a lower max_length"
        )
    parts = torch.split(source_NT, [left, *[size] * len(missing)])
    return {
        **{split: ids for split, ids in cut.items() if split != WHOLE},
        **dict(zip((TRAIN, *missing), parts, strict=True)),
    }


def _disjoint(blocks: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """Without the training blocks that validation or test hold too, and validation blocks that test holds."""
    seen: set[bytes] = set()
    kept: dict[str, Tensor] = {}
    for split in (one for one in (TEST, VALIDATION, TRAIN) if one in blocks):
        keys = [row.numpy().tobytes() for row in blocks[split]]
        kept[split] = blocks[split][torch.tensor([key not in seen for key in keys])]
        seen.update(keys)
        if not len(kept[split]):
            raise ValueError(f"every block of {split} is also held out; give other text for it")
    return kept, sum(len(blocks[split]) - len(kept[split]) for split in kept)


def _limited(ids_NT: Tensor, settings: TaskSettings) -> Tensor:
    if settings.limit is None or settings.limit >= len(ids_NT):
        return ids_NT
    return ids_NT[sorted(random.Random(settings.seed).sample(range(len(ids_NT)), settings.limit))]


TASK = LanguageModelling
