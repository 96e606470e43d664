"""The race: our search algorithm against fourteen others on tables whose true fronts are known. `make bench-search`

Every competitor runs behind the same loop, with the same budgets and seeds: see ``race/loop.py`` for the rules,
``race/opponents`` for sources and settings, ``race/metrics.py`` for the reference point, ``race/tables.py`` for the
format of table files. Rows are kept as they are finished, and an interrupted race goes on where it stopped. The plain
command runs what is missing among the kept rows, repeats a seeded sample of them and says whether their traces are the
same.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.benchmarks.common import RESULTS, finish
from tests.benchmarks.race.report import Report, show
from tests.benchmarks.race.rows import Key, disagreements, keep_rows, missing, read_rows
from tests.benchmarks.race.runner import (
    NEEDS,
    OURS,
    Job,
    Row,
    ablated,
    ablations,
    algorithms,
    budget_of,
    enters,
    run,
    run_all,
)
from tests.benchmarks.race.tasks import DEVELOPMENT, HELD_OUT, Task, contest, tasks
from tests.benchmarks.race.transfer import run_transfer, show_transfers, transfer_hashes, transfer_jobs

ROWS = RESULTS / "search_race.jsonl"
SEEDS, SAMPLE = 10, 6
CHEAP_SECONDS = 20.0
"""Rows that took longer are not repeated by the plain command."""


def arguments() -> argparse.Namespace:
    """What the command was told."""
    parser = argparse.ArgumentParser(description="search algorithms on tables whose true fronts are known")
    parser.add_argument("--table", action="append", default=[], metavar="FILE", help="a table file, named by its stem")
    parser.add_argument("--files", nargs="*", default=[], metavar="NAME=FILE", help="files of the tables that need one")
    parser.add_argument("--tables", nargs="+", metavar="NAME", help="only these tables")
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="only these tasks, such as macro-3 or nb201-limit")
    parser.add_argument("--development", action="store_true", help=f"only {', '.join(DEVELOPMENT)}")
    parser.add_argument("--algorithms", nargs="+", metavar="NAME", help="only these competitors")
    parser.add_argument("--ablation", action="store_true", help=f"also {OURS} without each of its parts")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--budget", type=int, help="stop every search there; keeps no rows")
    parser.add_argument("--jobs", type=int, default=1, help="searches at a time, each on one thread")
    parser.add_argument("--redo", nargs="+", default=[], metavar="NAME", help="run these competitors again")
    parser.add_argument("--sample", type=int, default=SAMPLE, help="kept rows to repeat")
    parser.add_argument("--full", action="store_true", help="run everything again")
    parser.add_argument("--rows", type=Path, default=ROWS, help="where rows are kept")
    return parser.parse_args()


def main() -> None:
    """Run what is missing, check a sample, print."""
    options = arguments()
    if wrong := [each for each in options.files if "=" not in each]:
        raise SystemExit(f"error: a table's file is given as NAME=FILE, got {wrong[0]!r}")
    files = dict(each.split("=", 1) for each in options.files) | {Path(f).stem: f for f in options.table}
    try:
        found, skipped = tasks(files)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    for name in sorted(set(NEEDS) - set(algorithms())):
        skipped.append(f"opponent {name} is skipped: it needs {NEEDS[name]} (install the extra `bench`)")
    for line in skipped:
        print(line, flush=True)
    chosen = select_tasks(found, options)
    print(f"developed on {', '.join(DEVELOPMENT)}; looked at only in the end: {', '.join(HELD_OUT)}", flush=True)
    path = options.rows.with_suffix(".full") if options.full else options.rows
    kept = read_rows(path)
    hashes = {task.name: contest(task, 0).hash for task in chosen}
    jobs, transfers = list_jobs(chosen, options), list_transfers(chosen, options)
    again = {job.key for job in (*jobs, *transfers) if job.algorithm in options.redo}
    rows = {key: row for key, row in kept.items() if key not in again}
    keep = None if options.budget else path
    rows = race(missing(jobs, rows, hashes), rows, options.jobs, keep)
    rows = race(missing(transfers, rows, transfer_hashes(transfers)), rows, options.jobs, keep, run_transfer)
    if options.full and not options.budget:
        keep_rows(options.rows, {**read_rows(options.rows), **rows}, {})
        path.unlink()
    agreed = check_sample([job for job in jobs if rows[job.key] is kept.get(job.key)], kept, options)
    shown = {job.key for job in jobs} if options.algorithms else set(rows)
    report = Report({key: row for key, row in rows.items() if key in shown and key[0] in hashes})
    show(report)
    shares = show_transfers(rows[job.key] for job in transfers)
    finish({**report.result(), "new_device": shares, "sample_agrees": agreed})


def select_tasks(found: Sequence[Task], options: argparse.Namespace) -> list[Task]:
    """The tasks that were asked for; ends the program if a name is unknown."""
    known = {task.table for task in found} | {task.name for task in found}
    if unknown := set(options.tables or ()) - known | set(options.tasks or ()) - known:
        raise SystemExit(f"unknown or missing: {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    tables = set(DEVELOPMENT) if options.development else set(options.tables or known)
    return [task for task in found if task.table in tables and task.name in (options.tasks or known)]


def list_jobs(chosen: Sequence[Task], options: argparse.Namespace) -> list[Job]:
    """Every search of every competitor, seed by seed, so that an interrupted race has whole seeds."""
    names = list(options.algorithms or algorithms())
    parts = ablations() if options.ablation else ()
    return [
        Job(task=task, algorithm=name, seed=seed, budget=min(options.budget or 10**9, budget_of(task, name, seed)))
        for seed in range(options.seeds)
        for task in chosen
        for name in (*names, *(part for part in parts if ablated(task, part)))
        if enters(task, name)
    ]


def list_transfers(chosen: Sequence[Task], options: argparse.Namespace) -> list[Job]:
    """Searches for a new device, unless other competitors or a smaller budget were asked for."""
    if OURS not in (options.algorithms or algorithms()) or options.budget:
        return []
    return transfer_jobs(chosen, options.seeds)


def race(
    jobs: Sequence[Job],
    kept: Mapping[Key, Row],
    processes: int,
    path: Path | None,
    function: Callable[[Job], Row] = run,
) -> dict[Key, Row]:
    """Rows of the jobs; all rows are kept after each of them."""
    rows = dict(kept)
    for number, (job, row) in enumerate(run_all(jobs, processes, function), 1):
        rows[job.key] = row
        print(f"{number}/{len(jobs)} {' '.join(map(str, job.key))}: {row['seconds']:.1f} s", flush=True)
        if path is not None:
            keep_rows(path, rows, {})
    return rows


def check_sample(jobs: Sequence[Job], kept: Mapping[Key, Row], options: argparse.Namespace) -> bool | None:
    """Whether a seeded sample of kept rows comes out the same; None if there was nothing to repeat."""
    cheap = [job for job in jobs if kept[job.key]["seconds"] < CHEAP_SECONDS]
    if options.full or options.budget or not cheap:
        return None
    sample = random.Random(0).sample(cheap, min(options.sample, len(cheap)))
    again = [row for _, row in run_all(sample, options.jobs)]
    lines = disagreements(kept, again)
    print(f"repeated {len(again)} kept searches: {len(again) - len(lines)} have the same trace", flush=True)
    for line in lines:
        print(f"  {line}", flush=True)
    return not lines


if __name__ == "__main__":
    main()
