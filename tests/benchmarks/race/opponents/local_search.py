"""Multi-objective local search: explore the neighbours of what is on the front until nothing improves, then restart.

Source: Paquete, Chiarandini and Stützle, Pareto local optimum sets in the biobjective traveling salesman problem, 2004
(Pareto local search); shown to be a strong baseline in architecture search by White et al., Exploring the loss
landscape in neural architecture search, UAI 2021, and den Ottelander et al., Local search is a remarkably strong
baseline for neural architecture search, EMO 2021.

Settings: starts from 10 random networks; takes a random front member not explored yet, evaluates its neighbours in
random order, 10 at a time, and takes another as soon as a batch has added to the front. A neighbour differs in one
gene: by one step where options have an order, by any other option where they have none. Ten new random networks once
all front members are explored.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import numpy as np

from nas.algorithm import AlgorithmSettings, Costs, Ledger, Search, SearchProblem
from studies.pareto import non_dominated
from studies.records import Genotype
from supernets.space import SearchSpace
from tests.benchmarks.race.tables import nominal_genes

_BATCH = 10


def search(problem: SearchProblem, settings: AlgorithmSettings) -> Search:
    """Pareto local search with random restarts."""
    rng = Random(settings.seed)
    ledger = Ledger(problem)
    explored: set[Genotype] = set()
    while True:
        open_members = [member for member in _front(ledger) if member not in explored]
        if not open_members:
            start = ledger.draw(rng, _BATCH)
            if not start:
                return
            yield from ledger.ask(start)
            continue
        member = rng.choice(open_members)
        around = [genotype for genotype in neighbours(problem.space, member) if genotype not in ledger.rows]
        rng.shuffle(around)
        before = _front(ledger)
        for at in range(0, len(around), _BATCH):
            yield from ledger.ask(around[at : at + _BATCH])
            if _front(ledger) != before:
                break
        else:
            explored.add(member)


def neighbours(space: SearchSpace, genotype: Genotype) -> Iterator[Genotype]:
    """Distinct canonical networks that differ in one gene: a step where options have an order, any option where not."""
    seen = {space.canonical(genotype)}
    for gene, (choice, is_nominal) in enumerate(zip(space.choices, nominal_genes(space), strict=True)):
        steps = range(len(choice.options)) if is_nominal else (genotype[gene] - 1, genotype[gene] + 1)
        for index in steps:
            if 0 <= index < len(choice.options):
                other = space.canonical((*genotype[:gene], index, *genotype[gene + 1 :]))
                if other not in seen:
                    seen.add(other)
                    yield other


def _front(ledger: Ledger) -> list[Genotype]:
    """Measured networks none of which another beats, among those that break limits least."""
    problem = ledger.problem
    costs: Costs = np.array(list(ledger.measured.values())).reshape(-1, len(problem.columns))
    if not len(costs):
        return []
    violations = problem.violations(costs)
    least = np.flatnonzero(violations == violations.min())
    members = least[non_dominated(problem.minimised(costs)[least])]
    genotypes = list(ledger.measured)
    return [genotypes[i] for i in members]
