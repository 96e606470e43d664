"""Tree-structured Parzen estimator of Optuna, for several objectives.

Source: Ozaki et al., Multiobjective tree-structured Parzen estimator, JAIR 73, 2022.
Settings: 20 random networks first; multivariate, as is the default of Optuna 5. See `_optuna.py`.
"""

from __future__ import annotations

import optuna

from nas.algorithm import AlgorithmSettings, Search, SearchProblem
from tests.benchmarks.race.opponents._optuna import sample


def search(problem: SearchProblem, settings: AlgorithmSettings) -> Search:
    """Sample from the estimator after a random start."""
    sampler = optuna.samplers.TPESampler(n_startup_trials=20, multivariate=True, seed=settings.seed)
    yield from sample(problem, settings, sampler)
