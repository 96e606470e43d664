"""Decide which examples share a batch, and pad them.

Padding costs time, so examples of like length share a batch. Floating-point results depend on a batch's shape in
their last bits; therefore both orders are functions of their arguments alone.

Shape suffixes: B examples, T tokens.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

POOL_BATCHES = 50
"""Batches' worth of shuffled examples that are sorted by length together."""

LENGTH_MULTIPLE = 4
"""Lengths are rounded up to this: a quarter of the shapes for allocators and kernels, little more padding."""


def evaluation_order(lengths: Sequence[int], indices: Sequence[int], batch_size: int) -> list[list[int]]:
    """Batches of indices from the longest example to the shortest, ties in the order of the index.

    The longest first, so that a run that does not fit into memory fails at once.
    """
    return _chunks(sorted(indices, key=lambda i: (-lengths[i], i)), batch_size)


def training_order(lengths: Sequence[int], indices: Sequence[int], batch_size: int, seed: int) -> list[list[int]]:
    """Batches of indices in random order: shuffled, sorted by length within pools, and the batches shuffled again.

    Every index appears once; only the last batch of a pool may be smaller than `batch_size`.
    """
    rng = random.Random(seed)
    shuffled = sorted(indices)
    rng.shuffle(shuffled)
    pools = _chunks(shuffled, POOL_BATCHES * batch_size)
    batches = [batch for pool in pools for batch in _chunks(sorted(pool, key=lambda i: lengths[i]), batch_size)]
    rng.shuffle(batches)
    return batches


def padded_length(longest: int, max_length: int) -> int:
    """The length a batch is padded to: a multiple of `LENGTH_MULTIPLE`, unless that exceeds what the model takes."""
    return min(-(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, max(longest, max_length))


def pad(
    rows: Mapping[str, Sequence[Sequence[int]]], fill: Mapping[str, int], length: int, side: str
) -> dict[str, Tensor]:
    """Tensors [B, T] int64 by name, filled up on a side (``left`` or ``right``) with each name's fill value."""
    import torch

    return {
        name: torch.tensor([_padded(row, fill[name], length, side) for row in values], dtype=torch.int64)
        for name, values in rows.items()
    }


def _padded(row: Sequence[int], fill: int, length: int, side: str) -> list[int]:
    padding = [fill] * (length - len(row))
    return [*padding, *row] if side == "left" else [*row, *padding]


def _chunks(items: Sequence[int], size: int) -> list[list[int]]:
    if size < 1:
        raise ValueError(f"batch_size must be positive, got {size}")
    return [list(items[i : i + size]) for i in range(0, len(items), size)]
