"""Do two measurements of the same networks agree while four other processes keep the machine busy?

The paired protocol of `kernels/timing.py`, several networks in turns as a search does it, and beside it what is usual:
the mean wall-clock time of a number of calls, network after network. Two passes over all networks, both ways by turns.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau

from kernels.device import load_backend
from kernels.op_spec import Context
from kernels.timing import TimingSettings
from nas.end_to_end import example_inputs, measure_networks
from predictors.measure import CHUNK
from studies.records import Measurement
from supernets.checkpoint import load_supernet
from supernets.space import Architecture
from supernets.supernet import Supernet
from tests.benchmarks.common import print_table
from tests.benchmarks.latency_parts.composed import BATCH, LENGTH, random_genotypes
from tests.benchmarks.latency_parts.kept import Kept, Row

NETWORKS, LOAD, PASSES = 40, 4, 2
_SPIN = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
WALL_WARMUPS, WALL_CALLS = 5, 20
TIMING = TimingSettings(min_rounds=10, max_rounds=60)
CONTEXT = Context(batch=BATCH, sequences=(LENGTH,))


def run(folder: Path, kept: Kept, count: int) -> dict[str, Any]:
    """Measure what is missing of one supernet's folder, print, and return the summary."""
    supernet, _, _ = load_supernet(folder)
    architectures = [supernet.space.decode(genotype) for genotype in random_genotypes(supernet.space, count)]
    passes = [list[Row]() for _ in range(PASSES)]
    with busy_processes(LOAD):
        for turn, rows in enumerate(passes):
            for start in range(0, count, CHUNK):
                together = architectures[start : start + CHUNK]
                key = ("repeat", str(folder), supernet.hash, turn, start, len(together))
                calibration = passes[0][0]["measured"][0] if passes[0] else None
                rows.append(kept.row(key, lambda t=together, c=calibration: _timed(supernet, t, c)))  # type: ignore[misc]
            print(f"  pass {turn + 1} of {PASSES} done", flush=True)
    return _report(folder, passes)


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


def _timed(supernet: Supernet, together: Sequence[Architecture], calibration: Row | None) -> Row:
    """Both ways one after the other; a calibration of the reference is taken over from an earlier measurement."""
    measured: list[Measurement] = []
    latencies = measure_networks(
        supernet,
        together,
        CONTEXT,
        load_backend("cpu"),
        settings=TIMING,
        calibrated_by=[] if calibration is None else [Measurement(**calibration)],
        on_measured=measured.append,
    )
    return {
        "paired": [latency.seconds for latency in latencies],
        "wall": [_wall(supernet.extract(architecture)) for architecture in together],
        "measured": [asdict(one) for one in measured],
    }


def _wall(network: Any) -> float:
    inputs = example_inputs(network.config, CONTEXT, "cpu")

    @torch.inference_mode()
    def call() -> object:
        return network(**inputs)

    return wall_mean(call)


def wall_mean(call: Callable[[], object]) -> float:
    """Mean wall seconds of calls in a row, after some to warm up."""
    for _ in range(WALL_WARMUPS):
        call()
    start = time.perf_counter()
    for _ in range(WALL_CALLS):
        call()
    return (time.perf_counter() - start) / WALL_CALLS


def _report(folder: Path, passes: Sequence[Sequence[Row]]) -> dict[str, Any]:
    count = sum(len(row["paired"]) for row in passes[0])
    print(f"\n{folder}: {count} networks timed twice while {LOAD} processes keep the machine busy")
    summary: dict[str, Any] = {}
    for name in ("paired", "wall"):
        first, second = (np.concatenate([row[name] for row in rows]) for rows in passes)
        difference = 100 * float(np.abs(second / first - 1).mean())
        summary[name] = {"mape": round(difference, 3), "tau": round(float(kendalltau(first, second)[0]), 4)}
    titles = {"paired": "paired protocol", "wall": "wall-clock mean, one network after the other"}
    print_table(
        ["protocol", "difference %", "tau"],
        [[titles[name], each["mape"], each["tau"]] for name, each in summary.items()],
    )
    return summary
