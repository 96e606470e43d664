"""Tables and the result line of the race, from its raw rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

from tests.benchmarks.common import print_table
from tests.benchmarks.race.rows import Key
from tests.benchmarks.race.runner import BUDGETS, CHECKPOINTS, CPU_POINTS, OURS, USUAL, WITHOUT, Row, hypervolume_at
from tests.benchmarks.race.statistics import Paired, best_by_mean, mean_sd, median_or_none, paired

JUDGED = (100, 150, 250)
NSGA2, MILESTONES = "pymoo-nsga2", (400, 1000)
INITIAL = 20
"""Twice this many evaluations on, nobody may be worse than random."""
Values = dict[str, dict[int, float]]
"""Algorithm → seed → value."""


class Report:
    """Figures of some rows."""

    def __init__(self, rows: Mapping[Key, Row]) -> None:
        self._rows = [rows[key] for key in sorted(rows)]
        self.tasks = list(dict.fromkeys(row["task"] for row in self._rows))

    def of(self, task: str) -> list[Row]:
        """Rows of a task."""
        return [row for row in self._rows if row["task"] == task]

    def hypervolumes(self, task: str, budget: int, key: str = "hypervolume") -> Values:
        """Algorithm → seed → hypervolume, of those that were run that far."""
        found: Values = {}
        for row in self.of(task):
            value = hypervolume_at(row, budget, key)
            if not math.isnan(value):
                found.setdefault(row["algorithm"], {})[row["seed"]] = value
        return found

    def against_best(self, task: str, budget: int) -> tuple[str, Paired] | None:
        """The best opponent by mean of those that ran all of our seeds, and our paired difference to it."""
        values = self.hypervolumes(task, budget)
        ours = values.get(OURS, {})
        opponents = {name: found for name, found in values.items() if not name.startswith(OURS)}
        best = best_by_mean({name: found for name, found in opponents.items() if found.keys() >= ours.keys()})
        return None if best is None or not ours else (best, paired(ours, values[best]))

    def incomplete(self, task: str) -> list[str]:
        """Opponents with fewer seeds than we have: their means cannot be compared with ours."""
        seeds: dict[str, set[int]] = {}
        for row in self.of(task):
            seeds.setdefault(row["algorithm"], set()).add(row["seed"])
        ours = seeds.get(OURS, set())
        return sorted(name for name, found in seeds.items() if not name.startswith(OURS) and not found >= ours)

    def worse_than_random(self, task: str) -> list[int]:
        """Checkpoints from twice the initial design on where we are more than two standard errors below random."""
        bad = []
        for budget in CHECKPOINTS:
            values = self.hypervolumes(task, budget)
            if 2 * INITIAL <= budget <= USUAL and OURS in values and "random" in values:
                difference = paired(values[OURS], values["random"])
                if difference.in_errors < -2:
                    bad.append(budget)
        return bad

    def reached(self, task: str, opponent: str, budget: int, key: str = "hypervolume") -> int | None:
        """The first checkpoint at which our mean is at least an opponent's mean at a budget; None if there is none."""
        theirs = self.hypervolumes(task, budget, key).get(opponent)
        if not theirs:
            return None
        for checkpoint in CHECKPOINTS:
            ours = self.hypervolumes(task, checkpoint, key).get(OURS)
            if ours and mean(ours.values()) >= mean(theirs.values()):
                return int(checkpoint)
        return None

    def milestones(self, task: str) -> dict[str, dict[str, int | None]]:
        """By reference point: evaluations until we reach what NSGA-II has at 400 and at 1,000."""
        found = {}
        for name, key in (("rule", "hypervolume"), ("stated", "hypervolume_stated")):
            if NSGA2 in self.hypervolumes(task, MILESTONES[0], key):
                found[name] = {str(budget): self.reached(task, NSGA2, budget, key) for budget in MILESTONES}
        return found

    def medians_to_99(self, task: str) -> dict[str, float | None]:
        """Algorithm → median of the evaluations to 99 % of the reachable hypervolume; None for never."""
        found: dict[str, list[int | None]] = {}
        for row in self.of(task):
            if "to_99" in row:
                found.setdefault(row["algorithm"], []).append(row["to_99"])
        return {name: median_or_none(values) for name, values in found.items()}

    def cpu_ms(self, budget: int, task: str | None = None) -> dict[str, float]:
        """Algorithm → processor time per evaluation at a budget, mean over tasks (or one) and seeds."""
        at, found = CPU_POINTS.index(budget), dict[str, list[float]]()
        for row in self._rows:
            if at < len(row["cpu_ms"]) and task in (None, row["task"]):
                found.setdefault(row["algorithm"], []).append(row["cpu_ms"][at] / budget)
        return {name: round(mean(values), 2) for name, values in found.items()}

    def feasible(self, task: str, at: int) -> Values:
        """Algorithm → seed → minus the best quality within the limits (larger is better), of limited tasks."""
        found: Values = {}
        for row in self.of(task):
            if "feasible_quality" in row:
                best = row["feasible_quality"][at]
                found.setdefault(row["algorithm"], {})[row["seed"]] = -math.inf if best is None else -best
        return found

    def result(self) -> dict[str, Any]:
        """The content of the RESULT line."""
        fronts = [task for task in self.tasks if any("hypervolume" in row for row in self.of(task))]
        best = {task: {b: self.against_best(task, b) for b in JUDGED} for task in fronts}
        content: dict[str, Any] = {
            "hypervolume": {task: self._spreads(task) for task in fronts},
            **{f"wins_at_{b}": {task: found[1].wins for task in fronts if (found := best[task][b])} for b in JUDGED},
            "evaluations_to_99": {task: medians for task in fronts if (medians := self.medians_to_99(task))},
            "cpu_ms_per_evaluation": self.cpu_ms(250) | {f"{OURS} at 2000": self.cpu_ms(2000).get(OURS)},
            "difference": {
                task: {
                    str(b): [found[0], round(found[1].difference, 5), round(found[1].error, 5)]
                    for b in JUDGED
                    if (found := best[task][b])
                }
                for task in fronts
            },
            "nsga2_reached": {task: reached for task in fronts if (reached := self.milestones(task))},
            "incomplete": {task: names for task in self.tasks if (names := self.incomplete(task))},
            "seeds": {task: len({row["seed"] for row in self.of(task)}) for task in self.tasks},
            "worse_than_random": {task: bad for task in fronts if (bad := self.worse_than_random(task))},
            "feasible_wins_at_100": {
                task: {name: list(wins) for name, wins in pairs.items()}
                for task in self.tasks
                if (pairs := self.feasible_pairs(task))
            },
        }
        return content

    def _spreads(self, task: str) -> dict[str, dict[str, list[float]]]:
        found: dict[str, dict[str, list[float]]] = {}
        for budget in BUDGETS:
            for name, values in self.hypervolumes(task, budget).items():
                found.setdefault(name, {})[str(budget)] = [round(x, 5) for x in mean_sd(list(values.values()))]
        return found

    def feasible_pairs(self, task: str) -> dict[str, tuple[int, int]]:
        """Opponent → seeds where our best quality within the limits is better at 100 evaluations, and is worse."""
        values = self.feasible(task, 1)
        ours = values.get(OURS, {})
        return {
            name: (paired_wins(ours, found), paired_wins(found, ours))
            for name, found in values.items()
            if ours and not name.startswith(OURS)
        }


def paired_wins(one: Mapping[int, float], other: Mapping[int, float]) -> int:
    """Common seeds where one is larger; values may be infinite."""
    return sum(one[seed] > other[seed] for seed in set(one) & set(other))


def show(report: Report) -> None:
    """The tables for people."""
    for task in report.tasks:
        rows = report.of(task)
        if any("hypervolume" in row for row in rows):
            _show_fronts(report, task)
        if any("feasible_quality" in row for row in rows):
            _show_limited(report, task)
    _show_judgement(report)
    _show_ablation(report)
    _show_cpu(report)


def _heading(text: str) -> None:
    print(f"\n{text}", flush=True)


def _show_fronts(report: Report, task: str) -> None:
    by_budget = {budget: report.hypervolumes(task, budget) for budget in BUDGETS}
    names = sorted({row["algorithm"] for row in report.of(task) if not row["algorithm"].startswith(WITHOUT)})
    order = sorted(names, key=lambda name: -mean(by_budget[100].get(name, {0: 0.0}).values()))
    medians = report.medians_to_99(task)
    _heading(f"{task}: share of the true front's hypervolume, mean ± sd over seeds")
    lines = []
    for name in order:
        cells = [_spread(by_budget[budget].get(name)) for budget in BUDGETS]
        reached = medians.get(name)
        lines.append([name, *cells, "–" if reached is None else f"{reached:g}", *_ends(report, task, name)])
    print_table(["algorithm", *map(str, BUDGETS), "to 99 %", "IGD+ at 100", "found at 100", "seeds"], lines)


def _ends(report: Report, task: str, name: str) -> list[str]:
    rows = [row for row in report.of(task) if row["algorithm"] == name]
    cells = []
    for key in ("igd_plus", "found"):
        values = [row[key][1] for row in rows if len(row.get(key, ())) > 1]
        cells.append(f"{mean(values):.4f}" if values else "–")
    return [*cells, str(len(rows))]


def _spread(values: Mapping[int, float] | None) -> str:
    if not values:
        return "–"
    center, spread = mean_sd(list(values.values()))
    return f"{center:.4f} ± {spread:.4f}"


def _show_limited(report: Report, task: str) -> None:
    best = next((row["feasible_best"] for row in report.of(task) if "feasible_best" in row), None)
    known = "" if best is None else f"; there is none better than {best:.5f}"
    _heading(f"{task}: best quality within the limit, mean over seeds (those that found any){known}")
    pairs, lines = report.feasible_pairs(task), []
    for name in report.feasible(task, 0):
        cells = []
        for at in range(2):
            values = [-value for value in report.feasible(task, at)[name].values() if value > -math.inf]
            cells.append(f"{mean(values):.5f} ({len(values)})" if values else "none (0)")
        shares = [row["feasible_share"] for row in report.of(task) if row["algorithm"] == name]
        lines.append([name, *cells, mean(shares), "{} / {}".format(*pairs[name]) if name in pairs else ""])
    print_table(["algorithm", "at 50", "at 100", "share within", f"{OURS} better / worse"], lines)


def _show_judgement(report: Report) -> None:
    _heading(f"{OURS} against the best opponent of each table, paired by seed")
    lines = []
    for task in report.tasks:
        for budget in JUDGED:
            if found := report.against_best(task, budget):
                best, pairs = found
                change = f"{pairs.difference:+.5f} ± {pairs.error:.5f}"
                lines.append([task, budget, best, change, pairs.in_errors, f"{pairs.wins}/{pairs.seeds}"])
    print_table(["task", "evaluations", "best opponent", "difference ± se", "in se", "wins"], lines)
    if left_out := sorted({name for task in report.tasks for name in report.incomplete(task)}):
        print(f"not compared on every table, for they have fewer seeds than {OURS} there: {', '.join(left_out)}")
    for task in report.tasks:
        for reference, reached in report.milestones(task).items():
            text = ", ".join(f"its {budget} at {'never' if n is None else n}" for budget, n in reached.items())
            print(f"{task}: evaluations until {OURS} reaches {NSGA2} ({reference} reference point): {text}")
        if bad := report.worse_than_random(task):
            print(f"{task}: more than two standard errors below random at {', '.join(map(str, bad))} evaluations")


def _show_ablation(report: Report) -> None:
    lines = []
    for task in report.tasks:
        values = {budget: report.hypervolumes(task, budget) for budget in JUDGED}
        for name in sorted({row["algorithm"] for row in report.of(task)}):
            if name.startswith(WITHOUT) and OURS in values[JUDGED[0]]:
                changes = [paired(values[b][name], values[b][OURS]) for b in JUDGED if name in values[b]]
                lines.append([task, name.removeprefix(WITHOUT), *_changes(changes)])
    if lines:
        _heading(f"{OURS} without one of its parts: paired change of the hypervolume ± standard error")
        print_table(["task", "without", *map(str, JUDGED)], lines)


def _changes(changes: Sequence[Paired]) -> Iterable[str]:
    return [f"{each.difference:+.5f} ± {each.error:.5f}" for each in changes]


def _show_cpu(report: Report) -> None:
    points = [point for point in CPU_POINTS if report.cpu_ms(point)]
    figures = {point: report.cpu_ms(point) for point in points}
    names = sorted({name for found in figures.values() for name in found if not name.startswith(WITHOUT)})
    _heading("processor time of the search per evaluation, ms, by evaluations; mean over tasks and seeds")
    print_table(["algorithm", *map(str, points)], [[n, *(figures[p].get(n, "–") for p in points)] for n in names])
