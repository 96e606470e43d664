"""One search of one problem: the loop that all competitors share, and its clock.

Rules, the same for everybody:

- A budget counts distinct networks that were evaluated, in canonical form. Asking again for a known one costs nothing.
- What can be computed without running a network (exact columns) may be asked of every network, at no cost.
- A failed evaluation counts; its costs are +inf.
- A search ends at its budget, by itself, or after `STALE` proposals in a row that bring nothing new.
- The clock is the processor time of the search alone, evaluations excluded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nas.algorithm import Costs, Search, SearchProblem
from studies.records import Genotype

STALE = 50


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """What a search asked, in order.

    Attributes:
        genotypes: T distinct canonical ones.
        costs: ``[T, columns]`` as the search saw them.
        cpu_ms: ``[T]``, processor time the search had used when it asked.
    """

    genotypes: tuple[Genotype, ...]
    costs: Costs
    cpu_ms: tuple[float, ...]


def trace(
    problem: SearchProblem, search: Search, evaluate: Callable[[Sequence[Genotype]], Costs], budget: int
) -> Trace:
    """Drive a search until its end; `evaluate` gives cost rows of new canonical genotypes."""
    known: dict[Genotype, Costs] = {}
    cpu_ms: list[float] = []
    stale, spent, start = 0, 0.0, time.process_time()
    proposal = next(search, [])
    while proposal:
        spent += time.process_time() - start
        asked = [problem.space.canonical(genotype) for genotype in proposal]
        new = [genotype for genotype in dict.fromkeys(asked) if genotype not in known][: budget - len(known)]
        if new:
            known.update(zip(new, evaluate(new), strict=True))
            cpu_ms += [1000.0 * spent] * len(new)
        stale = 0 if new else stale + 1
        if len(known) >= budget or stale >= STALE:
            break
        costs = np.array([known[genotype] for genotype in asked])
        start = time.process_time()
        try:
            proposal = search.send(costs)
        except StopIteration:
            break
    search.close()
    rows = np.array(list(known.values())).reshape(len(known), len(problem.columns))
    return Trace(genotypes=tuple(known), costs=rows, cpu_ms=tuple(cpu_ms))
