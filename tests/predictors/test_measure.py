"""Measuring on a clock that counts calls instead of time."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from kernels.device import Device, DeviceBackend, Sample
from kernels.op_cost import feed_forward, linear, model
from kernels.op_spec import Context, OpSpec
from kernels.self_check import checked, forget
from predictors.measure import CHUNK, measure, measured_versions
from studies.records import Measurement


class CountingBackend(DeviceBackend):
    """A call takes as many seconds as it returns; anything but a number, such as the reference's output, takes two."""

    reference = linear(4, 4, 1, Context())

    def detect(self) -> Device:
        return Device(name="counting", kind="cpu", description={"model": "counting"})

    def dtypes(self) -> tuple[str, ...]:
        return ("float32",)

    def clock_kind(self, threads: int) -> str:
        return "thread_cpu" if threads == 1 else "wall"

    def sample(self, call: Callable[[], object], *, loops: int, threads: int) -> Sample:
        result = call()
        return Sample(result if isinstance(result, float) else 2.0)


BACKEND = CountingBackend()


def spec(width: int, threads: int = 1) -> OpSpec:
    return feed_forward(16, width, Context(sequences=(4,), threads=threads))


def by_width(one: OpSpec) -> Callable[[], object]:
    return lambda: float(one.size["width"])


def test_every_distinct_operation_is_measured_once_in_order() -> None:
    specs = [spec(16), spec(32), spec(16)]
    found = measure(specs, BACKEND, runner=by_width)
    assert [one.op_key for one in found] == [specs[0].key, specs[1].key]
    assert [one.seconds_median for one in found] == [16.0, 32.0]
    assert {one.device for one in found} == {BACKEND.detect().fingerprint}
    assert found[0].versions == {**measured_versions(), "reference": BACKEND.reference.key}
    assert not found[0].noisy


def test_whole_networks_are_measured_through_their_calls() -> None:
    calls: dict[OpSpec, Callable[[], object]] = {model("abc", Context()): lambda: 3.0}
    (found,) = measure(calls, BACKEND, runner=calls.__getitem__)
    assert (found.op_key, found.seconds_median) == (model("abc", Context()).key, 3.0)


def test_plain_operations_run_by_default() -> None:
    (found,) = measure([spec(16)], BACKEND)
    assert found.seconds_median == 2.0


def test_an_earlier_calibration_is_kept_per_thread_count() -> None:
    (first,) = measure([spec(16)], BACKEND, runner=by_width)
    earlier = Measurement(
        op_key=first.op_key,
        device=first.device,
        seconds_median=1.0,
        seconds_iqr=0.0,
        seconds_p95=1.0,
        repeats=5,
        reference_seconds=20.0,
        clock="thread_cpu",
        load=0.0,
        versions=first.versions,
    )
    one, two = measure([spec(16), spec(16, threads=2)], BACKEND, runner=by_width, stored=[earlier])
    assert (one.reference_seconds, one.seconds_median) == (20.0, 160.0)
    by_another_block = replace(earlier, versions={**first.versions, "reference": "another"})
    (again,) = measure([spec(16)], BACKEND, runner=by_width, stored=[by_another_block])
    assert again.reference_seconds == first.reference_seconds
    assert (two.reference_seconds, two.seconds_median, two.clock) == (2.0, 16.0, "wall")


def test_results_and_progress_arrive_chunk_by_chunk() -> None:
    specs = [spec(16 * (i + 1)) for i in range(CHUNK + 1)]
    events: list[tuple[str, float]] = []
    measure(
        specs,
        BACKEND,
        runner=by_width,
        on_measured=lambda one: events.append((one.op_key, one.seconds_median)),
        on_progress=lambda done, total: events.append(("progress", done / total)),
    )
    names = [name for name, _ in events]
    assert (
        names.index(specs[CHUNK - 1].key) < len(names) - 1 - names[::-1].index("progress") < names.index(specs[-1].key)
    )
    shares = [share for name, share in events if name == "progress"]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_a_kernel_that_torch_stands_in_for_is_noted_and_costs_no_calibration() -> None:
    forget()

    def wrong(one: OpSpec) -> Callable[[], object]:
        answer = torch.ones(2)
        return lambda: float(checked("expert_sum", ("sm_90",), lambda: answer + 1, lambda: answer).sum())

    with pytest.warns(RuntimeWarning, match="expert_sum runs as plain torch"):
        (found,) = measure([spec(16)], BACKEND, runner=wrong)
    again = measure([spec(32)], BACKEND, runner=by_width, stored=[replace(found, reference_seconds=4.0)])
    forget()
    assert found.versions["torch_instead_of"] == "expert_sum"
    assert again[0].reference_seconds == 4.0


def test_a_dtype_without_arithmetic_is_refused() -> None:
    low = feed_forward(16, 16, Context(dtype="bfloat16"))
    with pytest.raises(ValueError, match="this device computes in float32, not in bfloat16"):
        measure([low], BACKEND)


def test_nothing_to_measure() -> None:
    assert measure([], BACKEND) == []
