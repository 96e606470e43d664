"""A handful of measurements on a new device and another device's table, against 50 measurements of the new one alone.

Beside it what the same handful does without the table, and what models do that see the networks raw. Also the
analytic GPU, which has seen no measurement at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from statistics import mean
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from predictors.analytic_gpu import AnalyticGpu, operation_seconds
from predictors.hat_csv import HatTable, operations
from predictors.latency_choice import choose_latency_model
from predictors.latency_models import non_negative
from predictors.latency_transfer import choose_networks, transfer
from predictors.model import Groups, Matrix
from studies.records import content_hash
from tests.benchmarks.common import print_table
from tests.benchmarks.latency_parts.cells import DeviceTable
from tests.benchmarks.latency_parts.hat import boosted_trees, process, scores, split
from tests.benchmarks.latency_parts.kept import Kept, Row

MEASURED, ALONE = (10, 20), 50
SOURCE_ROWS, POOL = 1000, 1500
GPU_OF_FILE = (("titanxp", "titan-xp"), ("titan_rtx", "titan-rtx"))


def device_table(table: HatTable) -> DeviceTable:
    """A file of HAT's as one device."""
    return DeviceTable(name=table.name, terms_NT=table.terms_NT, raw_NF=table.features_NF, seconds_N=table.seconds_N)


def evaluated(source: DeviceTable, target: DeviceTable, seed: int) -> Row:
    """Scores on held-out networks of the target, by way of predicting them."""
    known = np.random.default_rng(seed).permutation(len(source.seconds_N))[:SOURCE_ROWS]
    there = choose_latency_model(source.terms_NT[known], source.seconds_N[known], seed)
    prior = non_negative.fit(source.terms_NT[known], source.seconds_N[known], seed)
    train, test = split(len(target.seconds_N), seed)
    pool, terms, seconds_N = train[:POOL], target.terms_NT, target.seconds_N
    ways: dict[str, Matrix] = {"source": there.predict(terms[test])}
    for count in MEASURED:
        rows = pool[choose_networks(terms[pool], there.predict(terms[pool]), count)]
        ways[f"{count} and source"] = transfer(there, prior, terms[rows], seconds_N[rows]).predict(terms[test])
        ways[f"{count} alone"] = _alone(target, pool[:count], test, seed)
    ways[f"{ALONE} alone"] = _alone(target, pool[:ALONE], test, seed)
    raw, rows = target.raw_NF, pool[:ALONE]
    ways[f"{ALONE} boosted trees"] = boosted_trees(raw[rows], seconds_N[rows], raw[test], seed)
    ways[f"{ALONE} process"] = process(raw[rows], seconds_N[rows], raw[test], seed)
    return {way: scores(predicted_Q, seconds_N[test]) for way, predicted_Q in ways.items()}


def _alone(target: DeviceTable, rows: Groups, test: Groups, seed: int) -> Matrix:
    chosen = choose_latency_model(target.terms_NT[rows], target.seconds_N[rows], seed)
    return chosen.predict(target.terms_NT[test])


def run(groups: Sequence[Sequence[DeviceTable]], kept: Kept, splits: int) -> None:
    """Every ordered pair of devices within every group."""
    for tables in groups:
        for source, target in permutations(tables, 2):
            identity = content_hash([source.seconds_N.tolist(), target.seconds_N.tolist()])
            for seed in range(splits):
                kept.row(
                    ("transfer", f"{source.name} → {target.name}", identity, seed),
                    lambda s=source, t=target, i=seed: evaluated(s, t, i),  # type: ignore[misc]
                )


def report(kept: Kept) -> dict[str, Any]:
    """A table of rank correlations, and the summary: pair → way → tau."""
    found: dict[str, list[Row]] = {}
    for key, row in kept.rows.items():
        if key[0] == "transfer":
            found.setdefault(key[1], []).append(row)
    if not found:
        return {}
    summary = {pair: _taus(rows) for pair, rows in sorted(found.items())}
    print("\ntransfer: Kendall's tau of held-out networks of the new device")
    ways = list(next(iter(summary.values())))
    print_table(["source → new device", *ways], [[pair, *taus.values()] for pair, taus in summary.items()])
    return summary


def _taus(rows: Sequence[Row]) -> dict[str, float]:
    ways = [way for way in rows[0] if way != "key"]
    return {way: round(mean(row[way]["tau"] for row in rows), 4) for way in ways}


def analytic_taus(tables: Sequence[HatTable]) -> dict[str, float]:
    """File → Kendall's tau of all its networks by the analytic model of its GPU, for files of known GPUs."""
    taus = {}
    for table in tables:
        gpu = next((name for part, name in GPU_OF_FILE if part in table.name), None)
        if gpu is None:
            continue
        model = AnalyticGpu(gpu)
        seconds = [
            sum(count * operation_seconds(op, model.gpu) for count, op in operations(features_F))
            for features_F in table.features_NF
        ]
        taus[table.name] = round(float(kendalltau(seconds, table.seconds_N)[0]), 4)
        print(f"\nanalytic {gpu}, no measurement: Kendall's tau {taus[table.name]:.3f} on {table.name}")
    return taus
