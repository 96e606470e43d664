"""One run of one algorithm on one task, as a row of raw figures."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import get_context
from typing import Any, cast

import numpy as np

from nas.algorithm import AlgorithmSettings, Search, SearchProblem, load_algorithm
from studies.discovery import VariantFolder
from studies.records import content_hash
from tests.benchmarks.race.loop import Trace, trace
from tests.benchmarks.race.metrics import progress
from tests.benchmarks.race.tasks import DEVELOPMENT, SYNTHETIC, Contest, Task, contest

OURS = "guided"
WITHOUT = f"{OURS}-without-"
HOUSE = ("nsga2", "linas")
"""Our own versions, run as ``house-NAME``: they share our canonical encodings and exact costs."""
OPPONENTS = VariantFolder(package="tests.benchmarks.race.opponents", attribute="search", kind="opponent")

BUDGETS = (50, 100, 150, 250, 400)
CHECKPOINTS = (*range(10, 401, 10), *range(500, 2001, 100))
CPU_POINTS = (50, 100, 150, 250, 400, 1000, 2000)
PATIENT, LONG_TABLES = ("random", "pymoo-nsga2", "house-nsga2"), ("macro", "minilm", SYNTHETIC)
"""Competitors that think little, and tables on which they go on for long, to see what we save."""
NEEDS = {"age-moea2": "numba", "qnehvi": "botorch"}
"""Packages of the extra `bench` without which an opponent cannot run."""
LONG, USUAL, LIMITED = 2000, 400, 100
Row = dict[str, Any]
SearchFunction = Callable[[SearchProblem, AlgorithmSettings], Search]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One search to be run."""

    task: Task
    algorithm: str
    seed: int
    budget: int

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells its row from others."""
        return self.task.name, self.algorithm, self.seed


def algorithms() -> tuple[str, ...]:
    """All competitors that can run here, ours first."""
    everybody = (OURS, *OPPONENTS.names(), *(f"house-{name}" for name in HOUSE))
    return tuple(name for name in everybody if name not in NEEDS or find_spec(NEEDS[name]))


def ablations() -> tuple[str, ...]:
    """Our algorithm without one of its parts each."""
    options = import_module(f"nas.algorithms.{OURS}").GuidedOptions()
    names = options.__dataclass_fields__
    return tuple(WITHOUT + name.replace("_", "-") for name in names if getattr(options, name) is True)


def ablated(task: Task, part: str) -> bool:
    """Whether our algorithm is also run without a part: on the tables it was developed on, where the part matters."""
    return task.table in DEVELOPMENT and task.kind == ("-limit" if part == WITHOUT + "free-costs" else "")


@cache
def load(algorithm: str) -> SearchFunction:
    """The search function of a competitor; ValueError names the known ones."""
    if algorithm.startswith(WITHOUT):
        module = import_module(f"nas.algorithms.{OURS}")
        part = algorithm.removeprefix(WITHOUT).replace("-", "_")
        options = replace(module.GuidedOptions(), **{part: False})
        return lambda problem, settings: module.search(problem, settings, options=options)
    if algorithm == OURS or algorithm.startswith("house-"):
        return load_algorithm(algorithm.removeprefix("house-"))
    return cast(SearchFunction, OPPONENTS.load(algorithm))


def enters(task: Task, algorithm: str) -> bool:
    """Whether a competitor takes part; some are too slow for three objectives."""
    if algorithm == "house-linas":
        return not task.kind
    return task.kind != "-3" or _limit_of(algorithm, "MAX_OBJECTIVES", 3) >= 3


def _limit_of(algorithm: str, name: str, usual: int) -> int:
    """What an opponent's file says about how far it can be run."""
    if algorithm.startswith((OURS, "house-")):
        return usual
    return int(getattr(import_module(f"{OPPONENTS.package}.{algorithm.replace('-', '_')}"), name, usual))


def budget_of(task: Task, algorithm: str, seed: int) -> int:
    """How far a competitor is run: some go on for long, the slowest stop early."""
    if task.is_limited:
        return LIMITED
    if task.table in LONG_TABLES and algorithm in PATIENT:
        return LONG
    if algorithm == OURS and task.name == SYNTHETIC and seed < 2:
        return LONG
    return min(USUAL, _limit_of(algorithm, "MAX_BUDGET", USUAL))


def run(job: Job) -> Row:
    """Search once; the row holds metrics along the way, a hash of the trace, and times."""
    met = contest(job.task, job.seed)
    _warm_up(job.algorithm)
    start, load_average = time.monotonic(), os.getloadavg()[0]
    search = load(job.algorithm)(met.problem, AlgorithmSettings(seed=job.seed))
    found = trace(met.problem, search, met.evaluate, job.budget)
    seconds = time.monotonic() - start
    scores = _limited_scores(met, found) if job.task.is_limited else _front_scores(met, found, job.budget)
    return {
        "task": job.task.name,
        "algorithm": job.algorithm,
        "seed": job.seed,
        "budget": job.budget,
        "evaluations": len(found.genotypes),
        **scores,
        "cpu_ms": [round(found.cpu_ms[n - 1], 1) for n in CPU_POINTS if n <= len(found.cpu_ms)],
        "seconds": round(seconds, 2),
        "load": round(load_average, 1),
        "trace": content_hash(found.genotypes),
        "table": met.hash,
    }


def _front_scores(met: Contest, found: Trace, budget: int) -> Row:
    scored = met.scored(found.genotypes)
    seen = met.problem.minimised(found.costs)
    story = progress(seen, scored, met.stick)
    row: Row = {"hypervolume": [round(story.hypervolume_at(n), 5) for n in CHECKPOINTS if n <= budget]}
    if len(met.stick.front_FM):
        fronts = [scored[story.front_at(n)] for n in BUDGETS if n <= budget]
        row["igd_plus"] = [round(met.stick.igd_plus(front), 5) for front in fronts]
        row["found"] = [round(met.stick.found(front), 4) for front in fronts]
        row["to_99"] = story.first_to(0.99 * met.stick.reachable)
        row["reachable"] = round(met.stick.reachable, 5)
    if met.stated is not None:
        stated = progress(seen, scored, met.stated)
        row["hypervolume_stated"] = [round(stated.hypervolume_at(n), 5) for n in CHECKPOINTS if n <= budget]
    return row


def _limited_scores(met: Contest, found: Trace) -> Row:
    """The scored quality of the best network within the limits, as the search saw it; None while there is none."""
    feasible = met.problem.violations(found.costs) == 0
    seen, scored = found.costs[:, 0], met.scored(found.genotypes)[:, 0]
    best: list[float | None] = []
    for n in BUDGETS[:2]:
        within = np.flatnonzero(feasible[:n] & np.isfinite(seen[:n]))
        best.append(round(float(scored[within[seen[within].argmin()]]), 6) if len(within) else None)
    row: Row = {"feasible_quality": best, "feasible_share": round(float(feasible.mean()), 4) if len(feasible) else 0.0}
    if len(met.stick.front_FM):
        row["feasible_best"] = round(float(met.stick.ideal_M[0]), 6)
    return row


@cache
def _warm_up(algorithm: str) -> None:
    """Import and compile outside the clock: one short search that nobody looks at."""
    met = contest(Task(table=SYNTHETIC), 0)
    trace(
        met.problem, load(algorithm)(met.problem, AlgorithmSettings()), met.evaluate, 60 if "moea" in algorithm else 5
    )


def run_all(jobs: Sequence[Job], processes: int, function: Callable[[Job], Row] = run) -> Iterator[tuple[Job, Row]]:
    """Rows as they are finished, from so many processes at a time, each on one thread."""
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(function, job): job for job in jobs}
        try:
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def hypervolume_at(row: Row, budget: int, key: str = "hypervolume") -> float:
    """A row's hypervolume at a checkpoint; NaN beyond its budget or where it has none."""
    values = row.get(key, [])
    at = CHECKPOINTS.index(budget)
    return float(values[at]) if at < len(values) else math.nan
