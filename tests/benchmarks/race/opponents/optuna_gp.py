"""Gaussian process with expected hypervolume improvement, from Optuna; for small budgets.

Source: Optuna's `GPSampler` (log expected hypervolume improvement; Ament et al., Unexpected improvements to expected
improvement for Bayesian optimization, NeurIPS 2023).
Settings: 20 random networks first; Optuna's defaults otherwise. See `_optuna.py`. One network is drawn at random after
two known suggestions in a row instead of ten: where many encodings stand for one network it hardly leaves what it
knows, and every suggestion makes all later ones slower.
"""

from __future__ import annotations

import warnings

import optuna

from nas.algorithm import AlgorithmSettings, Search, SearchProblem
from tests.benchmarks.race.opponents._optuna import sample

REPEATS = 2
MAX_BUDGET, MAX_OBJECTIVES = 100, 2
"""Its time grows with the cube of the history: over a second per evaluation at 100, and more with three objectives."""


def search(problem: SearchProblem, settings: AlgorithmSettings) -> Search:
    """Sample by expected hypervolume improvement after a random start."""
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    sampler = optuna.samplers.GPSampler(
        n_startup_trials=20, deterministic_objective=not problem.noise, seed=settings.seed
    )
    yield from sample(problem, settings, sampler, REPEATS)
