"""NSGA-II over genotypes: pymoo's selection and survival, with variation made for small integers.

Source: Deb et al., A fast and elitist multiobjective genetic algorithm: NSGA-II, IEEE TEVC 6(2), 2002.

Variation is our own, because operators for real numbers do not suit a handful of options per gene: simulated binary
crossover and polynomial mutation, rounded to integers, leave nearly every child equal to a parent. Here genes are
exchanged uniformly and redrawn uniformly, and only genes that matter are touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymoo.algorithms.moo.nsga2 import NSGA2, binary_tournament
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.operators.selection.tournament import TournamentSelection
from pymoo.operators.survival.rank_and_crowding import RankAndCrowding

from nas.algorithm import Costs
from studies.records import Genotype
from supernets.space import SearchSpace

_ROUNDS = 50
"""Matings tried to fill one generation with genotypes never asked before."""

_WORST = 1e30
"""Stands for +inf and for unknown, which crowding distances cannot subtract."""


class Evolution:
    """One population; `ask` for a generation, `tell` its costs. Never asks for a genotype twice.

    Args:
        start: the first generation.
        objectives: number of cost columns.
        population: how many survive.
        offspring: genotypes per later generation.
    """

    def __init__(
        self,
        space: SearchSpace,
        start: Sequence[Genotype],
        *,
        objectives: int,
        population: int,
        offspring: int,
        seed: int,
    ) -> None:
        self._algorithm = NSGA2(
            pop_size=population,
            n_offsprings=offspring,
            sampling=np.array(start, dtype=int),
            mating=_Mating(space),
            eliminate_duplicates=False,
            seed=seed,
        )
        problem = _problem(objectives, variables=len(space))
        self._algorithm.setup(problem, termination=NoTermination())
        self._asked: Any = None

    def ask(self) -> list[Genotype]:
        """The next generation, distinct and canonical; empty once variation finds nothing new."""
        self._asked = self._algorithm.ask()
        return [] if self._asked is None else [tuple(map(int, x)) for x in self._asked.get("X")]

    def tell(self, costs: Costs, violations: Costs) -> None:
        """Costs ``[generation, objectives]`` and limit violations ``[generation]`` of what was asked last."""
        _set_costs(self._asked, costs, violations)
        self._algorithm.tell(infills=self._asked)


def select(costs: Costs, violations: Costs, count: int, seed: int) -> list[int]:
    """Indices of the `count` best rows by NSGA-II's order: limits, then non-dominated rank, then crowding distance."""
    individuals = Population.new("X", np.arange(len(costs))[:, None])
    _set_costs(individuals, costs, violations)
    best = RankAndCrowding().do(
        _problem(costs.shape[1], variables=1),
        individuals,
        n_survive=min(count, len(costs)),
        random_state=np.random.default_rng(seed),
    )
    return [int(x) for x in best.get("X")[:, 0]]


def vary(space: SearchSpace, parents_PG: NDArray[np.int64], rng: np.random.Generator) -> list[Genotype]:
    """One canonical child of every two rows of parents.

    Genes of dropped layers say nothing, so they are drawn afresh first: a child that grows deeper gets random layers,
    not the thinnest ones. Every gene then comes from either parent with equal probability, and each is redrawn with
    probability 1 / (number of genes that matter).
    """
    options_G = np.array([len(choice.options) for choice in space.choices])
    active_PG = np.array([space.active_genes(tuple(parent)) for parent in parents_PG])
    genes_PG = np.where(active_PG, parents_PG, rng.integers(options_G, size=parents_PG.shape))
    mothers, fathers = genes_PG[::2], genes_PG[1::2]
    children = np.where(rng.random(mothers.shape) < 0.5, mothers, fathers)
    rate = 1 / np.maximum(1, (active_PG[::2] & (options_G > 1)).sum(axis=1, keepdims=True))
    shifts = rng.integers(1, np.maximum(2, options_G), size=children.shape)
    children = np.where(rng.random(children.shape) < rate, (children + shifts) % options_G, children)
    return [space.canonical(child) for child in children.tolist()]


class _Mating:
    """pymoo's mating step: tournaments, `vary`, and only children nobody has seen."""

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._seen: set[Genotype] = set()
        self._selection = TournamentSelection(func_comp=binary_tournament)

    def do(
        self, problem: Any, population: Any, count: int, *, algorithm: Any, random_state: np.random.Generator
    ) -> Any:
        genes = population.get("X")
        self._seen.update(tuple(row) for row in genes.tolist())
        children: dict[Genotype, None] = {}
        for _ in range(_ROUNDS):
            pairs = self._selection.do(
                problem, population, count, 2, to_pop=False, algorithm=algorithm, random_state=random_state
            )
            for child in vary(self._space, genes[pairs.ravel()], random_state):
                if child not in self._seen and len(children) < count:
                    children[child] = None
            if len(children) == count:
                break
        self._seen.update(children)
        return Population.new("X", np.array(list(children), dtype=int))


def _problem(objectives: int, variables: int) -> Any:
    return Problem(n_var=variables, n_obj=objectives, n_ieq_constr=1)


def _set_costs(individuals: Any, costs: Costs, violations: Costs) -> None:
    finite = np.nan_to_num(costs, nan=_WORST, posinf=_WORST)
    individuals.set("F", finite, "G", np.minimum(violations, _WORST)[:, None])
