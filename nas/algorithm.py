"""The protocol of search algorithms: generators that propose and never evaluate.

``costs = yield genotypes`` hands a list of genotypes to whoever drives the algorithm and receives one row of costs for
each, in order. The same algorithm therefore runs against a plain function, a pool of workers or the stored history of
an interrupted search. To make that last one exact, an algorithm must be deterministic: one seeded generator, no
iteration over sets, no clock, and no knowledge of the budget (a study may be resumed with a larger one).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
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

_MOST_UNIFORM = 2000
"""Uniform networks beyond which a space does not have the layers that would make them special."""
_PATIENCE = 1000
"""Draws in a row that bring nothing new before a space counts as exhausted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnFit:
    """How well one column that has to be predicted is predicted, by cross-validation on what was measured.

    Attributes:
        predictor: name of the regressor in use, or of several joined by ``+``.
        relative_error: root mean squared error as a share of the column's standard deviation; 1 is as good as the mean.
        rank_correlation: Kendall's tau between predicted and measured, in [-1, 1].
        trusted: whether proposals follow the prediction rather than mostly explore.
    """

    predictor: str
    relative_error: float
    rank_correlation: float
    trusted: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """What an algorithm knew and did when it made one proposal.

    Attributes:
        number: of the proposal, from 0.
        measured: genotypes measured before it.
        columns: key of a predicted column → how well it is predicted; columns known exactly are left out.
        hypervolume: of the measured front within the limits, as a share of the box between `reference` and the best
            measured value of every objective; 0 where nothing counts yet.
        feasible_share: share of what was measured that keeps every limit and did not fail; 1 before the first row.
        note: what the proposal consists of, in a few words.
    """

    number: int
    measured: int
    columns: Mapping[str, ColumnFit]
    hypervolume: float
    feasible_share: float
    note: str


@dataclass(frozen=True, kw_only=True, slots=True)
class AlgorithmSettings:
    """What every algorithm is told.

    Attributes:
        seed: of the algorithm's own random numbers.
        batch: genotypes per proposal, at most. The default is smaller than the 50 of the LINAS paper: at the budgets of
            a laptop, learning more often is worth more than a larger batch.
        known: canonical genotype → full cost row known from elsewhere for the same space, NaN where a column is
            unknown. It costs nothing and counts as measured nowhere. Algorithms may ignore it.
        related: genotype → cost row under other circumstances, such as on another device, NaN where unknown. Its costs
            are not those of this problem, but may help to predict them. Algorithms may ignore it.
        observe: called before every proposal by algorithms that can explain themselves; must not change anything.
    """

    seed: int = 0
    batch: int = 20
    known: Mapping[Genotype, tuple[float, ...]] = field(default_factory=dict, hash=False)
    related: Mapping[Genotype, tuple[float, ...]] = field(default_factory=dict, hash=False)
    observe: Callable[[Generation], None] | None = field(default=None, compare=False, repr=False)

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
        noise: standard error of a measured cost per column, in its unit, where the evaluation knows it; empty if not.
    """

    space: SearchSpace
    objectives: tuple[Objective, ...]
    exact: Callable[[Sequence[Genotype]], Costs]
    exact_columns: tuple[bool, ...]
    limited: tuple[Objective, ...] = ()
    limits: Mapping[int, float] = field(default_factory=dict)
    noise: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.exact_columns) == len(self.columns), "exact_columns must cover every column"
        assert len(self.noise) in (0, len(self.columns)), "noise is given for every column or for none"
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
        total = np.where(np.isposinf(costs).all(axis=1), np.inf, 0.0)
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


def few_uniform(space: SearchSpace) -> list[Genotype]:
    """All networks whose layers are alike; none where there are very many, as where every gene has its own axis."""
    found = list(islice(space.uniform(), _MOST_UNIFORM + 1))
    return found if len(found) <= _MOST_UNIFORM else []


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
