"""Predictors on published latencies: our choice beside HAT's network, boosted trees and a Gaussian process.

Every split holds out a fifth of a file; training rows are the first n of the rest, so that all models see the same and
a larger n contains the smaller. One procedure for all files. The opponents but HAT's network see the raw features.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from statistics import mean
from typing import Any

import numpy as np
from scipy.stats import kendalltau
from sklearn.ensemble import GradientBoostingRegressor

from predictors.hat_csv import HatTable
from predictors.latency_choice import choose_latency_model
from predictors.log_latency import fit_log
from predictors.model import Groups, Matrix
from predictors.models import gaussian_process
from studies.records import content_hash
from tests.benchmarks.common import print_table
from tests.benchmarks.latency_parts import hat_network
from tests.benchmarks.latency_parts.kept import Kept, Row
from tests.benchmarks.race.statistics import Paired, paired

SIZES, SPLITS, HELD_OUT = (50, 100, 200, 400, 1600), 10, 0.2
SAMPLE = 6
"""Kept rows that are repeated."""
OURS, NETWORK, TREES, PROCESS = "ours", "hat-network", "boosted-trees", "gaussian-process"
MODELS = (OURS, NETWORK, TREES, PROCESS)


def split(rows: int, seed: int) -> tuple[Groups, Groups]:
    """Indices to train on, in order, and to test on."""
    order = np.random.default_rng(seed).permutation(rows)
    held_out = round(HELD_OUT * rows)
    return order[held_out:], order[:held_out]


def scores(predicted_Q: Matrix, seconds_Q: Matrix) -> dict[str, float]:
    """Mean absolute error in percent, rank correlation, and root mean squared error in ms."""
    relative_Q = np.abs(predicted_Q / seconds_Q - 1)
    return {
        "mape": 100 * float(relative_Q.mean()),
        "tau": float(np.nan_to_num(kendalltau(predicted_Q, seconds_Q)[0])),
        "rmse_ms": 1e3 * float(np.sqrt(((predicted_Q - seconds_Q) ** 2).mean())),
    }


def evaluated(table: HatTable, model: str, count: int, seed: int) -> Row:
    """Scores of one model on one split."""
    train, test = split(len(table.seconds_N), seed)
    train = train[:count]
    y_N, y_Q = table.seconds_N[train], table.seconds_N[test]
    if model == OURS:
        terms = table.terms_NT
        chosen = choose_latency_model(terms[train], y_N, seed)
        low_Q, high_Q = chosen.bounds(terms[test])
        covered = float(((low_Q <= y_Q) & (y_Q <= high_Q)).mean())
        return {"chosen": chosen.name, "coverage": covered, **scores(chosen.predict(terms[test]), y_Q)}
    x_NF, x_QF = table.features_NF[train], table.features_NF[test]
    return scores(_opponent(model, table)(x_NF, y_N, x_QF, seed), y_Q)


def _opponent(model: str, table: HatTable) -> Callable[[Matrix, Matrix, Matrix, int], Matrix]:
    match model:
        case "hat-network":
            norm = hat_network.latency_norm(table.name, table.seconds_N)
            scale_F = hat_network.FEATURE_NORM
            return lambda x_NF, y_N, x_QF, seed: hat_network.predict(x_NF / scale_F, y_N, x_QF / scale_F, norm, seed)
        case "boosted-trees":
            return boosted_trees
        case _:
            return process


def boosted_trees(x_NF: Matrix, y_N: Matrix, x_QF: Matrix, seed: int) -> Matrix:
    """scikit-learn's gradient boosting with its own settings, on raw features and seconds."""
    return np.asarray(GradientBoostingRegressor(random_state=seed).fit(x_NF, y_N).predict(x_QF))


def process(x_NF: Matrix, y_N: Matrix, x_QF: Matrix, seed: int) -> Matrix:
    """A Gaussian process on raw features with one length scale each."""
    return fit_log(gaussian_process.fit, x_NF, y_N, np.arange(x_NF.shape[1]), seed).predict(x_QF)


def run(tables: Sequence[HatTable], kept: Kept, sizes: Iterable[int], splits: int, models: Sequence[str]) -> None:
    """Evaluate what is missing."""
    for table in tables:
        identity = content_hash([table.features_NF.tolist(), table.seconds_N.tolist()])
        most = len(split(len(table.seconds_N), 0)[0])
        for count in sizes:
            if count > most:
                print(f"  {table.name}: {count} rows are skipped, {most} are left to learn from", flush=True)
                continue
            for seed in range(splits):
                for model in models:
                    kept.row(
                        ("hat", table.name, identity, count, model, seed),
                        lambda t=table, m=model, n=count, s=seed: evaluated(t, m, n, s),  # type: ignore[misc]
                    )
            print(f"  {table.name}: {count} rows done", flush=True)


def agreement(tables: Sequence[HatTable], kept: Kept, sample: int) -> bool:
    """Repeat a seeded sample of the kept rows that are cheap, and say whether all are the same."""
    by_name = {table.name: table for table in tables}
    of_tables = [key for key in sorted(kept.rows, key=str) if key[0] == "hat" and key[1] in by_name]
    cheap = [key for key in of_tables if key[4] != NETWORK and key[3] <= SIZES[1]]
    chosen = random.Random(0).sample(cheap, k=min(sample, len(cheap)))
    again = {key: evaluated(by_name[key[1]], key[4], key[3], key[5]) for key in chosen}
    same = all(math.isclose(row["mape"], kept.rows[key]["mape"], rel_tol=1e-6) for key, row in again.items())
    print(f"\n{len(again)} kept rows repeated: {'they agree' if same else 'THEY DIFFER'}", flush=True)
    return same


def report(kept: Kept) -> dict[str, Any]:
    """Tables, and the summary: file → n → model → [mape, tau]."""
    found: dict[str, dict[int, dict[str, dict[int, Row]]]] = {}
    for key, row in kept.rows.items():
        if key[0] == "hat":
            _, name, _, count, model, seed = key
            found.setdefault(name, {}).setdefault(count, {}).setdefault(model, {})[seed] = row
    summary: dict[str, Any] = {}
    for name, by_count in sorted(found.items()):
        print(f"\n{name}: mean absolute error in % / Kendall's tau of held-out networks; in brackets how much lower")
        print("our error is, in paired splits, and its standard error")
        lines = []
        for count, by_model in sorted(by_count.items()):
            cells = {model: _cell(by_model, model) for model in MODELS if model in by_model}
            lines.append([str(count), *(cells.get(model, "") for model in MODELS), _coverage(by_model)])
            summary.setdefault(name, {})[str(count)] = {
                model: [round(mean(r[part] for r in rows.values()), 4) for part in ("mape", "tau")]
                for model, rows in by_model.items()
            }
        print_table(["rows", *MODELS, "90 % held"], lines)
    return summary


def _cell(by_model: dict[str, dict[int, Row]], model: str) -> str:
    rows = by_model[model].values()
    text = f"{mean(r['mape'] for r in rows):.2f} / {mean(r['tau'] for r in rows):.3f}"
    if model == OURS or OURS not in by_model:
        return text
    gain = gains(by_model, model)
    return f"{text} ({gain.difference:+.2f} ± {gain.error:.2f})"


def gains(by_model: dict[str, dict[int, Row]], model: str) -> Paired:
    """How much lower our error is, split by split."""
    theirs = {seed: row["mape"] for seed, row in by_model[model].items()}
    return paired(theirs, {seed: row["mape"] for seed, row in by_model[OURS].items()})


def _coverage(by_model: dict[str, dict[int, Row]]) -> str:
    rows = by_model.get(OURS, {}).values()
    return f"{100 * mean(r['coverage'] for r in rows):.1f} %" if rows else ""
