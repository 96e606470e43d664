"""NSGA-II of pymoo.

Source: Deb et al., A fast and elitist multiobjective genetic algorithm: NSGA-II, IEEE TEVC 6(2), 2002.
Settings: see `_pymoo.py`.
"""

from __future__ import annotations

from pymoo.algorithms.moo.nsga2 import NSGA2

from nas.algorithm import AlgorithmSettings, Search, SearchProblem
from tests.benchmarks.race.opponents._pymoo import evolve, operators


def search(problem: SearchProblem, settings: AlgorithmSettings) -> Search:
    """Evolve from a random start."""
    yield from evolve(problem, settings, NSGA2(**operators(problem.space)))
