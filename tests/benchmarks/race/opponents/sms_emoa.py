"""SMS-EMOA of pymoo.

Source: Beume, Naujoks and Emmerich, SMS-EMOA: Multiobjective selection based on dominated hypervolume, EJOR 181(3),
2007.
Settings: see `_pymoo.py`.
"""

from __future__ import annotations

from pymoo.algorithms.moo.sms import SMSEMOA

from nas.algorithm import AlgorithmSettings, Search, SearchProblem
from tests.benchmarks.race.opponents._pymoo import evolve, operators


def search(problem: SearchProblem, settings: AlgorithmSettings) -> Search:
    """Evolve from a random start."""
    yield from evolve(problem, settings, SMSEMOA(**operators(problem.space)))
