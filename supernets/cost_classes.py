"""Classes of equal width in cost, so that training can look at cheap and expensive networks alike.

Networks drawn gene by gene are mostly of middling cost. AttentiveNAS (Wang et al., arXiv 2011.09011, section 3.3) first
draws a cost, then networks of about that cost.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

from supernets.space import Architecture, SearchSpace

Cost = Callable[[Architecture], float]
"""What a network costs, such as its latency by a table, or its multiply-accumulates."""

CLASSES = 8
POOL = 1024
"""Networks by which the classes are filled."""


class CostClasses:
    """Networks of a space, by what they cost."""

    def __init__(self, cost: Cost, seed: int) -> None:
        self._cost, self._seed = cost, seed
        self._classes = cache(self._of)

    def draw(self, space: SearchSpace, count: int, rng: random.Random) -> tuple[Architecture, ...]:
        """Networks of one class, every class being as likely; fewer than `count` only if the class is that small."""
        members = rng.choice(self._classes(space))
        return tuple(rng.sample(members, min(count, len(members))))

    def _of(self, space: SearchSpace) -> list[list[Architecture]]:
        """The classes that have members, cheapest first."""
        rng = random.Random(f"classes of cost {self._seed}")
        pool = dict.fromkeys([space.smallest, space.largest, *(space.sample(rng) for _ in range(POOL))])
        costs = {architecture: self._cost(architecture) for architecture in map(space.decode, pool)}
        low, high = min(costs.values()), max(costs.values())
        classes: list[list[Architecture]] = [[] for _ in range(CLASSES)]
        for architecture, cost in costs.items():
            share = (cost - low) / (high - low) if high > low else 0.0
            classes[min(int(share * CLASSES), CLASSES - 1)].append(architecture)
        return [members for members in classes if members]
