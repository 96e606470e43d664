"""The measured table behind `kernels.experts_rule`: what each form of a product costs on weights that are not in cache.

Shapes: R rows, P rows with padding, M outputs, K inputs of one weight.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from kernels import experts_rule
from kernels.experts import product
from kernels.experts_rule import SKINNY_ROWS, Form, form_for, is_skinny, padded
from tests.benchmarks.common import RESULTS, write_rows

PATH = RESULTS / "expert_products.jsonl"
SIZES = (
    (256, 128),
    (256, 256),
    (512, 256),
    (1024, 256),
    (256, 512),
    (512, 512),
    (1024, 512),
    (1024, 1024),
    (2048, 1024),
)
ROWS = (1, 2, 3, 5, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64, 80, 128)
COLD_BYTES = 48 * 2**20
"""Weights are used in turn from more memory than a core has cache, as in a network."""
MAX_BANK = 256

Row = Mapping[str, int]


def measure(rounds: int) -> list[Row]:
    """Median thread nanoseconds of every form, and of turning a transposed result, per size and number of rows."""
    table: list[Row] = []
    with torch.inference_mode():
        for outputs, inputs in SIZES:
            count = min(MAX_BANK, -(-COLD_BYTES // (4 * outputs * inputs)))
            bank = [torch.randn(outputs, inputs) for _ in range(count)]
            for rows in ROWS:
                calls = _calls(rows, torch.randn(padded(rows), inputs), torch.empty(rows, outputs))
                table.append({"rows": rows, "outputs": outputs, "inputs": inputs, **_times(calls, bank, rounds)})
    return table


def _calls(rows: int, x_PK: Tensor, out_RM: Tensor) -> dict[str, Callable[[Tensor], object]]:
    turned_RM = torch.randn(out_RM.shape[::-1]).t()
    skinny_RK = x_PK[: max(2, rows)]
    return {
        "plain": lambda weight_MK: torch.mm(x_PK[:rows], weight_MK.t(), out=out_RM),
        "skinny": lambda weight_MK: product(weight_MK, skinny_RK, "skinny"),
        "blocked": lambda weight_MK: product(weight_MK, x_PK, "blocked"),
        "turn": lambda weight_MK: out_RM.copy_(turned_RM),
    }


def _times(calls: Mapping[str, Callable[[Tensor], object]], bank: Sequence[Tensor], rounds: int) -> dict[str, int]:
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call(bank[0])
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.thread_time_ns()
            for weight_MK in bank:
                call(weight_MK)
            samples[name].append((time.thread_time_ns() - start) / len(bank))
    return {name: round(median(values)) for name, values in samples.items()}


def stored() -> list[Row]:
    """The table that the constants were fitted to."""
    return [json.loads(line) for line in PATH.read_text().splitlines()[1:]]


def store(table: Sequence[Row]) -> None:
    """Replace the stored table."""
    write_rows(PATH, table, {"what": "nanoseconds of a float32 product on one thread, weights not in cache"})


def fit(table: Sequence[Row]) -> dict[str, tuple[float, ...]]:
    """The rule's constants by name: least squares of the relative error, none negative, three digits."""
    rows, outputs, inputs = (np.array([row[name] for row in table], float) for name in ("rows", "outputs", "inputs"))
    weights, span = outputs * inputs, np.array([padded(row["rows"]) for row in table])
    ones, many = np.ones(len(table)), rows > SKINNY_ROWS / 2
    few = np.array([is_skinny(row["rows"], row["inputs"]) for row in table])
    terms = {
        "plain": (many, [ones, weights, weights * rows]),
        "skinny": (few, [ones, weights, weights * rows]),
        "blocked": (many, [ones, weights, weights * span]),
        "turn": (many, [ones, rows * outputs]),
    }
    fitted = {}
    for name, (used, columns) in terms.items():
        target = np.array([row[name] for row in table], float)[used]
        solution = nnls(np.stack(columns, 1)[used] / target[:, None], np.ones(len(target)))[0]
        fitted[name.upper()] = tuple(float(f"{value:.3g}") for value in solution)
    return fitted


def in_use() -> dict[str, tuple[float, ...]]:
    """The constants as the rule has them."""
    return {name: getattr(experts_rule, name) for name in ("PLAIN", "SKINNY", "BLOCKED", "TURN")}


def regret(table: Sequence[Row], always: Form | None = None) -> float:
    """Time of the rule's forms, or of one form throughout, over that of the best of every case: geometric mean."""
    logs = []
    for row in table:
        form = always or form_for(row["rows"], row["outputs"], row["inputs"])
        logs.append(np.log(row[form] / min(row["plain"], row["skinny"], row["blocked"])))
    return float(np.exp(np.mean(logs)))
