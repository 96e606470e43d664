"""What is raced: for every table two objectives, three objectives, and two objectives with a hard limit.

The first column of a table is its quality, the second what a network costs. `NAME` races those two, `NAME-3` the first
three columns, `NAME-limit` the first two with the cost limited to its 20th percentile over the table (a limit of the
user: the search knows it, and what breaks it is worth nothing).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np

from nas.algorithm import Costs, SearchProblem
from studies.records import Genotype, content_hash
from tests import synthetic_space as synthetic
from tests.benchmarks.common import RESULTS
from tests.benchmarks.race.metrics import Yardstick, yardstick
from tests.benchmarks.race.public import GRAPH, open_table
from tests.benchmarks.race.tables import Table, TableProblem

SYNTHETIC = "synthetic"
DEVELOPMENT = ("macro", "graph-computers", SYNTHETIC)
"""Tables our algorithm was developed on; everything else was only looked at in the end."""
HELD_OUT = ("minilm", "graph-arxiv", "graph-proteins", "nb201")
LIMIT_PERCENTILE = 20.0
COMMITTED = {"minilm": RESULTS / "minilm.npz"}
"""Tables that come with the repository; another file may be given."""
KINDS = ("", "-3", "-limit")
TWO_OBJECTIVES = ("macro", "nb201", SYNTHETIC)
"""Tables whose third column says much the same as the second."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One thing to search.

    Attributes:
        table: name of the table, or `SYNTHETIC`.
        file: where it is read from; empty for what is installed or computed.
        kind: one of `KINDS`.
    """

    table: str
    kind: str = ""
    file: str = ""

    @property
    def name(self) -> str:
        """``macro``, ``macro-3`` or ``macro-limit``."""
        return self.table + self.kind

    @property
    def is_limited(self) -> bool:
        """Whether it is about the best quality within a limit rather than about a front."""
        return self.kind == "-limit"


@dataclass(frozen=True, kw_only=True, eq=False)
class Contest:
    """One task as the search of one seed meets it.

    Attributes:
        evaluate: cost rows a search sees.
        scored: cost rows it is judged by.
        stick: of the true front.
        stated: of the reference point people quote for the table, if there is one.
        hash: identity of everything the result depends on, but for seed and algorithm.
    """

    problem: SearchProblem
    evaluate: Callable[[Sequence[Genotype]], Costs]
    scored: Callable[[Sequence[Genotype]], Costs]
    stick: Yardstick
    stated: Yardstick | None
    hash: str


def tasks(files: Mapping[str, str]) -> tuple[list[Task], list[str]]:
    """The tasks of all tables that can be had, and a line for every table that is skipped."""
    files = {name: str(path) for name, path in COMMITTED.items() if path.is_file()} | dict(files)
    found, skipped = [], []
    for name in (*dict.fromkeys((*DEVELOPMENT, *HELD_OUT, *files)),):
        if reason := _missing(name, files):
            skipped.append(f"table {name} is skipped: {reason}")
            continue
        width = 3 if name == SYNTHETIC else len(table(name, files.get(name, "")).columns)
        if width < 2:
            skipped.append(f"table {name} is skipped: a front needs two columns")
            continue
        kinds = KINDS if width > 2 and name not in TWO_OBJECTIVES else ("", "-limit")
        found += [Task(table=name, kind=kind, file=files.get(name, "")) for kind in kinds]
    return found, skipped


def _missing(name: str, files: Mapping[str, str]) -> str:
    if name == SYNTHETIC:
        return ""
    if name.removeprefix("graph-") in GRAPH:
        try:
            import nas_bench_graph  # noqa: F401
        except ModuleNotFoundError:
            return "install the extra `bench`"
        return ""
    if name not in files:
        return f'its file is not given (TABLES="{name}=FILE")'
    return "" if Path(files[name]).is_file() else f"there is no file {files[name]}"


@lru_cache(maxsize=16)
def table(name: str, file: str) -> Table:
    """A table, read once per process."""
    return open_table(name, Path(file) if file else None)


def contest(task: Task, seed: int) -> Contest:
    """The task as one seed meets it."""
    return _synthetic(task) if task.table == SYNTHETIC else _tabled(task, table(task.table, task.file), seed)


def _tabled(task: Task, found: Table, seed: int) -> Contest:
    names = [column.objective.name for column in found.columns[: 3 if task.kind == "-3" else 2]]
    costs_N = found.columns[1].scored
    limits = {names[1]: float(np.nanpercentile(costs_N, LIMIT_PERCENTILE))} if task.is_limited else {}
    problem = TableProblem(found, names, limits, seed)
    scored_NM, seen_NM = problem.scored_NM, problem.all_seen
    if limits:
        within_N = problem.problem.violations(seen_NM) == 0
        scored_NM, seen_NM = scored_NM[within_N], seen_NM[within_N]
    point = [found.reference[name] for name in names if name in found.reference]
    return Contest(
        problem=problem.problem,
        evaluate=problem.evaluate,
        scored=problem.scored,
        stick=yardstick(scored_NM, seen_NM),
        stated=yardstick(scored_NM, seen_NM, point) if len(point) == len(names) and not limits else None,
        hash=content_hash([found.hash, names, limits]),
    )


def _synthetic(task: Task) -> Contest:
    """The true front of 10^17 networks is not known: its box is stated, shares of it cannot be given."""
    names = ("error", "latency", "parameters")[: 3 if task.kind == "-3" else 2]
    limits = {}
    if task.is_limited:
        problem, rng = synthetic.synthetic_problem(names), Random(0)
        drawn = [problem.space.sample(rng) for _ in range(2000)]
        sampled = synthetic.synthetic_costs(problem.space, drawn, names)
        limits = {1: float(np.percentile(sampled[:, 1], LIMIT_PERCENTILE))}
    problem = synthetic.synthetic_problem(names, limits=limits)

    def costs(genotypes: Sequence[Genotype]) -> Costs:
        return synthetic.synthetic_costs(problem.space, genotypes, names)

    ideal = np.array([synthetic.IDEAL[name] for name in names])
    span = np.array([synthetic.REFERENCE[name] for name in names]) - ideal
    ones = np.ones(len(names))
    stick = Yardstick(ideal, span, ones, np.empty((0, len(names))), 1.0)
    probe = costs([problem.space.largest, problem.space.middle, problem.space.smallest]).round(12).tolist()
    identity = content_hash([problem.space.to_json(), probe, sorted(limits.items())])
    return Contest(problem=problem, evaluate=costs, scored=costs, stick=stick, stated=None, hash=identity)
