"""LINAS with the mutation its authors published, which changes almost nothing: see `_linas.py`."""

from __future__ import annotations

from nas.algorithm import AlgorithmSettings, Search, SearchProblem
from tests.benchmarks.race.opponents._linas import linas, published_mutation

MAX_BUDGET = 250


def search(problem: SearchProblem, settings: AlgorithmSettings) -> Search:
    """Search without limits, as published."""
    yield from linas(problem, settings, published_mutation(), constrained=False)
