"""NSGA-II of Optuna.

Source: Deb et al., A fast and elitist multiobjective genetic algorithm: NSGA-II, IEEE TEVC 6(2), 2002.
Settings: population 50; Optuna's defaults otherwise (uniform crossover with probability 0.9, every gene redrawn with
probability 1 / genes). See `_optuna.py`.
"""

from __future__ import annotations

import optuna

from nas.algorithm import AlgorithmSettings, Search, SearchProblem
from tests.benchmarks.race.opponents._optuna import sample


def search(problem: SearchProblem, settings: AlgorithmSettings) -> Search:
    """Evolve from a random start."""
    yield from sample(problem, settings, optuna.samplers.NSGAIISampler(population_size=50, seed=settings.seed))
