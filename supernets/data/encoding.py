"""Texts as token ids: tokenised once, truncated where the model needs it, padded batch by batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from supernets.task import UNLABELLED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_MAX_LENGTH = 512
"""Longest input in tokens where neither the user nor the tokenizer states a limit."""

LARGEST_STATED_LIMIT = 1_000_000
"""Tokenizers without a limit state an astronomical one."""

TokenIds = list[list[int]]


@dataclass(frozen=True)
class EncodedSplit:
    """The tokenised examples of one split, lists of equal length.

    Attributes:
        inputs: model argument → ids of each example, one a token; always ``input_ids``.
        labels: class ids, `UNLABELLED` where unknown.
        full_lengths: tokens before truncation.
    """

    inputs: Mapping[str, TokenIds]
    labels: Sequence[int]
    full_lengths: Sequence[int]

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens after truncation."""
        return [len(ids) for ids in self.inputs["input_ids"]]

    @cached_property
    def has_labels(self) -> bool:
        """Whether any example is labelled."""
        return any(label != UNLABELLED for label in self.labels)


def encode(
    texts: Sequence[tuple[str, ...]], labels: Sequence[int], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> EncodedSplit:
    """Tokenise without truncation, to learn the true lengths, and then again what exceeds `max_length`."""
    inputs = _tokenise(texts, tokenizer, None)
    full_lengths = [len(ids) for ids in inputs["input_ids"]]
    long = [i for i, length in enumerate(full_lengths) if length > max_length]
    if long:
        for name, rows in _tokenise([texts[i] for i in long], tokenizer, max_length).items():
            for i, row in zip(long, rows, strict=True):
                inputs[name][i] = row
    return EncodedSplit(inputs, labels, full_lengths)


def _tokenise(
    texts: Sequence[tuple[str, ...]], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> dict[str, TokenIds]:
    columns: list[Any] = [list(column) for column in zip(*texts, strict=True)]
    encoding = tokenizer(
        *columns,
        truncation=max_length is not None,
        max_length=max_length,
        return_attention_mask=False,
        verbose=False,
    )
    return {name: list(rows) for name, rows in encoding.items()}


def length_limit(tokenizer: PreTrainedTokenizerBase) -> int:
    """The longest input a tokenizer states, or `DEFAULT_MAX_LENGTH` if it states none."""
    stated = int(tokenizer.model_max_length)
    return stated if stated < LARGEST_STATED_LIMIT else DEFAULT_MAX_LENGTH


def padding_values(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Model argument → what its padding is. ValueError if the tokenizer cannot pad."""
    if tokenizer.pad_token_id is None:
        raise ValueError("the tokenizer has no padding token; set tokenizer.pad_token and the model's pad_token_id")
    return {
        "input_ids": int(tokenizer.pad_token_id),
        "token_type_ids": int(tokenizer.pad_token_type_id),
        "attention_mask": 0,
    }
