"""Do two measurements of the same networks agree while four other processes keep the machine busy?

The paired protocol of `kernels/timing.py`, network after network as a search uses it, and beside it what is usual: the
mean wall-clock time of a number of calls. Both time a network right after each other, in two passes over all networks.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau

from kernels.device import load_backend
from kernels.op_spec import Context
from kernels.reference import build
from kernels.timing import TimingSettings, time_paired
from nas.end_to_end import example_inputs
from supernets.checkpoint import load_supernet
from supernets.supernet import Supernet
from tests.benchmarks.common import print_table
from tests.benchmarks.latency_parts.composed import BATCH, LENGTH, random_genotypes
from tests.benchmarks.latency_parts.kept import Kept, Row

NETWORKS, LOAD, PASSES = 40, 4, 2
_SPIN = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
WALL_WARMUPS, WALL_CALLS = 5, 20
TIMING = TimingSettings(min_rounds=10, max_rounds=30)


def run(folder: Path, kept: Kept, count: int) -> dict[str, Any]:
    """Measure what is missing of one supernet's folder, print, and return the summary."""
    supernet, _, _ = load_supernet(folder)
    genotypes = random_genotypes(supernet.space, count)
    with busy_processes(LOAD):
        for turn in range(PASSES):
            for number, genotype in enumerate(genotypes):
                key = ("repeat", str(folder), supernet.hash, turn, number)
                first = kept.rows.get(("repeat", str(folder), supernet.hash, 0, 0))
                calibration = None if first is None else first["reference_seconds"]
                kept.row(key, lambda g=genotype, c=calibration: _timed(supernet, g, c))  # type: ignore[misc]
            print(f"  pass {turn + 1} of {PASSES} done", flush=True)
    rows = [[kept.rows["repeat", str(folder), supernet.hash, turn, i] for i in range(count)] for turn in range(PASSES)]
    return _report(folder, rows)


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep that many processes spinning meanwhile; they also end when this process is killed."""
    spinning = [subprocess.Popen([sys.executable, "-c", _SPIN]) for _ in range(count)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def _timed(supernet: Supernet, genotype: tuple[int, ...], calibration: float | None) -> dict[str, Any]:
    context, backend = Context(batch=BATCH, sequences=(LENGTH,)), load_backend("cpu")
    network = supernet.extract(supernet.space.decode(genotype))
    inputs = example_inputs(supernet.config, context, "cpu")

    @torch.inference_mode()
    def call() -> object:
        return network(**inputs)

    (paired,) = time_paired(
        [call], backend=backend, reference=build(backend.reference), settings=TIMING, reference_seconds=calibration
    )
    return {
        "genotype": list(genotype),
        "paired": paired.seconds_median,
        "noisy": paired.noisy,
        "reference_seconds": paired.reference_seconds,
        "load": paired.load,
        "wall": wall_mean(call),
    }


def wall_mean(call: Callable[[], object]) -> float:
    """Mean wall seconds of calls in a row, after some to warm up."""
    for _ in range(WALL_WARMUPS):
        call()
    start = time.perf_counter()
    for _ in range(WALL_CALLS):
        call()
    return (time.perf_counter() - start) / WALL_CALLS


def _report(folder: Path, rows: Sequence[Sequence[Row]]) -> dict[str, Any]:
    print(f"\n{folder}: {len(rows[0])} networks timed twice while {LOAD} processes keep the machine busy")
    summary: dict[str, Any] = {}
    for name in ("paired", "wall"):
        first, second = (np.array([row[name] for row in one]) for one in rows)
        difference = 100 * float(np.abs(second / first - 1).mean())
        summary[name] = {"mape": round(difference, 3), "tau": round(float(kendalltau(first, second)[0]), 4)}
    titles = {"paired": "paired protocol", "wall": "wall-clock mean, one network after the other"}
    print_table(
        ["protocol", "difference %", "tau"],
        [[titles[name], each["mape"], each["tau"]] for name, each in summary.items()],
    )
    return summary
