"""Measures operations and whole networks on a device."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version

from kernels.device import DeviceBackend
from kernels.op_spec import OpSpec
from kernels.reference import build
from kernels.self_check import refused
from kernels.timing import TimingSettings, time_paired
from studies.records import Measurement

Runner = Callable[[OpSpec], Callable[[], object]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """What a session is paired with; rows that share its key are on one scale."""

    key: str
    call: Callable[[], object]


CHUNK = 16
"""Operations timed against each other: bounds the weights that are alive, and what a crash can lose."""


def measure(
    specs: Iterable[OpSpec],
    backend: DeviceBackend,
    *,
    runner: Runner | None = None,
    reference: Reference | None = None,
    settings: TimingSettings | None = None,
    stored: Sequence[Measurement] = (),
    on_measured: Callable[[Measurement], None] | None = None,
    on_progress: Callable[[float, int], None] | None = None,
) -> list[Measurement]:
    """Time every distinct spec once, in order of appearance, those of one thread count together.

    Args:
        runner: turns a spec into the call to time; by default the plain torch operation on random weights. For whole
            networks, pass ``calls.__getitem__`` of a mapping from `kernels.op_cost.model` specs to their calls.
        reference: runs before every sample; the backend's own block by default. What is timed should resemble it.
        stored: earlier measurements of any device. Their reference calibration is kept where device, threads, clock,
            versions and reference block agree, so that numbers of different days share one scale.
        on_measured: called with each new measurement as soon as it is final, to store it.
        on_progress: called after every round with how many specs are done, fractions included, and how many there are.

    Raises:
        ValueError: the device has no arithmetic for the dtype of a spec.
    """
    todo = list({spec.key: spec for spec in specs}.values())
    for spec in todo:
        if spec.context.dtype not in backend.dtypes():
            raise ValueError(f"this device computes in {', '.join(backend.dtypes())}, not in {spec.context.dtype}")
    kind = backend.detect().kind
    runner = runner or partial(build, device=kind)
    reference = reference or Reference(key=backend.reference.key, call=build(backend.reference, kind))
    done: list[Measurement] = []
    for chunk in _chunks(todo):
        on_share = _within(on_progress, len(done), len(chunk), len(todo))
        for one in _measure_chunk(chunk, backend, runner, reference, settings, [*stored, *done], on_share):
            done.append(one)
            if on_measured:
                on_measured(one)
    return done


def measured_versions() -> dict[str, str]:
    """Versions of what decides the speed of an operation."""
    return {"python": platform.python_version(), "torch": version("torch"), "transformers": version("transformers")}


def _chunks(specs: Sequence[OpSpec]) -> Iterator[list[OpSpec]]:
    """At most `CHUNK` specs of one thread count at a time."""
    for threads in dict.fromkeys(spec.context.threads for spec in specs):
        group = [spec for spec in specs if spec.context.threads == threads]
        for start in range(0, len(group), CHUNK):
            yield group[start : start + CHUNK]


def _within(
    on_progress: Callable[[float, int], None] | None, before: int, size: int, total: int
) -> Callable[[float], None] | None:
    """Progress of all specs from the share of one chunk that is over."""
    return (lambda share: on_progress(before + share * size, total)) if on_progress else None


def _measure_chunk(
    specs: Sequence[OpSpec],
    backend: DeviceBackend,
    runner: Runner,
    reference: Reference,
    settings: TimingSettings | None,
    earlier: Sequence[Measurement],
    on_share: Callable[[float], None] | None,
) -> list[Measurement]:
    device, threads = backend.detect(), specs[0].context.threads
    versions = {**measured_versions(), "reference": reference.key}
    clock = backend.clock_kind(threads)
    calibrations = (
        one.reference_seconds
        for one in earlier
        if (one.device, one.clock) == (device.fingerprint, clock)
        and versions.items() <= one.versions.items()
        and f",t{threads}," in one.op_key
    )
    timings = time_paired(
        [runner(spec) for spec in specs],
        backend=backend,
        reference=reference.call,
        threads=threads,
        settings=settings,
        reference_seconds=next(calibrations, None),
        on_progress=on_share,
    )
    if refused():
        versions["torch_instead_of"] = ", ".join(refused())
    return [
        Measurement(op_key=spec.key, device=device.fingerprint, versions=versions, **asdict(timing))
        for spec, timing in zip(specs, timings, strict=True)
    ]
