"""How unevenly tokens choose experts, in few enough classes that a measured layer is met again.

Shapes: T tokens, k choices per token, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

Imbalance = Literal["even", "mild", "skewed"]

IMBALANCES: tuple[Imbalance, ...] = get_args(Imbalance)
ZIPF = {"even": 0.0, "mild": 0.5, "skewed": 1.0}
"""The expert of rank r is chosen in proportion to ``r ** -exponent``."""

_BISECTIONS = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutingProfile:
    """The quantised histogram of one call of a layer.

    Attributes:
        busy: experts that at least one token chose, out of a grid: 1 to 8, 10, 12, 14, 16, 20, 24, …, or all.
        imbalance: how unequal these are.
    """

    busy: int
    imbalance: Imbalance = "even"

    @property
    def key(self) -> str:
        """``e6,mild``, as it stands in the key of an `kernels.op_spec.OpSpec`."""
        return f"e{self.busy},{self.imbalance}"

    @classmethod
    def parse(cls, key: str) -> RoutingProfile:
        """The profile with this key."""
        busy, name = key.removeprefix("e").split(",")
        (imbalance,) = (one for one in IMBALANCES if one == name)
        return cls(busy=int(busy), imbalance=imbalance)


def profile_of(counts: Sequence[int], top_k: int) -> RoutingProfile:
    """The profile nearest to a histogram: choices per expert, which sum to T*k.

    The imbalance is the class whose own histogram has the nearest sum of squares, which is what decides how much of a
    padded block is waste; the evener class if two are equally near.
    """
    tokens, rest = divmod(sum(counts), top_k)
    assert tokens > 0, f"an empty histogram has no profile: {counts}"
    assert not rest, f"{sum(counts)} choices are no multiple of {top_k} per token"
    busy = sum(count > 0 for count in counts)
    squares = sum(count * count for count in counts)

    def distance(imbalance: Imbalance) -> int:
        of_class = histogram(tokens, top_k, RoutingProfile(busy=busy, imbalance=imbalance))
        return abs(sum(count * count for count in of_class) - squares)

    grid = on_grid(busy, tokens, top_k, len(counts))
    return RoutingProfile(busy=grid, imbalance=min(IMBALANCES, key=distance))


def expected_profile(tokens: int, top_k: int, experts: int) -> RoutingProfile:
    """The profile of a router without preferences: ``E * (1 - (1 - k/E)^T)`` busy experts, evenly loaded."""
    busy = round(experts * (1 - (1 - top_k / experts) ** tokens))
    return RoutingProfile(busy=on_grid(busy, tokens, top_k, experts))


def on_grid(busy: int, tokens: int, top_k: int, experts: int) -> int:
    """The nearest number of busy experts on the grid that T tokens with k choices among E experts can have."""
    most = min(experts, tokens * top_k)
    grid = {steps * 2**power for power in range(most.bit_length()) for steps in (1, 4, 5, 6, 7)} | {2, 3, most}
    return min(
        (size for size in sorted(grid) if top_k <= size <= most), key=lambda size: abs(size - busy), default=most
    )


@lru_cache(maxsize=4096)  # searches ask for the same few layers thousands of times
def histogram(tokens: int, top_k: int, profile: RoutingProfile) -> tuple[int, ...]:
    """Choices per busy expert, the busiest first: at least 1, at most T each, T*k together, else as near to the shares
    of the class as whole numbers come.
    """
    busy, total = profile.busy, tokens * top_k
    assert top_k <= busy <= total, f"{tokens} tokens with {top_k} choices cannot keep {busy} experts busy"
    shares = [rank ** -ZIPF[profile.imbalance] for rank in range(1, busy + 1)]

    def counts_at(scale: float) -> list[int]:
        return [max(1, min(tokens, int(scale * share))) for share in shares]

    low, high = 0.0, 2.0 * total / min(shares)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if sum(counts_at(middle)) > total else (middle, high)
    counts = counts_at(low)
    while missing := total - sum(counts):
        open_ranks = [rank for rank in range(busy) if counts[rank] < tokens]
        for rank in open_ranks[:missing]:
            counts[rank] += 1
    return tuple(counts)


def positions(busy: int, experts: int) -> tuple[int, ...]:
    """Which of E experts the busy ones are, the busiest first: spread evenly."""
    return tuple(rank * experts // busy for rank in range(busy))
