"""The systems that `store.py` races: each opens a storage and returns what writes one list of ready evaluations.

All write evaluations of 25 integer genes and 2 objectives. SQLite has a write-ahead log and ``synchronous=FULL`` for
everybody, PostgreSQL fsync and synchronous_commit; Optuna itself synchronises its journal file after every record.
"""

from __future__ import annotations

import os
import random
import sqlite3
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import psycopg
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy import event

from studies.leases import WorkQueue
from studies.records import Evaluation, Objective, Study, Value
from studies.store import StudyStore

GENES, OPTIONS, BATCH = 25, 8, 16
STUDY = Study(
    name="bench",
    space_fingerprint="space",
    supernet_hash="weights",
    data_hash="data",
    objectives=(Objective(name="error", unit="fraction"), Objective(name="latency", unit="ms")),
    algorithm="random",
    seed=0,
    budget=1,
)
DISTRIBUTIONS: dict[str, optuna.distributions.BaseDistribution] = {
    f"gene{i}": optuna.distributions.IntDistribution(0, OPTIONS - 1) for i in range(GENES)
}

Writer = Callable[[Sequence[Any]], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Addresses of one storage for us and one for Optuna; ours is empty where only Optuna can write."""

    backend: str
    ours: str
    optuna: str


def quiet() -> None:
    """Optuna announces every study and warns of experimental classes."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")


def evaluations(seed: int, count: int) -> list[Evaluation]:
    """Seeded random evaluations; two seeds share none for all practical purposes."""
    rng = random.Random(seed)
    return [
        Evaluation(
            genotype=tuple(rng.randrange(OPTIONS) for _ in range(GENES)),
            values=tuple(Value(objective=o.key, number=rng.random(), provenance="supernet") for o in STUDY.objectives),
        )
        for _ in range(count)
    ]


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


def fresh_places(folder: Path, server: str, name: str) -> list[Place]:
    """New, initialised storages of every kind."""
    with psycopg.connect(server, autocommit=True) as connection:
        for owner in ("ours", "optuna"):
            connection.execute(f"CREATE DATABASE {owner}_{name}".encode())
    ours, theirs = (server.replace("/postgres?", f"/{owner}_{name}?") for owner in ("ours", "optuna"))
    file = folder / f"optuna_{name}.db"
    with sqlite3.connect(file) as raw:
        raw.execute("PRAGMA journal_mode=WAL")  # stays with the file
    raw.close()
    places = [
        Place(backend="sqlite", ours=f"sqlite:///{folder}/ours_{name}.db", optuna=f"sqlite:///{file}"),
        Place(backend="postgresql", ours=ours, optuna=theirs.replace("postgresql://", "postgresql+psycopg://")),
        Place(backend="journal file", ours="", optuna=f"file:{folder}/optuna_{name}.log"),
    ]
    for place in places:
        if place.ours:
            open_ours(place).close()
        open_optuna(place)
    return places


def open_ours(place: Place) -> StudyStore:
    """Our store with the benchmark's study."""
    store = StudyStore.open(place.ours)
    store.create_or_resume(STUDY)
    return store


def open_optuna(place: Place) -> optuna.Study:
    """Optuna's study on the storage an address names."""
    storage: Any
    if place.optuna.startswith("file:"):
        storage = JournalStorage(JournalFileBackend(place.optuna.removeprefix("file:")))
    else:
        is_sqlite = place.optuna.startswith("sqlite")
        arguments = {"connect_args": {"timeout": 60}} if is_sqlite else {}
        storage = optuna.storages.RDBStorage(place.optuna, engine_kwargs=arguments)
        if is_sqlite:
            event.listen(storage.engine, "connect", lambda raw, _: raw.execute("PRAGMA synchronous=FULL"))
            storage.engine.dispose()
    sampler = optuna.samplers.RandomSampler(seed=os.getpid())
    return optuna.create_study(
        storage=storage, study_name="bench", sampler=sampler, directions=["minimize"] * 2, load_if_exists=True
    )


def append_single(place: Place) -> Writer:
    """One `append` per evaluation."""
    store = open_ours(place)

    def write(rows: Sequence[Evaluation]) -> None:
        for row in rows:
            store.append("bench", [row])

    return write


def append_batches(place: Place) -> Writer:
    """One `append` per 16 evaluations."""
    store = open_ours(place)

    def write(rows: Sequence[Evaluation]) -> None:
        for i in range(0, len(rows), BATCH):
            store.append("bench", rows[i : i + BATCH])

    return write


def work_queue(place: Place) -> Writer:
    """Enqueue, claim and finish every evaluation alone: what ask and tell do."""
    queue = WorkQueue(open_ours(place), "bench")

    def write(rows: Sequence[Evaluation]) -> None:
        for row in rows:
            queue.enqueue([row.genotype])
            while not (leases := queue.claim(str(os.getpid()))):  # another worker is about to take what is left
                pass
            queue.finish([(leases[0], Evaluation(genotype=leases[0].genotype, values=row.values))])

    return write


def ask_tell(place: Place) -> Writer:
    """`ask` with fixed distributions, then `tell`."""
    study = open_optuna(place)

    def write(rows: Sequence[Evaluation]) -> None:
        for row in rows:
            study.tell(study.ask(DISTRIBUTIONS), [value.number for value in row.values])

    return write


def add_trial(place: Place) -> Writer:
    """One `add_trial` per evaluation."""
    study = open_optuna(place)

    def write(rows: Sequence[optuna.trial.FrozenTrial]) -> None:
        for row in rows:
            study.add_trial(row)

    return write


def add_trials(place: Place) -> Writer:
    """One `add_trials` per 16 evaluations."""
    study = open_optuna(place)

    def write(rows: Sequence[optuna.trial.FrozenTrial]) -> None:
        for i in range(0, len(rows), BATCH):
            study.add_trials(rows[i : i + BATCH])

    return write


OURS, ASK_TELL, ADD_TRIALS = "supernas append", "optuna ask/tell", "optuna add_trials x16"
SYSTEMS: dict[str, Callable[[Place], Writer]] = {
    OURS: append_single,
    "supernas append x16": append_batches,
    "supernas work queue": work_queue,
    ASK_TELL: ask_tell,
    "optuna add_trial": add_trial,
    ADD_TRIALS: add_trials,
}


def ready(system: str, seed: int, count: int) -> list[Any]:
    """Evaluations in the form a system takes."""
    rows = evaluations(seed, count)
    return trials(rows) if system.startswith("optuna add") else list(rows)
