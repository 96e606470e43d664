"""Latencies composed of operations against those of whole networks nobody has fitted anything on.

Beside it what else could be done: FLOPs times a constant from the same few whole networks, boosted trees and HAT's
network on far more of them. Every measurement is kept in the folder of the job, so that a stopped run goes on.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kernels.device import DeviceBackend, load_backend
from kernels.op_spec import Context
from kernels.timing import TimingSettings
from nas.end_to_end import measure_networks
from nas.measuring import calibration_networks, latency_table
from predictors.latency_table import LatencyTable
from predictors.model import Matrix
from studies.records import Genotype
from studies.store import StudyStore
from supernets.checkpoint import load_supernet
from supernets.space import SearchSpace
from supernets.supernet import Supernet
from tests.benchmarks.common import print_table
from tests.benchmarks.latency_parts import hat_network
from tests.benchmarks.latency_parts.hat import boosted_trees, scores

BATCH, LENGTH = 8, 26
TREES_ROWS, NETWORK_ROWS = (25, 100), (100, 400)
TIMING = TimingSettings(max_rounds=40)


def run(folder: Path, unseen: int, training: int) -> dict[str, Any]:
    """Measure what is missing, print, and return the summary of one supernet's folder."""
    supernet, _, _ = load_supernet(folder)
    context, backend = Context(batch=BATCH, sequences=(LENGTH,)), load_backend("cpu")
    calibrating = map(supernet.space.encode, calibration_networks(supernet, context))
    genotypes = random_genotypes(supernet.space, unseen + training, set(calibrating))
    with StudyStore.open(f"sqlite:///{folder.parent / 'bench_latency.db'}") as store:
        table = latency_table(supernet, [context], store, backend, settings=TIMING)
        seconds_N = _measured(supernet, genotypes, context, store, backend)
    low_N, high_N, composed_N = _composed(table, supernet, genotypes[:unseen], context)
    test_N = seconds_N[:unseen]
    found: dict[str, dict[str, float]] = {"composed, 5 whole networks": scores(composed_N, test_N)}
    found |= _alternatives(supernet, genotypes, seconds_N, unseen, context)
    covered = float(((low_N <= test_N) & (test_N <= high_N)).mean())
    print(f"\n{folder}: {unseen} unseen networks, batch {BATCH}, length {LENGTH}, one thread")
    print_table(
        ["predictor", "error %", "tau", "RMSE ms"],
        [[name, each["mape"], each["tau"], each["rmse_ms"]] for name, each in found.items()],
    )
    print(f"90 % bounds of the composed predictor hold {100 * covered:.1f} %; its own error says {table.error:.1%}")
    return {"predictors": found, "interval_coverage": round(covered, 4), "unseen": unseen}


def random_genotypes(space: SearchSpace, count: int, known: Collection[Genotype] = ()) -> list[Genotype]:
    """Distinct ones, always the same, none of which is among the known."""
    rng = random.Random(7)
    found: dict[Genotype, None] = {}
    for _ in range(100 * count):
        genotype = space.canonical(space.sample(rng))
        if len(found) < count and genotype not in known:
            found[genotype] = None
    return list(found)


def _measured(
    supernet: Supernet, genotypes: Sequence[Genotype], context: Context, store: StudyStore, backend: DeviceBackend
) -> Matrix:
    def told(done: float, total: int) -> None:
        if done == int(done) and int(done) % 20 == 0:
            print(f"  {int(done)} of {total} networks timed", flush=True)

    device = backend.detect().fingerprint
    latencies = measure_networks(
        supernet,
        [supernet.space.decode(genotype) for genotype in genotypes],
        context,
        backend,
        settings=TIMING,
        stored=store.measurements(device),
        on_measured=lambda row: store.put_measurements([row]),
        on_progress=told,
    )
    return np.array([latency.seconds for latency in latencies])


def _composed(
    table: LatencyTable, supernet: Supernet, genotypes: Sequence[Genotype], context: Context
) -> tuple[Matrix, Matrix, Matrix]:
    """Lower and upper bounds and predictions [N]."""
    found = [table.predict(supernet.ops(supernet.space.decode(g), context), context) for g in genotypes]
    low, high, seconds = np.array([[one.low, one.high, one.seconds] for one in found]).T
    return low, high, seconds


def _alternatives(
    supernet: Supernet,
    genotypes: Sequence[Genotype],
    seconds_N: Matrix,
    unseen: int,
    context: Context,
) -> Mapping[str, dict[str, float]]:
    """Scores of the others on the unseen networks; those whose rows were not measured are left out."""
    space, test_N, train_N = supernet.space, seconds_N[:unseen], seconds_N[unseen:]
    flops_N = np.array([supernet.count_macs(space.decode(g), context) for g in genotypes], dtype=np.float64)
    constant = np.median(train_N[:5] / flops_N[unseen : unseen + 5]) if len(train_N) else np.nan
    features_NF = np.array([space.features(genotype) for genotype in genotypes])
    test, train = features_NF[:unseen], features_NF[unseen:]
    found = {"FLOPs x constant, 5": scores(constant * flops_N[:unseen], test_N)}
    for rows in (count for count in TREES_ROWS if count <= len(train_N)):
        found[f"boosted trees, {rows}"] = scores(boosted_trees(train[:rows], train_N[:rows], test, 0), test_N)
    for rows in (count for count in NETWORK_ROWS if count <= len(train_N)):
        predicted_N = hat_network.predict(train[:rows], train_N[:rows], test, float(train_N.max()), 0)
        found[f"HAT's network, {rows}"] = scores(predicted_N, test_N)
    return found
