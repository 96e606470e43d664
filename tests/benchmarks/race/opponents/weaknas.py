"""WeakNAS: train a predictor, measure a few of those it ranks highest, repeat; made for several objectives.

Source: Wu et al., Stronger NAS with weaker predictors, NeurIPS 2021, arXiv 2102.10490, and its published code.
Settings as in that code: 10 random networks first, as in its NAS-Bench-201 runs; 10 networks per round, drawn uniformly
from the 100 that are predicted best and not measured yet; predictors retrained on everything measured; random forests
of depth 10, one of the three predictors it offers (its default, four layers of 1,000 neurons, takes minutes per round
on a CPU), of 100 trees on one-hot features.
Made for one objective; here every objective has a predictor, and "best" is by non-dominated rank, then crowding
distance. Ranks the whole space where it has at most 10,000 networks, else 10,000 random ones per round.
"""

from __future__ import annotations

from random import Random

import numpy as np
from sklearn.ensemble import RandomForestRegressor

from nas.algorithm import AlgorithmSettings, Ledger, Search, SearchProblem
from nas.evolution import select
from studies.records import Genotype
from tests.benchmarks.race.opponents._pool import candidates, one_hot, training_data

MAX_BUDGET = 400
_POOL, _TOP, _ROUND, _TREES = 10_000, 100, 10, 100


def search(problem: SearchProblem, settings: AlgorithmSettings) -> Search:
    """Alternate between training and measuring."""
    rng, ledger = Random(settings.seed), Ledger(problem)
    genotypes = ledger.draw(rng, _ROUND)
    while genotypes:
        yield from ledger.ask(genotypes)
        genotypes = _proposal(ledger, rng) or ledger.draw(rng, _ROUND)


def _proposal(ledger: Ledger, rng: Random) -> list[Genotype]:
    problem = ledger.problem
    known, costs_NM = training_data(ledger)
    pool = candidates(ledger, rng, _POOL)
    if not known or not pool:
        return []
    train_NF, pool_PF = one_hot(problem.space, known), one_hot(problem.space, pool)
    predicted_PM = np.empty((len(pool), costs_NM.shape[1]))
    for column, targets_N in enumerate(costs_NM.T):
        forest = RandomForestRegressor(n_estimators=_TREES, max_depth=10, random_state=rng.randrange(2**31))
        predicted_PM[:, column] = forest.fit(train_NF, targets_N).predict(pool_PF)
    top = select(problem.minimised(predicted_PM), problem.violations(predicted_PM), _TOP, rng.randrange(2**31))
    return [pool[i] for i in rng.sample(top, min(_ROUND, len(top)))]
