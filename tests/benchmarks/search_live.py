"""The race in a whole space: searches of the demo's supernet, network by network. `make bench-search-live`

The exhaustive table covers a closed part of MiniLM's space only; these runs show whether its ranking holds in the
whole. A search sees the error on one random half of the validation split and the latency of the machine's table (which
it may compute); its front is scored by the error on the other half. No true front is known here: all fronts of all
searches together set the scale (see ``race/metrics.py``), so figures compare competitors, not tables. Every evaluation
is kept in FOLDER/live, and a stopped run goes on there.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kernels.device import load_backend
from kernels.op_spec import Context
from nas.algorithm import AlgorithmSettings, Costs, SearchProblem
from nas.measuring import latency_table
from nas.searching import OpenSupernet, open_supernet
from nas.workspace import Workspace
from predictors.latency_table import LatencyTable
from studies.pareto import non_dominated
from studies.records import Genotype, Objective, content_hash
from studies.store import StudyStore
from supernets.evaluation import predict_logits, resolve_precision
from supernets.task import TRAIN, VALIDATION
from tests.benchmarks.common import RESULTS, finish, print_table, quiet, write_rows
from tests.benchmarks.race.loop import Trace, trace
from tests.benchmarks.race.metrics import Yardstick, yardstick
from tests.benchmarks.race.runner import OURS, load
from tests.benchmarks.race.statistics import best_by_mean, mean_sd, paired

ROWS = RESULTS / "search_live.jsonl"
COMPETITORS = (OURS, "linas-repaired", "pymoo-nsga2", "optuna-tpe", "random")
BUDGETS = (50, 100, 150)
SEEDS = 3
Run = tuple[str, int]


@dataclass(kw_only=True, eq=False)
class Whole:
    """A supernet's whole space, with what was evaluated so far.

    Attributes:
        table: where latencies come from.
        halves: positions of the validation examples a search sees, and of those it is scored on.
        kept: a file of lines ``[genotype, half, error]``.
    """

    opened: OpenSupernet
    table: LatencyTable
    context: Context
    halves: tuple[list[int], list[int]]
    kept: Path
    errors: dict[tuple[Genotype, int], float] = field(default_factory=dict)

    @classmethod
    def of(cls, opened: OpenSupernet, folder: Path, table: LatencyTable, context: Context) -> Whole:
        """Part the validation split at random, and read what an earlier run has evaluated."""
        positions = list(range(opened.task.size(VALIDATION)))
        random.Random(1).shuffle(positions)
        half = len(positions) // 2
        question = [opened.supernet.hash, positions, opened.task.data_hash(VALIDATION), table.hash]
        kept = folder / f"{content_hash(question)}.jsonl"
        kept.parent.mkdir(parents=True, exist_ok=True)
        found = cls(opened=opened, table=table, context=context, halves=(positions[:half], positions[half:]), kept=kept)
        lines = kept.read_text().splitlines() if kept.exists() else []
        found.errors |= {(tuple(genotype), side): error for genotype, side, error in map(json.loads, lines)}
        return found

    @property
    def problem(self) -> SearchProblem:
        """Error and latency; the latency can be computed."""
        seen = len(self.halves[0])
        return SearchProblem(
            space=self.opened.supernet.space,
            objectives=(Objective(name="error", unit="fraction"), Objective(name="latency", unit="ms")),
            exact=lambda genotypes: np.array([[np.nan, self.latency(genotype)] for genotype in genotypes]),
            exact_columns=(False, True),
            noise=(0.4 / seen**0.5, 0.0),
        )

    def evaluate(self, genotypes: Sequence[Genotype], side: int = 0) -> Costs:
        """Cost rows by the half a search sees, or by the other one."""
        return np.array([[self._error(genotype, side), self.latency(genotype)] for genotype in genotypes])

    def latency(self, genotype: Genotype) -> float:
        """Milliseconds by the machine's table."""
        supernet = self.opened.supernet
        ops = supernet.ops(supernet.space.decode(genotype), self.context)
        return 1e3 * self.table.predict(ops, self.context).seconds

    def _error(self, genotype: Genotype, side: int) -> float:
        if (genotype, side) not in self.errors:
            supernet, task = self.opened.supernet, self.opened.task
            with supernet.active(supernet.space.decode(genotype)):
                logits, labels = predict_logits(
                    supernet,
                    task,
                    VALIDATION,
                    precision=resolve_precision("auto", "cpu"),
                    indices=self.halves[side],
                )
            self.errors[genotype, side] = float((logits.argmax(-1) != labels).double().mean())
            with self.kept.open("a") as file:
                file.write(json.dumps([genotype, side, self.errors[genotype, side]]) + "\n")
        return self.errors[genotype, side]


def main() -> None:
    """Search, score, print."""
    parser = argparse.ArgumentParser(description="searches of a whole supernet, network by network")
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="of the demo, whose supernet is searched")
    parser.add_argument("--algorithms", nargs="+", default=COMPETITORS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--budget", type=int, default=BUDGETS[-1])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    quiet()
    torch.set_num_threads(options.threads)
    workspace = Workspace(options.folder.resolve())
    if not workspace.supernet.exists():
        raise SystemExit(f"there is no supernet in {workspace.root}: run `make demo` first")
    opened = open_supernet(workspace.supernet)
    context = Context(batch=8, sequences=tuple(opened.task.length_quantiles(TRAIN, 1)))
    live = workspace.root / "live"
    live.mkdir(exist_ok=True)
    with StudyStore.open(f"sqlite:///{live / 'latency.db'}") as store:
        table = latency_table(opened.supernet, [context], store, load_backend("cpu"))
    whole = Whole.of(opened, live, table, context)
    traces = {
        (name, seed): search(whole, name, seed, options.budget)
        for seed in range(options.seeds)
        for name in options.algorithms
    }
    rows = scored(whole, traces, options.budget)
    if options.budget >= BUDGETS[-1]:
        write_rows(ROWS, rows, {"benchmark": "search_live", "supernet": opened.supernet.hash, "table": table.hash})
    report(rows)


def search(whole: Whole, name: str, seed: int, budget: int) -> Trace:
    """One search."""
    problem = whole.problem
    found = trace(problem, load(name)(problem, AlgorithmSettings(seed=seed)), whole.evaluate, budget)
    print(f"{name}, seed {seed}: {len(found.genotypes)} networks evaluated", flush=True)
    return found


def scored(whole: Whole, traces: dict[Run, Trace], budget: int) -> list[dict[str, Any]]:
    """One row per search: its hypervolume along the way, on the scale that all fronts set together."""
    budgets = [each for each in BUDGETS if each <= budget] or [budget]
    fronts = {run: [_front(found, each) for each in budgets] for run, found in traces.items()}
    members = {genotype: None for found in fronts.values() for front in found for genotype in front}
    costs = dict(zip(members, whole.evaluate(list(members), side=1), strict=True))
    stick = yardstick(np.array(list(costs.values())))
    rows = []
    for (name, seed), found in fronts.items():
        volumes = [_volume(stick, [costs[genotype] for genotype in front]) for front in found]
        row = {"algorithm": name, "seed": seed, "budgets": budgets, "hypervolume": volumes}
        rows.append(row | {"front": [[*map(float, costs[g])] for g in found[-1]]})
    return rows


def _front(found: Trace, budget: int) -> list[Genotype]:
    """What a search would show after so many evaluations: non-dominated by what it saw."""
    return [found.genotypes[i] for i in np.flatnonzero(non_dominated(found.costs[:budget]))]


def _volume(stick: Yardstick, costs: Sequence[Costs]) -> float:
    return round(stick.hypervolume(np.array(costs)), 5)


def report(rows: Sequence[dict[str, Any]]) -> None:
    """The tables and the last line."""
    budgets = rows[0]["budgets"]
    values: list[dict[str, dict[int, float]]] = [{} for _ in budgets]
    for row in rows:
        for at, value in enumerate(row["hypervolume"]):
            values[at].setdefault(row["algorithm"], {})[row["seed"]] = value
    lines = []
    for name in values[0]:
        spreads = [mean_sd(list(values[at][name].values())) for at in range(len(budgets))]
        lines.append([name, *(f"{center:.4f} ± {spread:.4f}" for center, spread in spreads)])
    print_table(["hypervolume at", *map(str, budgets)], lines)
    against = {}
    for at, budget in enumerate(budgets):
        best = best_by_mean({name: found for name, found in values[at].items() if name != OURS})
        if best is not None and OURS in values[at]:
            pairs = paired(values[at][OURS], values[at][best])
            against[str(budget)] = [best, round(pairs.difference, 5), round(pairs.error, 5), pairs.wins]
    summary = {
        name: {str(b): [round(x, 5) for x in mean_sd(list(values[at][name].values()))] for at, b in enumerate(budgets)}
        for name in values[0]
    }
    finish({"hypervolume": summary, "against_best": against})


if __name__ == "__main__":
    main()
