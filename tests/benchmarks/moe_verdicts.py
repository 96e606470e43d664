"""What the rows of the mixture-of-experts benchmark say, each with a 95 % interval.

Intervals are bootstraps in pairs: subjects are drawn again, and test sequences, the same ones for everything compared.
Losses are in nats per token. A negative difference means that the first side is better.

Shapes: S subjects, N test sequences, R draws.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nas.domain_texts import DOMAINS
from supernets.reduction import REDUCTIONS, reduction
from tests.benchmarks import moe_layouts, moe_thresholds
from tests.benchmarks.moe_bench import EVERYTHING
from tests.benchmarks.moe_jobs import Row
from tests.benchmarks.moe_operators import FULL, NONE, ROUTER_KD, SHARES

DRAWS = 2000
AWARE = ("ean", "easy-ep", "reap", "s011")
"""Scores that know what experts answer, and how strongly."""
Losses = NDArray[np.float64]
"""[S, N] nats per token of each test sequence."""
Cell = tuple[str, str, int, str]
"""Scope, operator, share of the experts in percent, repair."""
Rule = Literal["mean", "best"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A difference in nats per token, its 95 % interval, and whether what was claimed of it holds."""

    difference: float
    low: float
    high: float
    subjects: int

    @property
    def holds(self) -> bool:
        """Whether the whole interval is below zero."""
        return self.high < 0


class Table:
    """The losses of all cells, by subject."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._losses: dict[Cell, dict[str, list[float]]] = {}
        self.rows = list(rows)
        for row in self.rows:
            cell = (row["scope"], row["operator"], row["share"], row["repair"])
            self._losses.setdefault(cell, {})[row["subject"]] = [loss / 1000 for loss in row["loss"]]

    def subjects(self, cells: Iterable[Cell]) -> list[str]:
        """Those with a row in every cell, sorted."""
        found = [set(self._losses.get(cell, {})) for cell in cells]
        return sorted(set.intersection(*found)) if found else []

    def losses(self, cell: Cell, subjects: Sequence[str]) -> Losses:
        """[S, N]."""
        return np.array([self._losses[cell][subject] for subject in subjects])

    def increase(self, cell: Cell) -> float | None:
        """Mean loss above the full model's; None without rows."""
        full = (cell[0], FULL, 100, NONE)
        if not (subjects := self.subjects([cell, full])):
            return None
        return float((self.losses(cell, subjects) - self.losses(full, subjects)).mean())

    def versus(self, better: Sequence[Cell], worse: Sequence[Cell], rule: Rule = "mean") -> Verdict | None:
        """One group of cells against another, by the mean of each or by the best of each; None without rows."""
        if not (subjects := self.subjects([*better, *worse])):
            return None
        draw = Draws(len(subjects), len(self.losses(better[0], subjects)[0]))
        left, right = ([draw.means(self.losses(cell, subjects)) for cell in side] for side in (better, worse))
        chosen = np.mean if rule == "mean" else np.min
        return draw.verdict(chosen(left, axis=0) - chosen(right, axis=0))


class Draws:
    """Draws with replacement of subjects and of sequences; the first draw is everything once."""

    def __init__(self, subjects: int, sequences: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.subjects = subjects
        self._S = np.vstack([np.ones((1, subjects)), rng.multinomial(subjects, [1 / subjects] * subjects, DRAWS)])
        self._N = np.vstack([np.ones((1, sequences)), rng.multinomial(sequences, [1 / sequences] * sequences, DRAWS)])

    def means(self, losses_SN: Losses) -> Losses:
        """[R + 1]: the mean in every draw."""
        return np.asarray(((self._S @ losses_SN) * self._N).sum(1) / losses_SN.size)

    def verdict(self, differences: Losses) -> Verdict:
        """From one difference a draw."""
        low, high = np.quantile(differences[1:], [0.025, 0.975])
        return Verdict(float(differences[0]), float(low), float(high), self.subjects)


def orderings(table: Table) -> dict[str, Verdict | None]:
    """What is said about operators, by name; None where rows are missing."""

    def cells(names: Iterable[str], scopes: Iterable[str] = (EVERYTHING,), repair: str = NONE) -> list[Cell]:
        return [(scope, name, 50, repair) for name, scope in product(names, scopes)]

    known = REDUCTIONS.names()
    pruning = [name for name in known if reduction(name).pruning]
    merging = [name for name in known if not reduction(name).pruning]
    repaired = [table.versus(cells([name], repair=ROUTER_KD), cells([name])) for name in known]
    gains = [verdict for verdict in repaired if verdict is not None]
    least = max(gains, key=lambda verdict: verdict.high) if len(gains) == len(known) else None
    return {
        "aware < frequency": table.versus(cells(AWARE), cells(["frequency"])),
        "frequency < random": table.versus(cells(["frequency"]), cells(["random"])),
        "frequency < random, by domain": table.versus(cells(["frequency"], DOMAINS), cells(["random"], DOMAINS)),
        "frequency < random, on python": table.versus(cells(["frequency"], ["python"]), cells(["random"], ["python"])),
        "uncurl < uncurl without alignment": table.versus(cells(["uncurl"]), cells(["uncurl-unaligned"])),
        "ream < m-smoe": table.versus(cells(["ream"]), cells(["m-smoe"])),
        "best pruning < best merging": table.versus(cells(pruning), cells(merging), "best"),
        "router-kd < none, for every operator": least,
    }


def searched_counts(rows: Iterable[Row]) -> Verdict | None:
    """Best searched layout of half the experts against the best uniform one of REAP and EASY-EP, over subjects."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        if row["half"] is not None:
            found.setdefault((row["subject"], row["scope"]), {})[row["way"]] = row["half"]
    pairs = [ways["searched"] - ways["uniform"] for ways in found.values() if {"searched", "uniform"} <= set(ways)]
    if not pairs:
        return None
    draw = Draws(len(pairs), 1)
    return draw.verdict(draw.means(np.array(pairs)[:, None]))


def half_ratio(table: Table, rows: Iterable[Row]) -> float | None:
    """Damage of the searched layout of half the experts over that of the best uniform operator; the largest of all."""
    ratios = []
    for row in rows:
        if row["way"] == "searched" and row["half"] is not None:
            cells: list[Cell] = [(row["scope"], name, 50, NONE) for name in REDUCTIONS.names()]
            full = (row["scope"], FULL, 100, NONE)
            known = [cell for cell in cells if row["subject"] in table.subjects([cell, full])]
            damage = [
                float((table.losses(cell, [row["subject"]]) - table.losses(full, [row["subject"]])).mean())
                for cell in known
            ]
            if damage:
                ratios.append(row["half"] / min(damage))
    return max(ratios, default=None)


def hypervolume_wins(rows: Iterable[Row]) -> tuple[int, int]:
    """Seeds won in both hypervolumes, with all text and with every domain that was tried, of all seeds."""
    by_subject: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        by_subject.setdefault(row["subject"], {}).setdefault(row["scope"], []).append(row)
    complete = {
        subject: scopes
        for subject, scopes in by_subject.items()
        if all(len(found) == len(moe_layouts.WAYS) for found in scopes.values())
    }
    return sum(all(map(moe_layouts.won, scopes.values())) for scopes in complete.values()), len(complete)


def thresholds(rows: Iterable[Row]) -> dict[int, int]:
    """Experts → largest factor up to which the reduced model is at least as good; 1 if it never is."""
    losses: dict[tuple[int, str, int], dict[tuple[int, str], list[float]]] = {}
    for row in rows:
        cell = (row["experts"], row["operator"], row["count"])
        losses.setdefault(cell, {})[row["seed"], row["domain"]] = [loss / 1000 for loss in row["loss"]]
    tolerated: dict[int, int] = {}
    for experts in moe_thresholds.EXPERTS:
        for factor in moe_thresholds.FACTORS:
            verdict = _reduced_versus_scratch(losses, experts, experts // factor)
            if verdict is None or verdict.high > 0:
                break
            tolerated[experts] = factor
        if any(cell[0] == experts and cell[1] != moe_thresholds.SCRATCH for cell in losses):
            tolerated.setdefault(experts, 1)
    return tolerated


def _reduced_versus_scratch(
    losses: Mapping[tuple[int, str, int], Mapping[tuple[int, str], list[float]]], experts: int, count: int
) -> Verdict | None:
    cells = [(experts, name, count) for name in moe_thresholds.OPERATORS]
    scratch = (count, moe_thresholds.SCRATCH, count)
    if not all(cell in losses for cell in [*cells, scratch]):
        return None
    shared = sorted(set.intersection(*(set(losses[cell]) for cell in [*cells, scratch])))
    if not shared:
        return None
    draw = Draws(len(shared), len(losses[scratch][shared[0]]))
    reduced = [draw.means(np.array([losses[cell][one] for one in shared])) for cell in cells]
    return draw.verdict(np.min(reduced, axis=0) - draw.means(np.array([losses[scratch][one] for one in shared])))


def operator_table(table: Table) -> dict[str, dict[str, float]]:
    """Operator → share and repair → mean increase of the loss with all text, in nats per token."""
    columns = {
        f"{share}{'' if repair == NONE else ' ' + repair}": (share, repair)
        for share, repair in product(SHARES, (NONE, ROUTER_KD))
    }
    found: dict[str, dict[str, float]] = {}
    for name in REDUCTIONS.names():
        for column, (share, repair) in columns.items():
            if (increase := table.increase((EVERYTHING, name, share, repair))) is not None:
                found.setdefault(name, {})[column] = round(increase, 4)
    return found
