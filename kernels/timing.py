"""The measuring protocol: round-robin, each sample between samples of a reference block, median of the ratios.

Machines change speed by tens of percent between minutes, and so do all the calls made in that minute: the ratio to a
reference that ran a moment ago does not. One reference sample is as noisy as the candidate's, so that a ratio is formed
with the geometric mean of the nearest few: beside busy processes that takes a fifth to a third off the differences
between two passes, as twice as many samples would. The reference runs once untimed before each of its samples: after a
large candidate it is slower than after itself, and by how much would depend on what else is timed in the session.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from kernels.device import DeviceBackend

Call = Callable[[], object]

MAX_LOOPS = 1000
NEAREST = (-1, 0, 1, 2)
"""Which reference samples a candidate's is compared with, counted from the one right before it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TimingSettings:
    """When a measurement is good enough.

    Attributes:
        warmups: calls per candidate before the first sample, at least 2.
        min_rounds: samples per candidate before it may stop.
        max_rounds: samples after which it stops anyway, and is noisy.
        tolerance: it stops once the interquartile range of its ratios is below this share of their median.
        max_contention: a candidate whose median wall time per CPU time exceeds this is noisy (one thread only).
        min_sample_seconds: shorter calls are repeated within a sample, so that the clock's resolution does not matter.
        seed: of the order of candidates within each round.
    """

    warmups: int = 2
    min_rounds: int = 5
    max_rounds: int = 30
    tolerance: float = 0.03
    max_contention: float = 1.3
    min_sample_seconds: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.warmups < 2:
            raise ValueError(f"at least 2 warm-up calls are needed for steady timings, got {self.warmups}")
        if not 2 <= self.min_rounds <= self.max_rounds:
            raise ValueError(f"rounds must satisfy 2 <= min <= max, got {self.min_rounds} and {self.max_rounds}")

    def thorough(self) -> TimingSettings:
        """The same with all samples there may be, for what many predictions rest on."""
        return replace(self, min_rounds=self.max_rounds)


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """One candidate's latency; fields as in `studies.records.Measurement`."""

    seconds_median: float
    seconds_iqr: float
    seconds_p95: float
    repeats: int
    reference_seconds: float
    clock: str
    load: float
    noisy: bool


def time_paired(
    candidates: Sequence[Call],
    *,
    backend: DeviceBackend,
    reference: Call,
    threads: int = 1,
    settings: TimingSettings | None = None,
    reference_seconds: float | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> list[Timing]:
    """Time all candidates against each other, with `threads` intra-op threads for the duration.

    Every round runs the unsettled candidates in a new random order, each right after `reference`. A candidate's
    estimate is ``median(candidate / reference) * calibration``, where the reference's seconds are the geometric mean of
    the `NEAREST` samples.

    Args:
        reference_seconds: the calibration of an earlier session on this device, which makes the two comparable;
            by default the median of this session's reference samples.
        on_progress: called after each round with the share of the session that is certainly over, in (0, 1].
    """
    settings = settings or TimingSettings()
    with _intra_op_threads(threads):
        runner = _Series(reference, backend, threads, settings)
        series = [_Series(candidate, backend, threads, settings) for candidate in candidates]
        baselines = _run_rounds(series, runner, settings, on_progress)
    calibration = reference_seconds or float(np.median(baselines))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return [one.timing(baselines, calibration, load) for one in series]


def _run_rounds(
    series: Sequence[_Series],
    reference: _Series,
    settings: TimingSettings,
    on_progress: Callable[[float], None] | None,
) -> list[float]:
    """Fill the series with samples; returns the seconds of every reference sample."""
    rng, baselines = random.Random(settings.seed), list[float]()
    unsettled = list(series)
    for number in range(1, settings.max_rounds + 1):
        if not unsettled:
            break
        for one in rng.sample(unsettled, len(unsettled)):
            baselines.append(reference.sample_again())
            one.add(len(baselines) - 1)
        for one in unsettled:
            one.settle(baselines)
        unsettled = [one for one in unsettled if not one.is_settled]
        if on_progress:
            on_progress(max(number / settings.max_rounds, 1 - len(unsettled) / len(series)))
    return [*baselines, *(reference.sample_again() for _ in range(max(NEAREST)))]


@dataclass
class _Series:
    """A call, warmed up on construction, and its samples so far, each with its place among those of the reference."""

    call: Call
    backend: DeviceBackend
    threads: int
    settings: TimingSettings
    samples: list[tuple[int, float]] = field(default_factory=list)
    contentions: list[float] = field(default_factory=list)
    is_settled: bool = False

    def __post_init__(self) -> None:
        for _ in range(self.settings.warmups - 1):
            self.call()
        self.warm_seconds = self.backend.sample(self.call, loops=1, threads=self.threads).seconds
        needed = self.settings.min_sample_seconds / max(self.warm_seconds, 1e-9)
        self.loops = min(max(1, math.ceil(needed)), MAX_LOOPS)

    def sample(self) -> float:
        """Seconds of one call; its contention is kept."""
        taken = self.backend.sample(self.call, loops=self.loops, threads=self.threads)
        self.contentions.append(taken.contention)
        return taken.seconds

    def sample_again(self) -> float:
        """The same after an untimed call, so that nothing else's traces are in the caches."""
        self.call()
        return self.sample()

    def add(self, position: int) -> None:
        """Take a sample right after the reference's of that position."""
        self.samples.append((position, self.sample()))

    def ratios(self, baselines: Sequence[float]) -> list[float]:
        """Of all samples to the reference's, given by their seconds, around each."""
        return [seconds / _around(baselines, position) for position, seconds in self.samples]

    def settle(self, baselines: Sequence[float]) -> None:
        """See whether the samples agree well enough to take no more."""
        low, middle, high = map(float, np.percentile(self.ratios(baselines), (25, 50, 75)))
        self.is_settled = len(self.samples) >= self.settings.min_rounds and self._agree(low, middle, high)

    def _agree(self, low: float, middle: float, high: float) -> bool:
        return high - low < self.settings.tolerance * middle

    def timing(self, baselines: Sequence[float], calibration: float, load: float) -> Timing:
        low, middle, high, p95 = map(float, np.percentile(self.ratios(baselines), (25, 50, 75, 95)))
        contended = float(np.median(self.contentions)) > self.settings.max_contention
        return Timing(
            seconds_median=middle * calibration,
            seconds_iqr=(high - low) * calibration,
            seconds_p95=p95 * calibration,
            repeats=len(self.samples),
            reference_seconds=calibration,
            clock=self.backend.clock_kind(self.threads),
            load=load,
            noisy=contended or not self._agree(low, middle, high),
        )


def _around(baselines: Sequence[float], position: int) -> float:
    """Geometric mean of the reference's samples nearest to the moment right after the one of that position."""
    places = (position + step for step in NEAREST)
    nearest = [baselines[place] for place in places if 0 <= place < len(baselines)]
    return math.exp(sum(map(math.log, nearest)) / len(nearest))


@contextmanager
def _intra_op_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
