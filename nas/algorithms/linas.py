"""LINAS: an inner evolutionary search on predictors proposes what to measure next.

Source: Cummings et al., A hardware-aware framework for accelerating neural architecture search across modalities,
arXiv 2205.10358. Kept: random start, predictors retrained on everything measured, an inner NSGA-II on predictions.
Different: objectives that are known exactly are computed rather than predicted; the inner search starts from the best
measured networks, and predicts whole generations at once; what it proposes is never a repeat and keeps the limits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import numpy as np

from nas.algorithm import AlgorithmSettings, Costs, Ledger, Search, SearchProblem, few_uniform
from nas.evolution import Evolution, select
from predictors.surrogate import fit_best
from studies.records import Genotype

_POPULATION = 50
_GENERATIONS = 20
_UNIFORM_SHARE = 4
"""One in this many of the first batch is a network whose layers are all alike."""

Predict = Callable[[Sequence[Genotype]], Costs]


def search(problem: SearchProblem, settings: AlgorithmSettings) -> Search:
    """Measure a first batch, then alternate between training predictors and measuring what they think best."""
    rng = Random(settings.seed)
    ledger = Ledger(problem)
    genotypes = _first_batch(ledger, rng, settings.batch)
    while genotypes:
        yield from ledger.ask(genotypes)
        seed = rng.randrange(2**32)
        predict = _train(ledger, seed)
        genotypes = _propose(ledger, predict, settings.batch, seed) if predict else []
        genotypes += ledger.draw(rng, settings.batch - len(genotypes))


def _first_batch(ledger: Ledger, rng: Random, batch: int) -> list[Genotype]:
    """Random networks and a few uniform ones, evenly spread over their sizes: they anchor the predictors."""
    uniform = ledger.affordable(few_uniform(ledger.problem.space))
    count = min(len(uniform), max(1, batch // _UNIFORM_SHARE))
    spread = np.linspace(0, len(uniform) - 1, count).round().astype(int)
    chosen = [uniform[i] for i in spread]
    return list(dict.fromkeys(chosen + ledger.draw(rng, batch - count)))


def _train(ledger: Ledger, seed: int) -> Predict | None:
    """Predictors of the columns nobody can compute, joined with the exact ones; None while nothing was measured."""
    problem = ledger.problem
    done = {genotype: row for genotype, row in ledger.measured.items() if np.isfinite(row).all()}
    if not done:
        return None
    features_NF = np.array([problem.space.features(genotype) for genotype in done])
    costs_NM = np.array(list(done.values()))
    unknown = [column for column, exact in enumerate(problem.exact_columns) if not exact]
    predictors = {column: fit_best(features_NF, costs_NM[:, column], seed % 2**31) for column in unknown}

    def predict(genotypes: Sequence[Genotype]) -> Costs:
        costs = problem.exact(genotypes).copy()
        features = np.array([problem.space.features(genotype) for genotype in genotypes])
        for column, predictor in predictors.items():
            costs[:, column] = predictor(features)
        return costs

    return predict


def _propose(ledger: Ledger, predict: Predict, count: int, seed: int) -> list[Genotype]:
    """The best unmeasured genotypes an inner NSGA-II finds on predictions."""
    problem = ledger.problem
    evolution = Evolution(
        problem.space,
        _inner_start(ledger, seed),
        objectives=len(problem.objectives),
        population=_POPULATION,
        offspring=_POPULATION,
        seed=seed,
    )
    found: dict[Genotype, Costs] = {}
    for _ in range(_GENERATIONS):
        generation = evolution.ask()
        if not generation:
            break
        costs = predict(generation)
        evolution.tell(problem.minimised(costs), problem.violations(costs))
        found.update(zip(generation, costs, strict=True))
    new = [genotype for genotype in found if genotype not in ledger.measured]
    candidates = ledger.affordable(new)
    if not candidates:
        return []
    costs = np.array([found[genotype] for genotype in candidates])
    return [candidates[i] for i in select(problem.minimised(costs), problem.violations(costs), count, seed)]


def _inner_start(ledger: Ledger, seed: int) -> list[Genotype]:
    """Half the best measured networks, half random ones."""
    problem = ledger.problem
    measured = list(ledger.measured)
    costs = np.array(list(ledger.measured.values()))
    best = select(problem.minimised(costs), problem.violations(costs), _POPULATION // 2, seed)
    rng = Random(seed)
    start = [measured[i] for i in best] + [problem.space.sample(rng) for _ in range(_POPULATION - len(best))]
    return list(dict.fromkeys(start))
