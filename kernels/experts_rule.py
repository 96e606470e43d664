"""Which way to multiply is fastest on a CPU for one expert's rows: a rule with measured constants.

MKL and oneDNN both have weak spots when a weight matrix meets few rows, which is what every expert of a layer meets:

- ``plain``, ``x W^T`` by MKL: repacks the whole weight in every call, a cost that few rows cannot repay.
- ``skinny``, ``W x^T`` by MKL: streams the weight as it lies, which is fast for a handful of rows. One row is computed
  as two, since a matrix-vector product reads memory more slowly than a product with two columns.
- ``blocked``, ``W x^T`` by oneDNN: packs the rows instead of the weight. It is fast on multiples of `BLOCK` rows, up to
  which rows are padded; that also bounds how many shapes are compiled. A call has a higher fixed cost.

R rows, W = M*K elements of a weight with M outputs and K inputs, P = R rounded up to `BLOCK`. In nanoseconds on one
thread:

- ``plain = PLAIN[0] + W * (PLAIN[1] + PLAIN[2] * R)``
- ``skinny = SKINNY[0] + W * (SKINNY[1] + SKINNY[2] * R)``
- ``blocked = BLOCKED[0] + W * (BLOCKED[1] + BLOCKED[2] * P)``, plus ``TURN[0] + TURN[1] * R * M`` where the result,
  which is transposed, has to be turned.

Skinny is taken for up to `SKINNY_ROWS` rows as long as R*K is at most `SKINNY_INPUTS`, and for one or two rows always.
The constants are the least-squares fit to ``tests/benchmarks/results/expert_products.jsonl``; ``make bench-kernels``
checks that, and how much time the rule loses against the best form of every case.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

Form = Literal["plain", "skinny", "blocked"]
Path = Literal["expert", "grouped", "loop"]

BLOCK = 16
SKINNY_ROWS, SKINNY_INPUTS = 8, 2560
PLAIN = (10_300.0, 0.502, 0.0214)
SKINNY = (5_530.0, 0.173, 0.0444)
BLOCKED = (28_100.0, 0.321, 0.0188)
TURN = (1_010.0, 0.765)
EXPERT_CALL = 33_000.0
"""Nanoseconds that an expert costs besides its products on the path ``expert``."""


@cache
def form_for(rows: int, outputs: int, inputs: int, *, threads: int = 1, turned: bool = False) -> Form:
    """The fastest form of one product in float32.

    Args:
        rows: R, the tokens of the expert, at least 1.
        outputs: M.
        inputs: K.
        threads: intra-op threads, which share the work but not the fixed cost of a call.
        turned: whether the result is needed row by row.
    """
    if is_skinny(rows, inputs):
        return "skinny"
    plain = plain_ns(rows, outputs, inputs, threads)
    return "blocked" if blocked_ns(rows, outputs, inputs, threads, turned) < plain else "plain"


@cache
def path_for(
    tokens: int, top_k: int, experts: int, model: int, width: int, *, dtype: str = "float32", threads: int = 1
) -> Path:
    """The path of one layer.

    ``expert`` picks a form for every expert; ``grouped`` leaves both products to torch's grouped product, which is best
    where plain is the best form anyway and experts are many; ``loop`` takes every element type.

    Args:
        tokens: T.
        top_k: k.
        experts: E.
        model: D.
        width: F, the mean inner width.
        dtype: element type such as ``float32``.
        threads: intra-op threads.
    """
    if dtype != "float32":
        return "grouped" if dtype in ("bfloat16", "float16") else "loop"
    rows = max(1, round(tokens * top_k / experts))
    gains = (
        plain_ns(rows, outputs, inputs, threads) - _expected_ns(rows, outputs, inputs, threads, turned)
        for outputs, inputs, turned in ((2 * width, model, False), (model, width, True))
    )
    return "expert" if tokens == 1 or sum(max(0.0, gain) for gain in gains) > EXPERT_CALL else "grouped"


def _expected_ns(rows: int, outputs: int, inputs: int, threads: int, turned: bool) -> float:
    """Of a skinny or a blocked product, where experts get more rows or fewer: on average half a block is padding."""
    if is_skinny(rows, inputs):
        return skinny_ns(rows, outputs, inputs, threads, turned)
    return blocked_ns(rows, outputs, inputs, threads, turned, span=rows + (BLOCK - 1) / 2)


def is_skinny(rows: int, inputs: int) -> bool:
    """Whether rows are few enough for the skinny form."""
    return rows <= 2 or (rows <= SKINNY_ROWS and rows * inputs <= SKINNY_INPUTS)


def skinny_ns(rows: int, outputs: int, inputs: int, threads: int = 1, turned: bool = False) -> float:
    """Predicted nanoseconds of a skinny product; what is to be turned has a transposed input to turn, too."""
    product = SKINNY[0] + outputs * inputs * (SKINNY[1] + SKINNY[2] * rows) / threads
    return product + turned * (2 * TURN[0] + TURN[1] * rows * (inputs + outputs))


def plain_ns(rows: int, outputs: int, inputs: int, threads: int = 1) -> float:
    """Predicted nanoseconds of a plain product."""
    return PLAIN[0] + outputs * inputs * (PLAIN[1] + PLAIN[2] * rows) / threads


def blocked_ns(
    rows: int, outputs: int, inputs: int, threads: int = 1, turned: bool = False, span: float | None = None
) -> float:
    """Predicted nanoseconds of a blocked product over `span` rows with their padding; by default whole blocks."""
    span = padded(rows) if span is None else span
    product = BLOCKED[0] + outputs * inputs * (BLOCKED[1] + BLOCKED[2] * span) / threads
    return product + turned * (TURN[0] + TURN[1] * rows * outputs)


def padded(rows: int) -> int:
    """Rows rounded up to whole blocks."""
    return -(-rows // BLOCK) * BLOCK
