"""pymoo's algorithms behind the race's loop, with the operators pymoo itself uses for such variables.

Genes with ordered options are integers: simulated binary crossover (probability 0.9, eta 3) and polynomial mutation
(every gene with probability 1 / genes, eta 3), rounded. Genes without an order are exchanged uniformly and redrawn
(probability 1 / genes), as pymoo does for its `Choice` variables. Eta is 3 rather than the default 20, because among 3
to 9 options a default step rounds back to the parent; `prob` is per individual in pymoo 0.6.2, and is 1. Duplicates are
removed. Population 50, as in the comparison of the LINAS paper. Limits are constraints.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pymoo.core.crossover import Crossover
from pymoo.core.mutation import Mutation
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.operators.sampling.rnd import IntegerRandomSampling

from nas.algorithm import AlgorithmSettings, Costs, Ledger, Search, SearchProblem
from studies.records import Genotype
from supernets.space import SearchSpace
from tests.benchmarks.race.tables import nominal_genes

POPULATION = 50
FREE_GENERATIONS = 100
"""Generations in a row that may bring nothing new before a search ends."""

_WORST = 1e30


def evolve(problem: SearchProblem, settings: AlgorithmSettings, algorithm: Any) -> Search:
    """Ask, evaluate, tell, until a hundred generations in a row brought nothing new."""
    ledger = Ledger(problem)
    integers = IntegerProblem(problem.space, len(problem.objectives))
    algorithm.setup(integers, termination=NoTermination(), seed=settings.seed)
    free = 0
    while free < FREE_GENERATIONS:
        infills = algorithm.ask()
        if infills is None or len(infills) == 0:
            return
        measured = len(ledger.measured)
        costs = yield from ledger.ask(genotypes_of(infills))
        set_costs(infills, problem.minimised(costs), problem.violations(costs))
        algorithm.tell(infills=infills)
        free = free + 1 if len(ledger.measured) == measured else 0


def operators(space: SearchSpace) -> dict[str, Any]:
    """Sampling, crossover and mutation of a genotype, as keyword arguments of pymoo's algorithms."""
    return {
        "pop_size": POPULATION,
        "sampling": IntegerRandomSampling(),
        "crossover": _Crossover(space),
        "mutation": _Mutation(space),
        "eliminate_duplicates": True,
    }


class IntegerProblem(Problem):  # type: ignore[misc]
    """Genes as bounded integers; costs are set from outside."""

    def __init__(self, space: SearchSpace, objectives: int) -> None:
        upper = np.array([len(choice.options) - 1 for choice in space.choices])
        super().__init__(n_var=len(space), n_obj=objectives, n_ieq_constr=1, xl=0, xu=upper, vtype=int)


def genotypes_of(individuals: Any) -> list[Genotype]:
    """The genotypes of pymoo individuals."""
    return [tuple(int(gene) for gene in row) for row in np.rint(individuals.get("X").astype(float))]


def set_costs(individuals: Any, costs: Costs, violations: Costs) -> None:
    """Tell individuals their costs; a failed or unknown one is very bad."""
    individuals.set("F", finite(costs), "G", finite(violations)[:, None])


def finite(costs: Costs) -> Costs:
    """Costs or violations where a failed or unknown one is very bad."""
    return np.nan_to_num(costs, nan=_WORST, posinf=_WORST)


class _Crossover(Crossover):  # type: ignore[misc]
    """Simulated binary crossover of ordered genes, uniform exchange of the others."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__(2, 2, prob=0.9)
        self._nominal = np.array(nominal_genes(space))
        self._ordered = SBX(eta=3, vtype=float)

    def _do(self, problem: Any, X: Any, *args: Any, random_state: Any = None, **kwargs: Any) -> Any:
        bounded = self._ordered._do(problem, X.astype(float), *args, random_state=random_state, **kwargs)
        exchanged = random_state.random(X.shape[1:]) < 0.5
        uniform = np.where(exchanged, X[::-1], X)
        return np.where(self._nominal, uniform, np.rint(np.clip(bounded, problem.xl, problem.xu))).astype(int)


class _Mutation(Mutation):  # type: ignore[misc]
    """Polynomial mutation of ordered genes, a uniform redraw of the others."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__(prob=1.0)
        self._nominal = np.array(nominal_genes(space))
        self._ordered = PM(prob=1.0, prob_var=1 / len(space), eta=3, vtype=float)

    def _do(self, problem: Any, X: Any, *args: Any, random_state: Any = None, **kwargs: Any) -> Any:
        stepped = self._ordered._do(problem, X.astype(float), *args, random_state=random_state, **kwargs)
        redrawn = random_state.integers(problem.xl, problem.xu + 1, size=X.shape)
        chosen = random_state.random(X.shape) < 1 / X.shape[1]
        nominal = np.where(chosen, redrawn, X)
        return np.where(self._nominal, nominal, np.rint(np.clip(stepped, problem.xl, problem.xu))).astype(int)
