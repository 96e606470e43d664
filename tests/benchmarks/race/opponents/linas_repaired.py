"""LINAS with a mutation that mutates, and with limits in its inner search: see `_linas.py`."""

from __future__ import annotations

from nas.algorithm import AlgorithmSettings, Search, SearchProblem
from tests.benchmarks.race.opponents._linas import linas, working_mutation

MAX_BUDGET = 400


def search(problem: SearchProblem, settings: AlgorithmSettings) -> Search:
    """Search with limits as constraints of the inner search."""
    yield from linas(problem, settings, working_mutation(problem.space), constrained=True)
