"""NSGA-II: evolves a population by non-dominated rank and crowding distance; limits are constraints."""

from __future__ import annotations

from random import Random

from nas.algorithm import AlgorithmSettings, Ledger, Search, SearchProblem
from nas.evolution import Evolution

_FREE_GENERATIONS = 100
"""Generations in a row that may cost no evaluation, because all children break a known limit."""


def search(problem: SearchProblem, settings: AlgorithmSettings) -> Search:
    """Evolve twice `batch` survivors from a random start, `batch` children at a time."""
    ledger = Ledger(problem)
    population = 2 * settings.batch
    start = ledger.draw(Random(settings.seed), population)
    if not start:
        return
    evolution = Evolution(
        problem.space,
        start,
        objectives=len(problem.objectives),
        population=population,
        offspring=settings.batch,
        seed=settings.seed,
    )
    free = 0
    while free < _FREE_GENERATIONS and (genotypes := evolution.ask()):
        measured = len(ledger.measured)
        costs = yield from ledger.ask(genotypes)
        evolution.tell(problem.minimised(costs), problem.violations(costs))
        free = free + 1 if len(ledger.measured) == measured else 0
