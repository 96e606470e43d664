"""The tables and the result that rows of the mixture-of-experts benchmark make."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean

from tests.benchmarks import moe_layouts, moe_thresholds, moe_verdicts
from tests.benchmarks.common import print_table
from tests.benchmarks.moe_bench import EVERYTHING
from tests.benchmarks.moe_jobs import Row, Rows
from tests.benchmarks.moe_operators import FULL, NONE, PART

EQUAL = 1e-4
"""Relative difference of weights up to which they count as equal in single precision."""


def report(rows: Rows) -> dict[str, object]:
    """Print tables; return what `RESULT` holds."""
    table = moe_verdicts.Table(rows.of(PART))
    layouts = list(rows.of(moe_layouts.PART))
    operators = moe_verdicts.operator_table(table)
    _print_operators(operators)
    _print_metrics(table.rows)
    _print_planted(rows.of("planted"))
    _print_top_k(rows.of("top-k"))
    _print_layouts(layouts)
    verdicts = moe_verdicts.orderings(table) | {"searched < uniform": moe_verdicts.searched_counts(layouts)}
    known = {name: verdict for name, verdict in verdicts.items() if verdict is not None}
    print_table(
        ("ordering", "difference", "low", "high", "subjects", "holds"),
        [(name, one.difference, one.low, one.high, one.subjects, one.holds) for name, one in known.items()],
    )
    holds = {name: verdict.holds for name, verdict in known.items()}
    for row in rows.of("averaging"):
        holds["sub-moe at full rank = average"] = row["difference"] < EQUAL
    wins, seeds = moe_verdicts.hypervolume_wins(layouts)
    return {
        "operators": operators,
        "orderings": holds,
        "thresholds": moe_verdicts.thresholds(rows.of(moe_thresholds.PART)),
        "hypervolume_wins": wins,
        "hypervolume_seeds": seeds,
        "half_experts_ratio_vs_best_uniform": moe_verdicts.half_ratio(table, layouts),
        "logit_difference": max((row["difference"] for row in rows.of("logits")), default=None),
        "calibration_ratio": max((row["ratio"] for row in rows.of("calibration")), default=None),
    }


def _print_operators(operators: dict[str, dict[str, float]]) -> None:
    columns = list(dict.fromkeys(column for found in operators.values() for column in found))
    lines = [(name, *(found.get(column, "") for column in columns)) for name, found in operators.items()]
    print_table(("ΔNLL, nats; experts kept, %", *columns), lines)


def _print_metrics(rows: Iterable[Row]) -> None:
    """Half the experts judged in four ways, since they need not agree."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row["scope"] == EVERYTHING and row["repair"] == NONE and row["share"] in (50, 100):
            found.setdefault(row["operator"], []).append(row)
    lines = [
        (name, fmean(fmean(row["loss"]) / 1000 for row in some), *(fmean(r[m] for r in some) for m in _METRICS))
        for name, some in found.items()
    ]
    full_first = sorted(lines, key=lambda line: (line[0] != FULL, line[1]))
    print_table(("half the experts", "NLL, nats", *_METRICS), full_first)


_METRICS = ("accuracy", "overlap", "greedy")


def _print_planted(rows: Iterable[Row]) -> None:
    lines = [
        (
            row["operator"],
            bool(row["protect"]),
            fmean(row["loss"]) / 1000 - row["full_loss"] / 1000,
            row["planted_found"],
        )
        for row in rows
    ]
    print_table(("planted super expert", "protected", "ΔNLL, nats", "found"), lines)


def _print_top_k(rows: Iterable[Row]) -> None:
    """The loss at every top-k, of the training with a fixed one and of that with a varied one."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        found.setdefault(row["subject"], {})[row["top_k"]] = fmean(row["loss"]) / 1000
    counts = sorted({top_k for losses in found.values() for top_k in losses})
    lines = [(name, *(losses.get(top_k, "") for top_k in counts)) for name, losses in found.items()]
    print_table(("NLL, nats; experts per token", *map(str, counts)), lines)


def _print_layouts(rows: Iterable[Row]) -> None:
    lines = [(row["way"], row["subject"], row["scope"], *moe_layouts.hypervolumes(row), row["half"]) for row in rows]
    print_table(("layouts", "subject", "scope", "volume by bytes", "by latency", "ΔNLL at half"), lines)
