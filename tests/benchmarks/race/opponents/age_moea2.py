"""AGE-MOEA-II of pymoo.

Source: Panichella, An improved Pareto front modeling algorithm for large-scale many-objective optimization, GECCO 2022.
Settings: see `_pymoo.py`.
"""

from __future__ import annotations

from pymoo.algorithms.moo.age2 import AGEMOEA2

from nas.algorithm import AlgorithmSettings, Search, SearchProblem
from tests.benchmarks.race.opponents._pymoo import evolve, operators


def search(problem: SearchProblem, settings: AlgorithmSettings) -> Search:
    """Evolve from a random start."""
    yield from evolve(problem, settings, AGEMOEA2(**operators(problem.space)))
