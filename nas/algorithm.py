"""The protocol of search algorithms: generators that propose and never evaluate.

``costs = yield genotypes`` hands a list of genotypes to whoever drives the algorithm and receives one row of costs for
each, in order. The same algorithm therefore runs against a plain function, a pool of workers or the stored history of
an interrupted search. To make that last one exact, an algorithm must be deterministic: one seeded generator, no
iteration over sets, no clock, and no knowledge of the budget (a study may be resumed with a larger one).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import cast

import numpy as np
from numpy.typing import NDArray

from studies.discovery import VariantFolder
from studies.records import Genotype, Objective
from supernets.space import SearchSpace

Costs = NDArray[np.float64]
"""``[genotypes, columns]``, all to be minimised. A failed evaluation is a row of +inf."""

Search = Generator[list[Genotype], Costs, None]
"""A running algorithm; it returns when it has nothing new to propose."""

ALGORITHMS = VariantFolder(package="nas.algorithms", attribute="search", kind="algorithm")

_PATIENCE = 1000
"""Draws in a row that bring nothing new before a space counts as exhausted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AlgorithmSettings:
    """What every algorithm is told.

    Attributes:
        seed: of the algorithm's own random numbers.
        batch: genotypes per proposal. The default is smaller than the 50 of the LINAS paper: at the budgets of a
            laptop, learning more often is worth more than a larger batch.
    """

    seed: int = 0
    batch: int = 20

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"a batch holds at least 1 genotype, got {self.batch}")


@dataclass(frozen=True, kw_only=True)
class SearchProblem:
    """What is searched, in terms of costs: maximised objectives enter negated.

    Attributes:
        space: the genotypes.
        objectives: the columns of a cost row that are minimised.
        limited: further columns that are only limited.
        limits: column → largest allowed cost.
        exact: costs known without running anything, ``[genotypes, columns]``; NaN in the other columns.
        exact_columns: per column, whether `exact` knows it.
    """

    space: SearchSpace
    objectives: tuple[Objective, ...]
    exact: Callable[[Sequence[Genotype]], Costs]
    exact_columns: tuple[bool, ...]
    limited: tuple[Objective, ...] = ()
    limits: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert len(self.exact_columns) == len(self.columns), "exact_columns must cover every column"
        assert all(0 <= column < len(self.columns) for column in self.limits), "a limit names a column"

    @property
    def columns(self) -> tuple[Objective, ...]:
        """The columns of a cost row: objectives, then what is only limited."""
        return self.objectives + self.limited

    def minimised(self, costs: Costs) -> Costs:
        """The objective columns of cost rows."""
        return costs[:, : len(self.objectives)]

    def violations(self, costs: Costs) -> Costs:
        """Per row, by how much limits are broken, relative to them; 0 where they are met, +inf for a failed row.

        NaN (not known yet) breaks no limit.
        """
        total = np.where(np.isinf(costs).all(axis=1), np.inf, 0.0)
        for column, limit in self.limits.items():
            excess = np.fmax(costs[:, column] - limit, 0.0)
            total += excess / (abs(limit) or 1.0)
        return total


class Ledger:
    """What an algorithm knows: it asks only for genotypes that are new and, as far as is known exactly, within limits.

    Attributes:
        rows: every answered genotype in canonical form, in order, with its cost row.
        measured: the same for those that were really evaluated.
    """

    def __init__(self, problem: SearchProblem) -> None:
        self.problem = problem
        self.rows: dict[Genotype, Costs] = {}
        self.measured: dict[Genotype, Costs] = {}

    def ask(self, genotypes: Iterable[Genotype]) -> Generator[list[Genotype], Costs, Costs]:
        """Cost rows of the genotypes, in order; to be used as ``costs = yield from ledger.ask(genotypes)``.

        Only what is unknown is yielded, at most once. A genotype that provably breaks a limit is answered from its
        exact columns, with NaN in the others.
        """
        asked = [self.problem.space.canonical(genotype) for genotype in genotypes]
        wanted = self.affordable(genotype for genotype in dict.fromkeys(asked) if genotype not in self.rows)
        if wanted:
            costs = yield wanted
            assert costs.shape == (len(wanted), len(self.problem.columns)), "one full cost row per genotype"
            self.measured.update(zip(wanted, costs, strict=True))
            self.rows.update(zip(wanted, costs, strict=True))
        return np.array([self.rows[genotype] for genotype in asked]).reshape(-1, len(self.problem.columns))

    def affordable(self, genotypes: Iterable[Genotype]) -> list[Genotype]:
        """Those of the (canonical) genotypes not known to break a limit; the others are entered as answered."""
        candidates = list(genotypes)
        if not candidates or not self.problem.limits:
            return candidates
        exact = self.problem.exact(candidates)
        broken = self.problem.violations(exact) > 0
        self.rows.update((candidates[i], exact[i]) for i in np.flatnonzero(broken))
        return [genotype for genotype, bad in zip(candidates, broken, strict=True) if not bad]

    def draw(self, rng: Random, count: int) -> list[Genotype]:
        """Up to `count` distinct genotypes that are new and affordable; fewer where the space seems exhausted.

        Genes are drawn uniformly; a genotype over a limit is made smaller in random genes until it is within.
        """
        drawn: dict[Genotype, None] = {}
        misses = 0
        while len(drawn) < count and misses < _PATIENCE:
            genotype: Genotype | None = self.problem.space.sample(rng)
            while genotype is not None and not self.affordable([genotype]):
                genotype = _shrunk(self.problem.space, genotype, rng)
            if genotype is None or genotype in drawn or genotype in self.rows:
                misses += 1
            else:
                drawn[genotype] = None
                misses = 0
        return list(drawn)


def _shrunk(space: SearchSpace, genotype: Genotype, rng: Random) -> Genotype | None:
    """The genotype with one gene redrawn below its present option; None for the smallest network."""
    above = [gene for gene, index in enumerate(genotype) if index > 0]
    if not above:
        return None
    gene = rng.choice(above)
    return space.canonical((*genotype[:gene], rng.randrange(genotype[gene]), *genotype[gene + 1 :]))


def load_algorithm(name: str) -> Callable[[SearchProblem, AlgorithmSettings], Search]:
    """The `search` function of an algorithm by its command-line name; ValueError names the known ones."""
    return cast("Callable[[SearchProblem, AlgorithmSettings], Search]", ALGORITHMS.load(name))
