"""Uniform random search without repeats: the baseline every other algorithm must beat."""

from __future__ import annotations

from random import Random

from nas.algorithm import AlgorithmSettings, Ledger, Search, SearchProblem


def search(problem: SearchProblem, settings: AlgorithmSettings) -> Search:
    """Propose genotypes with every gene drawn uniformly, made smaller at random where they break a known limit."""
    rng = Random(settings.seed)
    ledger = Ledger(problem)
    while genotypes := ledger.draw(rng, settings.batch):
        yield from ledger.ask(genotypes)
