"""Gaps, rank correlations and their intervals, for the study of supernet quality.

Shapes: N networks, S seeds, D bootstrap draws, R networks that were trained alone twice. Qualities are accuracies; a
gap is what a network trained alone has more than the same network with inherited weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from studies.pareto import hypervolume

Array = NDArray[np.float64]
Interval = tuple[float, float, float]
"""Estimate, and the ends of the 95 % interval."""

DRAWS = 1000
WORST_ERROR = 0.5
"""Of the reference point of hypervolumes: guessing."""


def kendall(first: ArrayLike, second: ArrayLike) -> float:
    """Kendall's tau-b of two vectors [N]; 0 if one is constant."""
    one_NN, two_NN = (np.sign(np.subtract.outer(x, x)) for x in (np.asarray(first), np.asarray(second)))
    pairs = np.sqrt(np.abs(one_NN).sum() * np.abs(two_NN).sum())
    return float((one_NN * two_NN).sum() / pairs) if pairs else 0.0


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Spearman's rank correlation of two vectors [N], ties sharing their mean rank; 0 if one is constant."""
    from scipy.stats import rankdata

    one_N, two_N = (rankdata(x) - (np.size(x) + 1) / 2 for x in (first, second))
    scale = np.sqrt((one_N @ one_N) * (two_N @ two_N))
    return float(one_N @ two_N / scale) if scale else 0.0


@dataclass(frozen=True, kw_only=True)
class Study:
    """What the rows hold, as far as they go.

    Attributes:
        networks: numbers of the N networks whose truth is known.
        alone_N: accuracy when trained alone; `alone_loss_N` likewise.
        again: network number → accuracy when trained alone a second time; `again_loss` likewise.
        costs: parameters, macs and latency (ms) of the N networks.
        inherited: arm → accuracies [S, N]; `inherited_loss` likewise.
        arms: arm → its rows, one per seed.
        paces: arm → its row of step times and memory.
    """

    networks: tuple[int, ...]
    alone_N: Array
    alone_loss_N: Array
    again: Mapping[int, float]
    again_loss: Mapping[int, float]
    costs: Mapping[str, Array]
    inherited: Mapping[str, Array]
    inherited_loss: Mapping[str, Array]
    arms: Mapping[str, Sequence[Mapping[str, Any]]]
    paces: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, rows: Mapping[tuple[Any, ...], Mapping[str, Any]]) -> Study:
        """Gather rows by key."""
        truth = {key[1]: row for key, row in rows.items() if key[0] == "truth" and key[2] == 0}
        second = {key[1]: row for key, row in rows.items() if key[0] == "truth" and key[2] == 1}
        chosen = sorted(truth)
        arms: dict[str, list[Mapping[str, Any]]] = {}
        for key in sorted((key for key in rows if key[0] == "arm"), key=lambda key: key[2]):
            arms.setdefault(key[1], []).append(rows[key])
        costs = rows.get(("costs",), {})

        def inherited(name: str, field: str) -> Array:
            return np.array([[row[field][number] for number in chosen] for row in arms[name]])

        return cls(
            networks=tuple(chosen),
            alone_N=np.array([truth[number]["accuracy"] for number in chosen]),
            alone_loss_N=np.array([truth[number]["loss"] for number in chosen]),
            again={number: row["accuracy"] for number, row in second.items()},
            again_loss={number: row["loss"] for number, row in second.items()},
            costs={
                name: np.array([costs[name][number] for number in chosen])
                for name in ("parameters", "macs", "latency")
                if costs
            },
            inherited={name: inherited(name, "accuracies") for name in arms},
            inherited_loss={name: inherited(name, "losses") for name in arms},
            arms=arms,
            paces={key[1]: row for key, row in rows.items() if key[0] == "pace"},
        )

    def by_loss(self) -> Study:
        """The same study with negative losses for accuracies."""
        return replace(
            self,
            alone_N=-self.alone_loss_N,
            again={number: -loss for number, loss in self.again_loss.items()},
            inherited={arm: -loss_SN for arm, loss_SN in self.inherited_loss.items()},
        )

    def part(self, chosen: slice) -> Study:
        """The same study of some of the networks, by position."""
        return replace(
            self,
            networks=self.networks[chosen],
            alone_N=self.alone_N[chosen],
            alone_loss_N=self.alone_loss_N[chosen],
            costs={name: cost_N[chosen] for name, cost_N in self.costs.items()},
            inherited={arm: values_SN[:, chosen] for arm, values_SN in self.inherited.items()},
            inherited_loss={arm: values_SN[:, chosen] for arm, values_SN in self.inherited_loss.items()},
        )

    @cached_property
    def draws_DN(self) -> NDArray[np.int64]:
        """Bootstrap samples of networks; the same for every figure, so that differences are paired."""
        size = len(self.networks)
        return np.random.default_rng(0).integers(size, size=(DRAWS, size))

    def interval(self, figure: Callable[[NDArray[np.int64]], float]) -> Interval:
        """A figure of some networks (indices), with a percentile interval over the bootstrap samples."""
        low, high = np.quantile([figure(draw_N) for draw_N in self.draws_DN], [0.025, 0.975])
        return figure(np.arange(len(self.networks))), float(low), float(high)

    # -- gaps -------------------------------------------------------------------------------------------------

    def gaps_N(self, arm: str) -> Array:
        """Mean over the seeds."""
        gaps: Array = self.alone_N - self.inherited[arm].mean(axis=0)
        return gaps

    def gap(self, arm: str) -> Interval:
        """Mean gap."""
        gaps_N = self.gaps_N(arm)
        return self.interval(lambda draw_N: float(gaps_N[draw_N].mean()))

    def gap_difference(self, arm: str, other: str) -> Interval:
        """By how much the mean gap of one arm is larger than that of another."""
        more_N = self.gaps_N(arm) - self.gaps_N(other)
        return self.interval(lambda draw_N: float(more_N[draw_N].mean()))

    def gap_ratio(self, arm: str, other: str) -> Interval:
        """Mean gap of one arm over that of another; NaN where the other has none, or is better than the truth."""
        one_N, two_N = self.gaps_N(arm), self.gaps_N(other)

        def ratio(draw_N: NDArray[np.int64]) -> float:
            below = two_N[draw_N].mean()
            return float(one_N[draw_N].mean() / below) if below > 0 else float("nan")

        return self.interval(ratio)

    def loss_gap(self, arm: str) -> float:
        """Mean of inherited loss minus loss alone."""
        return float((self.inherited_loss[arm].mean(axis=0) - self.alone_loss_N).mean())

    def steps_to_alone(self, arm: str) -> float | None:
        """Mean steps of further training until the accuracy alone is reached, the last look where it never is."""
        place = {number: at for at, number in enumerate(self.networks)}
        steps = []
        for row in self.arms[arm]:
            for curve in (one for one in row["onward"] if one["network"] in place):
                goal = self.alone_N[place[curve["network"]]]
                reached = [step for step, _, accuracy in curve["curve"] if accuracy >= goal]
                steps.append(reached[0] if reached else curve["curve"][-1][0])
        return float(np.mean(steps)) if steps else None

    # -- ranks ------------------------------------------------------------------------------------------------

    def tau_of(self, arm: str, draw_N: NDArray[np.int64]) -> float:
        """Kendall's tau of inherited against alone, the mean over the seeds."""
        return float(np.mean([kendall(one_N[draw_N], self.alone_N[draw_N]) for one_N in self.inherited[arm]]))

    def tau(self, arm: str) -> Interval:
        """With its interval."""
        return self.interval(lambda draw_N: self.tau_of(arm, draw_N))

    def spearman(self, arm: str) -> float:
        """Spearman's rank correlation of inherited against alone, the mean over the seeds."""
        return float(np.mean([spearman(one_N, self.alone_N) for one_N in self.inherited[arm]]))

    def tau_difference(self, arm: str, other: str) -> Interval:
        """By how much one arm ranks better than another."""
        return self.interval(lambda draw_N: self.tau_of(arm, draw_N) - self.tau_of(other, draw_N))

    def proxies(self) -> dict[str, float]:
        """Kendall's tau of sizes and times against quality alone."""
        return {name: kendall(cost_N, self.alone_N) for name, cost_N in self.costs.items()}

    @cached_property
    def twice_R(self) -> NDArray[np.int64]:
        """Positions of the networks that were trained alone twice."""
        return np.array([at for at, number in enumerate(self.networks) if number in self.again], dtype=np.int64)

    def ceiling_of(self, chosen_R: NDArray[np.int64]) -> float:
        """Kendall's tau between two trainings alone of the same networks, by position."""
        return kendall(self.alone_N[chosen_R], [self.again[self.networks[at]] for at in chosen_R])

    def ceiling(self) -> float | None:
        """The rank correlation that the truth has with itself."""
        return self.ceiling_of(self.twice_R) if len(self.twice_R) > 2 else None

    def closed(self, arm: str) -> Interval | None:
        """By how much an arm's tau exceeds the middle between the best proxy's and the ceiling; paired."""
        proxies = self.proxies()
        if not proxies or self.ceiling() is None:
            return None
        best_N = self.costs[max(proxies, key=proxies.__getitem__)]
        rng = np.random.default_rng(1)
        everyone = np.arange(len(self.networks))

        def figure(draw_N: NDArray[np.int64]) -> float:
            again_R = self.twice_R if draw_N is everyone else rng.choice(self.twice_R, len(self.twice_R))
            middle = (kendall(best_N[draw_N], self.alone_N[draw_N]) + self.ceiling_of(again_R)) / 2
            return self.tau_of(arm, draw_N) - middle

        low, high = np.quantile([figure(draw_N) for draw_N in self.draws_DN], [0.025, 0.975])
        return figure(everyone), float(low), float(high)

    # -- fronts -----------------------------------------------------------------------------------------------

    def hypervolumes_S(self, arm: str) -> Array:
        """Of every seed's front of inherited error and measured latency; guessing at the slowest is the reference."""
        latency_N = self.costs["latency"]
        reference = (WORST_ERROR, 1.05 * float(latency_N.max()))
        return np.array(
            [hypervolume(np.stack([1 - one_N, latency_N], axis=1), reference) for one_N in self.inherited[arm]]
        )

    def hypervolume_wins(self, arm: str, other: str) -> int | None:
        """Seeds in which one arm's front is equal or better than another's; None before latencies are known."""
        if not self.costs:
            return None
        mine_S, theirs_S = self.hypervolumes_S(arm), self.hypervolumes_S(other)
        return sum(bool(a >= b) for a, b in zip(mine_S, theirs_S, strict=False))
