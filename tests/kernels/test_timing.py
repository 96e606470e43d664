"""The measuring protocol on a simulated clock, so that every expectation is exact."""

from collections.abc import Callable, Iterator
from itertools import count, cycle

import numpy as np
import pytest
import torch

from kernels.device import Device, DeviceBackend, Sample
from kernels.op_cost import linear
from kernels.op_spec import Context
from kernels.timing import Timing, TimingSettings, time_paired


class SimulatedBackend(DeviceBackend):
    """Time passes only inside the calls that `work` makes; the machine's slowness changes before every reference."""

    reference = linear(1, 1, 1, Context())

    def __init__(self, slowness: Iterator[float] | None = None) -> None:
        self.slowness = slowness or cycle([1.0])
        self.factor, self.now = 1.0, 0.0
        self.contention = 1.0
        self.calls: list[str] = []

    def detect(self) -> Device:
        return Device(name="simulated", kind="cpu", description={})

    def dtypes(self) -> tuple[str, ...]:
        return ("float32",)

    def clock_kind(self, threads: int) -> str:
        return "thread_cpu" if threads == 1 else "wall"

    def sample(self, call: Callable[[], object], *, loops: int, threads: int) -> Sample:
        before = self.now
        for _ in range(loops):
            call()
        return Sample((self.now - before) / loops, self.contention)

    def work(self, name: str, seconds: Iterator[float]) -> Callable[[], object]:
        def call() -> None:
            self.calls.append(name)
            if name == "reference":
                self.factor = next(self.slowness)
            self.now += next(seconds) * self.factor

        return call


def run(
    backend: SimulatedBackend,
    *candidates: Iterator[float],
    settings: TimingSettings | None = None,
    reference_seconds: float | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> list[Timing]:
    return time_paired(
        [backend.work(str(i), seconds) for i, seconds in enumerate(candidates)],
        backend=backend,
        reference=backend.work("reference", cycle([0.5])),
        settings=settings,
        reference_seconds=reference_seconds,
        on_progress=on_progress,
    )


def test_what_a_candidate_does_to_the_reference_after_it_counts_for_none() -> None:
    """A large one leaves cold caches: the block takes twice as long, once."""
    cold = [False]

    def block() -> Iterator[float]:
        while True:
            yield 1.0 if cold[0] else 0.5
            cold[0] = False

    backend = SimulatedBackend()
    large, small = backend.work("large", cycle([4.0])), backend.work("small", cycle([1.0]))

    def displacing() -> None:
        large()
        cold[0] = True

    timings = time_paired(
        [displacing, small, small, small, small],
        backend=backend,
        reference=backend.work("block", block()),
        settings=TimingSettings(min_rounds=30, max_rounds=30),
        reference_seconds=0.5,
    )
    assert [timing.seconds_median for timing in timings] == pytest.approx([4.0, 1.0, 1.0, 1.0, 1.0])


def test_changes_of_speed_cancel() -> None:
    rng = np.random.default_rng(0)
    speeds = (factor for factor in rng.uniform(0.5, 3.0, 100) for _ in range(20))
    fast, slow = run(SimulatedBackend(speeds), cycle([2.0]), cycle([7.0]), reference_seconds=0.5)
    assert fast.seconds_median == pytest.approx(2.0)
    assert slow.seconds_median == pytest.approx(7.0)
    assert fast.seconds_iqr == pytest.approx(0.0, abs=1e-12)
    assert not fast.noisy
    assert not slow.noisy


def test_steady_drift_cancels_to_a_step() -> None:
    """Here a sample is as fast as the reference right before it, and those it is compared with lie a step later."""
    settings = TimingSettings(min_rounds=30, max_rounds=30)
    backend = SimulatedBackend(1.05**step for step in count())
    (timing,) = run(backend, cycle([2.0]), settings=settings, reference_seconds=0.5)
    assert timing.seconds_median == pytest.approx(2.0 / 1.05)
    assert not timing.noisy


def test_a_ratio_is_to_four_references_around_it() -> None:
    """A single slow reference sample, the sixth, moves four ratios by its fourth root."""
    references = iter([0.5] * (2 + 5) + [8.0] + [0.5] * 20)
    backend = SimulatedBackend()
    (timing,) = time_paired(
        [backend.work("candidate", cycle([1.0]))],
        backend=backend,
        reference=backend.work("block", references),
        settings=TimingSettings(min_rounds=10, max_rounds=10),
        reference_seconds=0.5,
    )
    assert timing.repeats == 10
    assert timing.seconds_median == pytest.approx(1.0)
    assert timing.seconds_iqr == pytest.approx(0.5)


def test_calibration_is_the_median_reference_of_the_session() -> None:
    untimed = 9.0
    slowness = [untimed] * 2 + [each for timed in (1.0, 2.0, 4.0, 3.0, 5.0, 3.0, 3.0) for each in (untimed, timed)]
    five = TimingSettings(min_rounds=5, max_rounds=5)
    (timing,) = run(SimulatedBackend(iter(slowness)), cycle([1.0]), settings=five)
    (in_references,) = run(SimulatedBackend(iter(slowness)), cycle([1.0]), settings=five, reference_seconds=1.0)
    assert timing.reference_seconds == pytest.approx(0.5 * 3.0)
    assert timing.seconds_median == pytest.approx(in_references.seconds_median * 0.5 * 3.0)


def test_statistics_are_those_of_the_ratios() -> None:
    seconds = [4.0, 5.0, 9.0, 7.0, 6.0, 8.0]
    settings = TimingSettings(min_rounds=4, max_rounds=4)
    (timing,) = run(SimulatedBackend(), iter(seconds), settings=settings, reference_seconds=0.25)
    ratios = np.array(seconds[2:]) / 0.5
    assert timing.seconds_median == pytest.approx(0.25 * np.median(ratios))
    assert timing.seconds_p95 == pytest.approx(0.25 * np.percentile(ratios, 95))
    assert timing.seconds_iqr == pytest.approx(0.25 * np.subtract(*np.percentile(ratios, (75, 25))))
    assert (timing.repeats, timing.noisy, timing.clock) == (4, True, "thread_cpu")


def test_a_candidate_stops_when_it_has_settled() -> None:
    backend = SimulatedBackend()
    steady, shaky = run(backend, cycle([1.0]), cycle([1.0, 1.2, 1.4]))
    assert (steady.repeats, steady.noisy) == (5, False)
    assert (shaky.repeats, shaky.noisy) == (30, True)


def test_whether_it_settled_is_told_from_all_the_reference_samples() -> None:
    """The last ones, taken after the candidate had stopped, are slow: its ratios agree no more."""
    references = iter([0.5] * (2 + 2 * 5) + [0.65] * 2 * 2)
    backend = SimulatedBackend()
    (timing,) = time_paired([backend.work("0", cycle([1.0]))], backend=backend, reference=backend.work("r", references))
    assert timing.repeats == 5
    assert timing.seconds_iqr > 0.03 * timing.seconds_median
    assert timing.noisy


def test_contention_is_noise_even_if_settled() -> None:
    backend = SimulatedBackend()
    backend.contention = 1.31
    assert run(backend, cycle([1.0]))[0].noisy


def test_every_sample_is_between_references_in_a_seeded_order() -> None:
    def order(seed: int) -> list[str]:
        backend = SimulatedBackend()
        run(backend, *[cycle([1.0]) for _ in range(4)], settings=TimingSettings(seed=seed))
        warmups = 2 * (1 + 4)
        assert backend.calls[-4:] == ["reference"] * 4
        return backend.calls[warmups:-4]

    calls = order(0)
    assert set(calls[::3]) == set(calls[1::3]) == {"reference"}
    rounds = [tuple(calls[2::3][i : i + 4]) for i in range(0, 20, 4)]
    assert all(sorted(names) == ["0", "1", "2", "3"] for names in rounds)
    assert len(set(rounds)) > 1
    assert order(0) == calls
    assert order(1) != calls


def test_short_calls_are_repeated_within_a_sample() -> None:
    backend = SimulatedBackend()
    settings = TimingSettings(min_sample_seconds=2**-10)
    (timing,) = run(backend, cycle([2**-13]), settings=settings, reference_seconds=0.5)
    assert backend.calls.count("0") == 2 + 5 * 8
    assert timing.seconds_median == 2**-13


def test_progress_never_goes_back_and_ends_at_one() -> None:
    shares: list[float] = []
    run(SimulatedBackend(), cycle([1.0]), cycle([1.0, 2.0]), on_progress=shares.append)
    assert shares == sorted(shares)
    assert shares[4] == 0.5
    assert shares[-1] == 1.0


def test_threads_are_set_for_the_duration_only() -> None:
    before, seen = torch.get_num_threads(), list[int]()
    backend = SimulatedBackend()

    def fail() -> None:
        seen.append(torch.get_num_threads())
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        time_paired([fail], backend=backend, reference=backend.work("reference", cycle([0.5])), threads=before + 1)
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_nothing_to_time() -> None:
    assert run(SimulatedBackend()) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"warmups": 1}, "at least 2 warm-up calls"),
        ({"min_rounds": 9, "max_rounds": 8}, "2 <= min <= max, got 9 and 8"),
    ],
)
def test_impossible_settings(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimingSettings(**fields)
