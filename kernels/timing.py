"""The measuring protocol: round-robin, each sample paired with a reference block, median of the ratios.

Machines change speed by tens of percent between minutes, and so do all the calls made in that minute: the ratio to a
reference that ran a moment before does not.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from kernels.device import DeviceBackend

Call = Callable[[], object]

MAX_LOOPS = 1000


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
    estimate is ``median(candidate / reference) * calibration``.

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
    calibration = reference_seconds or float(np.median(baselines or [runner.warm_seconds]))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return [one.timing(calibration, load) for one in series]


def _run_rounds(
    series: Sequence[_Series],
    reference: _Series,
    settings: TimingSettings,
    on_progress: Callable[[float], None] | None,
) -> list[float]:
    """Fill the series with ratios; returns the seconds of every reference sample."""
    rng, baselines = random.Random(settings.seed), list[float]()
    unsettled = list(series)
    for number in range(1, settings.max_rounds + 1):
        if not unsettled:
            break
        for one in rng.sample(unsettled, len(unsettled)):
            baselines.append(reference.sample())
            one.add(baselines[-1])
        unsettled = [one for one in unsettled if not one.is_settled]
        if on_progress:
            on_progress(max(number / settings.max_rounds, 1 - len(unsettled) / len(series)))
    return baselines


@dataclass
class _Series:
    """A call, warmed up on construction, and its samples so far."""

    call: Call
    backend: DeviceBackend
    threads: int
    settings: TimingSettings
    ratios: list[float] = field(default_factory=list)
    contentions: list[float] = field(default_factory=list)

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

    def add(self, reference_seconds: float) -> None:
        self.ratios.append(self.sample() / reference_seconds)

    @property
    def quartiles(self) -> tuple[float, float, float]:
        low, middle, high = np.percentile(self.ratios, (25, 50, 75))
        return float(low), float(middle), float(high)

    @property
    def is_settled(self) -> bool:
        low, middle, high = self.quartiles
        return len(self.ratios) >= self.settings.min_rounds and high - low < self.settings.tolerance * middle

    def timing(self, calibration: float, load: float) -> Timing:
        low, middle, high = self.quartiles
        contended = float(np.median(self.contentions)) > self.settings.max_contention
        return Timing(
            seconds_median=middle * calibration,
            seconds_iqr=(high - low) * calibration,
            seconds_p95=float(np.percentile(self.ratios, 95)) * calibration,
            repeats=len(self.ratios),
            reference_seconds=calibration,
            clock=self.backend.clock_kind(self.threads),
            load=load,
            noisy=contended or not self.is_settled,
        )


@contextmanager
def _intra_op_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
