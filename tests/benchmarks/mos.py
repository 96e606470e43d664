"""Does a supernet tell which networks are good, and are its weights usable as they are? `make bench-mos`

Sixty networks of a wide space of the demo's MiniLM are trained alone, fifteen of them twice: that is the truth, and how
well it agrees with itself. Supernets are then trained by every recipe and mixture for the same time, three seeds each,
and what the networks inherit from them is compared with the truth. `mos_arms.py` says what is compared, `mos_bench.py`
in which setting, `mos_report.py` which figures are made of it.

Jobs of a minute or a few append their rows to ``results/mos.jsonl`` as they finish: ``--minutes 60`` works at what is
missing for an hour, and a stopped run goes on. Once costs and paces are known, which want a quiet machine, the rest can
be divided between two processes (``--share 0/2`` and ``1/2``). The plain command repeats a seeded sample of the rows,
checks that they agree, and prints the figures; ``--full`` does everything again.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from kernels.device import load_backend
from kernels.timing import TimingSettings
from nas.demo import DemoSettings, demo_request
from nas.end_to_end import measure_networks
from nas.tuning import tune_supernet
from nas.workspace import Workspace
from studies.store import StudyStore
from tests.benchmarks.common import RESULTS, quiet, versions
from tests.benchmarks.mos_arms import ARMS, measure_pace, train_arm
from tests.benchmarks.mos_bench import CONTEXT, NETWORKS, TWICE, Bench, Row, train_alone
from tests.benchmarks.mos_report import draw, report

ROWS = RESULTS / "mos.jsonl"
CACHE = Path("build/mos")
SEEDS = 3
TIMING = TimingSettings(min_rounds=10, max_rounds=20, tolerance=0.02)
AGREEMENT = 0.03
"""Largest difference in accuracy between a row and its repetition, in the mean over networks."""

Key = tuple[str | int, ...]


def keys() -> Iterator[Key]:
    """Everything there is to do: what later rows need comes first, and then seed by seed."""
    yield from (("truth", number, 0) for number in range(NETWORKS))
    yield ("costs",)
    yield from (("pace", name) for name in ARMS)
    yield from (("arm", name, 0) for name in ARMS)
    yield from (("truth", number, 1) for number in random.Random(0).sample(range(NETWORKS), TWICE))
    yield from (("arm", name, seed) for seed in range(1, SEEDS) for name in ARMS)


def make_row(bench: Bench, key: Key, known: Mapping[Key, Row]) -> Row:
    """Do one job."""
    match key:
        case ("truth", int(number), int(repeat)):
            return train_alone(bench, number, repeat)
        case ("costs",):
            return costs(bench)
        case ("pace", str(name)):
            return measure_pace(bench, name)
        case ("arm", str(name), int(seed)):
            return train_arm(bench, name, seed, known["pace", name]["ratios"])
    raise AssertionError(f"no such job: {key}")


def costs(bench: Bench) -> Row:
    """Parameters, MACs and measured latency of every network, by its extracted form."""
    net, backend = bench.supernet(), load_backend("cpu")
    with StudyStore.open(f"sqlite:///{CACHE / 'latency.db'}") as store:
        timed = measure_networks(
            net,
            bench.architectures,
            CONTEXT,
            backend,
            settings=TIMING,
            stored=store.measurements(backend.detect().fingerprint),
            on_measured=lambda row: store.put_measurements([row]),
        )
    return {
        "parameters": [net.count_parameters(architecture) for architecture in bench.architectures],
        "macs": [net.count_macs(architecture, CONTEXT) for architecture in bench.architectures],
        "latency": [1e3 * latency.seconds for latency in timed],
        "device": backend.detect().name,
    }


# -- rows -------------------------------------------------------------------------------------------------------------


def stored_rows(path: Path = ROWS) -> dict[Key, Row]:
    """Committed rows by key."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {tuple(row["key"]): row for row in map(json.loads, lines)}


def work(bench: Bench, path: Path, minutes: float, share: slice) -> int:
    """Do what is missing of a share of all jobs until the time is over; returns how many are left, of any share."""
    known, until = stored_rows(path), time.monotonic() + 60 * minutes
    for key in [key for key in list(keys())[share] if key not in known]:
        if time.monotonic() > until:
            break
        append(path, key, make_row(bench, key, stored_rows(path)), bench)
    known = stored_rows(path)
    return sum(key not in known for key in keys())


def append(path: Path, key: Key, row: Row, bench: Bench) -> None:
    """Keep a row, in one write."""
    about = {"setting": bench.identity, "precision": bench.precision, "versions": versions()}
    with path.open("a") as file:
        file.write(json.dumps({"key": key, **row, **about}) + "\n")
    print(" ".join(map(str, key)), flush=True)


def check_sample(bench: Bench, rows: Mapping[Key, Row], seed: int = 0) -> None:
    """Repeat two networks and one supernet, and compare; exits with a message if they disagree."""
    rng = random.Random(f"sample {seed}")
    present = {kind: sorted(key for key in rows if key[0] == kind) for kind in ("truth", "arm")}
    sample = rng.sample(present["truth"], min(2, len(present["truth"])))
    sample += rng.sample(present["arm"], min(1, len(present["arm"])))
    for key in sample:
        field = "accuracy" if key[0] == "truth" else "accuracies"
        again, stored = np.mean(make_row(bench, key, rows)[field]), np.mean(rows[key][field])
        print(f"sample: {' '.join(map(str, key))}: stored {stored:.4f}, again {again:.4f}", flush=True)
        if abs(again - stored) > AGREEMENT:
            raise SystemExit(f"the repetition differs by {abs(again - stored):.4f}, more than {AGREEMENT}")


def open_bench(folder: Path) -> Bench:
    """The setting, from the folder of the demo; what the demo would train is trained if it is missing."""
    workspace = Workspace(folder.resolve())
    if not workspace.teacher.exists():
        tune_supernet(demo_request(workspace.root, DemoSettings()), workspace)
    return Bench.open(workspace.teacher, workspace.root / "data" / "movie_reviews", CACHE)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="the study of supernet quality")
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="of the demo, whose teacher is used")
    parser.add_argument("--minutes", type=float, help="work at missing rows for so long, and stop")
    parser.add_argument("--share", default="0/1", help="which part of the rows, such as 1/2")
    parser.add_argument("--full", action="store_true", help="do everything again")
    parser.add_argument("--figure", type=Path, help="also draw it, such as docs/mos.svg")
    options = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    if options.full:
        ROWS.unlink(missing_ok=True)
    bench = open_bench(options.folder)
    first, step = map(int, options.share.split("/"))
    minutes = math.inf if options.full else options.minutes or 0.0
    if left := work(bench, ROWS, minutes, slice(first, None, step)):
        print(f"{left} of {len(list(keys()))} jobs are left: go on with --minutes", flush=True)
    rows = stored_rows()
    if not options.full and options.minutes is None:
        check_sample(bench, rows)
    report(rows)
    if options.figure:
        draw(rows, options.figure)


if __name__ == "__main__":
    main()
