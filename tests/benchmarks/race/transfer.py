"""A new device: every quality is stored, latencies are not. How far do a few measurements get?

For tables with several latency columns. Our algorithm is told what is stored of every network, its quality and its
latency on another device, and searches (quality, latency on the new device) with 25 evaluations, each of which measures
a latency only. It is compared with a full new search of 250 evaluations on the new device, which knows nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import mean

from nas.algorithm import AlgorithmSettings
from studies.records import Genotype, content_hash
from tests.benchmarks.common import print_table
from tests.benchmarks.race.loop import trace
from tests.benchmarks.race.metrics import progress, yardstick
from tests.benchmarks.race.runner import OURS, Job, Row, load
from tests.benchmarks.race.tables import TableProblem
from tests.benchmarks.race.tasks import SYNTHETIC, Task, table

NEW_DEVICE = f"{OURS}-on-new-device"
MEASUREMENTS, FULL_SEARCH = 25, 250


def devices(task: Task) -> list[str]:
    """Latency columns of a two-objective task's table; none of any other task."""
    if task.table == SYNTHETIC or task.kind:
        return []
    names = [column.objective.name for column in table(task.table, task.file).columns]
    return [name for name in names if name.startswith("latency_")]


def transfer_jobs(chosen: Sequence[Task], seeds: int) -> list[Job]:
    """One job per table, new device and seed, where there is another device to come from."""
    return [
        Job(task=replace(task, kind=f"-{device}"), algorithm=NEW_DEVICE, seed=seed, budget=MEASUREMENTS)
        for task in chosen
        if len(devices(task)) > 1
        for device in devices(task)
        for seed in range(seeds)
    ]


def transfer_hashes(jobs: Iterable[Job]) -> dict[str, str]:
    """Task → identity of what its rows are about."""
    return {job.task.name: _question(job)[1] for job in jobs}


def _question(job: Job) -> tuple[list[str], str]:
    """The two columns that are searched, and their identity with the table's."""
    found = table(job.task.table, job.task.file)
    names = [found.columns[0].objective.name, job.task.kind.removeprefix("-")]
    return names, content_hash([found.hash, names])


def run_transfer(job: Job) -> Row:
    """The few measurements and the full search, both on the new device."""
    start = time.monotonic()
    found = table(job.task.table, job.task.file)
    names, identity = _question(job)
    new = names[1]
    old = next(name for name in devices(replace(job.task, kind="")) if name != new)
    problem = TableProblem(found, names, seed=job.seed)
    stored = TableProblem(found, [names[0], old], seed=job.seed).all_rows()
    few = _search(problem, job.seed, MEASUREMENTS, {genotype: tuple(map(float, row)) for genotype, row in stored})
    full = _search(problem, job.seed, FULL_SEARCH, {})
    return {
        "task": job.task.name,
        "algorithm": job.algorithm,
        "seed": job.seed,
        "budget": job.budget,
        "few": round(few[0], 5),
        "full": round(full[0], 5),
        "seconds": round(time.monotonic() - start, 2),
        "trace": content_hash([few[1], full[1]]),
        "table": identity,
    }


def _search(
    problem: TableProblem, seed: int, budget: int, stored: Mapping[Genotype, tuple[float, ...]]
) -> tuple[float, tuple[Genotype, ...]]:
    """Hypervolume and trace of one search, given (quality, latency on another device) of networks."""
    known = {genotype: (quality, math.nan) for genotype, (quality, _) in stored.items()}
    settings = AlgorithmSettings(seed=seed, known=known, related=stored)
    found = trace(problem.problem, load(OURS)(problem.problem, settings), problem.evaluate, budget)
    story = progress(found.costs, problem.scored(found.genotypes), yardstick(problem.scored_NM, problem.all_seen))
    return story.hypervolume_at(budget), found.genotypes


def show_transfers(rows: Iterable[Row]) -> dict[str, float]:
    """Print the table; task → mean share of the full search's hypervolume that the few measurements reach."""
    by_task: dict[str, list[Row]] = {}
    for row in rows:
        by_task.setdefault(row["task"], []).append(row)
    if not by_task:
        return {}
    shares = {task: mean(row["few"] / row["full"] for row in found) for task, found in by_task.items()}
    print(
        f"\na new device: {MEASUREMENTS} measurements with every quality known, against a full search of {FULL_SEARCH}"
    )
    print_table(
        ["task", "few", "full", "share", "least share", "seeds"],
        [
            [
                task,
                mean(row["few"] for row in found),
                mean(row["full"] for row in found),
                shares[task],
                min(row["few"] / row["full"] for row in found),
                len(found),
            ]
            for task, found in by_task.items()
        ],
    )
    return {task: round(share, 5) for task, share in shares.items()}
