"""What a search may measure next, of spaces too large to look at every network.

Legend of shapes: P candidates, F features, M columns of a cost row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas.algorithm import Costs, SearchProblem
from studies.pareto import non_dominated
from studies.records import Genotype
from supernets.genes import GeneTable, Matrix

SMALL_SPACE = 20_000
"""Networks up to which a space is looked at as a whole."""

_GENERATIONS, _CHILDREN, _PARENTS, _FRESH = 12, 150, 80, 20


@dataclass(frozen=True)
class Pool:
    """Candidates with what predictions need.

    Attributes:
        genotypes: distinct and canonical.
        features_PF: see `GeneTable.features`.
        exact_PM: the columns known exactly, NaN in the others.
    """

    genotypes: tuple[Genotype, ...]
    features_PF: Matrix
    exact_PM: Costs

    @classmethod
    def of(cls, problem: SearchProblem, table: GeneTable, genotypes: Sequence[Genotype]) -> Pool:
        """The pool of canonical genotypes."""
        return cls(tuple(genotypes), table.features(table.matrix(genotypes)), problem.exact(genotypes))

    def __len__(self) -> int:
        return len(self.genotypes)

    def take(self, rows: NDArray[np.int64]) -> Pool:
        """Some of the candidates."""
        return Pool(tuple(self.genotypes[i] for i in rows), self.features_PF[rows], self.exact_PM[rows])

    def joined(self, other: Pool) -> Pool:
        """The candidates of both, which must differ."""
        return Pool(
            self.genotypes + other.genotypes,
            np.vstack([self.features_PF, other.features_PF]),
            np.vstack([self.exact_PM, other.exact_PM]),
        )


Predict = Callable[[Pool], Costs]


class Breeder:
    """Finds candidates: all of a small space, in a large one what evolves on predictions from the best networks."""

    def __init__(self, problem: SearchProblem, table: GeneTable) -> None:
        self._problem, self._table = problem, table
        self._survivors: list[Genotype] = []
        self._all = Pool.of(problem, table, table.everything()) if problem.space.size <= SMALL_SPACE else None

    def candidates(
        self, predict: Predict, start: Sequence[Genotype], asked: Collection[Genotype], rng: np.random.Generator
    ) -> tuple[Pool, Costs]:
        """New candidates whose exact costs are finite and within the limits, and their predicted cost rows.

        Args:
            start: networks to breed from, apart from the best of the time before and random ones.
            asked: networks that are no longer candidates.
        """
        pool, costs_PM = (self._all, None) if self._all is not None else self._bred(predict, start, rng)
        computed_PM = pool.exact_PM[:, np.array(self._problem.exact_columns)]
        within_P = (self._problem.violations(pool.exact_PM) == 0) & np.isfinite(computed_PM).all(axis=1)
        new = [i for i, genotype in enumerate(pool.genotypes) if within_P[i] and genotype not in asked]
        rows = np.array(new, dtype=np.int64)
        pool = pool.take(rows)
        return pool, costs_PM[rows] if costs_PM is not None else predict(pool)

    def _bred(self, predict: Predict, start: Sequence[Genotype], rng: np.random.Generator) -> tuple[Pool, Costs]:
        table, problem = self._table, self._problem
        random = [table.graded_draw(rng, _FRESH), table.uniform_draw(rng, _FRESH)]
        first = dict.fromkeys([*start, *self._survivors, *table.distinct(np.vstack(random))])
        pool = Pool.of(problem, table, list(first))
        costs_PM = predict(pool)
        for _ in range(_GENERATIONS):
            parents = [pool.genotypes[i] for i in fittest(problem, costs_PM, _PARENTS)]
            bred = table.distinct(table.children(table.matrix(parents), rng, _CHILDREN))
            seen = set(pool.genotypes)
            children = Pool.of(problem, table, [genotype for genotype in bred if genotype not in seen])
            costs_PM = np.vstack([costs_PM, predict(children)])
            pool = pool.joined(children)
        self._survivors = [pool.genotypes[i] for i in fittest(problem, costs_PM, _PARENTS)]
        return pool, costs_PM


def fittest(problem: SearchProblem, costs_PM: Costs, count: int) -> list[int]:
    """Indices of the best rows: layer by layer of the non-dominated, what breaks a limit by how much it does.

    Rows with an infinite objective are left out: nothing is known to be good about them.

    The last layer that fits is thinned evenly along the first objective.
    """
    violations_P = problem.violations(costs_PM)
    objectives_PM = problem.minimised(costs_PM)
    left = np.flatnonzero((violations_P == 0) & np.isfinite(objectives_PM).all(axis=1))
    chosen: list[int] = []
    while len(chosen) < count and len(left):
        on_front = non_dominated(objectives_PM[left])
        assert on_front.any(), "only finite rows are compared"
        layer, left = left[on_front], left[~on_front]
        if len(layer) > count - len(chosen):
            layer = layer[np.argsort(objectives_PM[layer, 0], kind="stable")]
            layer = layer[np.linspace(0, len(layer) - 1, count - len(chosen)).round().astype(int)]
        chosen += layer.tolist()
    broken = np.flatnonzero(violations_P > 0)
    chosen += broken[np.argsort(violations_P[broken], kind="stable")].tolist()
    return chosen[:count]
