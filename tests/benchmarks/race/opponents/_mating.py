"""pymoo's mating on plain arrays: the same operators, probabilities and retries without an object per child.

LINAS breeds 20,000 children per loop, most of which equal their parents; with pymoo's own bookkeeping that is most of
its time, and would be held against it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymoo.core.population import Population

Genes = NDArray[np.int64]


class ArrayMating:
    """Stands in for a `pymoo.core.mating.Mating` whose operators take and give integers.

    Legend of shapes: P members of the population, M matings, G genes.
    """

    def __init__(self, original: Any) -> None:
        self._selection, self._crossover, self._mutation = original.selection, original.crossover, original.mutation
        self._retries = original.n_max_iterations

    def do(self, problem: Any, population: Any, count: int, *, random_state: Any, **others: Any) -> Any:
        """Up to `count` children that differ from each other and from the population."""
        genes_PG = population.get("X").astype(np.int64)
        seen = set(map(bytes, genes_PG))
        children: list[Genes] = []
        for _ in range(self._retries):
            matings = math.ceil((count - len(children)) / 2)
            parents_M2 = self._selection.do(
                problem, population, matings, 2, to_pop=False, random_state=random_state, **others
            )
            for child_G in self._vary(problem, genes_PG[parents_M2.T], random_state):
                if (key := child_G.tobytes()) not in seen and len(children) < count:
                    seen.add(key)
                    children.append(child_G)
            if len(children) == count:
                break
        return Population.new("X", np.array(children)) if children else Population.create()

    def _vary(self, problem: Any, parents_2MG: Genes, random_state: Any) -> Genes:
        matings = parents_2MG.shape[1]
        crossed = random_state.random(matings) < self._crossover.prob.value
        bred_2MG = self._crossover._do(problem, parents_2MG.astype(float), random_state=random_state)
        genes_KG = np.where(crossed[:, None], _rounded(problem, bred_2MG), parents_2MG).reshape(2 * matings, -1)
        mutated = random_state.random(len(genes_KG)) <= self._mutation.prob.value
        moved_KG = self._mutation._do(problem, genes_KG.astype(float), random_state=random_state)
        return np.where(mutated[:, None], _rounded(problem, moved_KG), genes_KG)


def _rounded(problem: Any, values: NDArray[np.float64]) -> Genes:
    return np.clip(np.rint(values), problem.xl, problem.xu).astype(np.int64)
