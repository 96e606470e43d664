"""What every file of `kernels/devices` promises. Devices that are not here promise a clear refusal."""

import subprocess
import sys

import pytest
import torch

from kernels.device import Device, DeviceBackend, device_names, load_backend
from kernels.op_cost import attention_block, feed_forward
from kernels.op_spec import BYTES_PER_ELEMENT, Context, OpSpec
from kernels.reference import build, build_input, build_module
from kernels.timing import TimingSettings, time_paired

SMALL = Context(batch=2, sequences=(9,))
CLOCKS = ("thread_cpu", "process_cpu", "wall", "cuda_event")


def present() -> list[str]:
    names = []
    for name in device_names():
        try:
            load_backend(name).detect()
        except ValueError:
            continue
        names.append(name)
    return names


PRESENT = present()
ABSENT = [name for name in device_names() if name not in PRESENT]


@pytest.fixture(params=PRESENT)
def backend(request: pytest.FixtureRequest) -> DeviceBackend:
    return load_backend(request.param)


def test_the_cpu_is_always_there() -> None:
    assert "cpu" in PRESENT


@pytest.mark.parametrize("name", ABSENT)
def test_an_absent_device_says_so_in_one_line(name: str) -> None:
    with pytest.raises(ValueError, match=f"(?i)no {name} device") as caught:
        load_backend(name).detect()
    assert "\n" not in str(caught.value)


def test_fingerprint_is_stable(backend: DeviceBackend) -> None:
    device = backend.detect()
    assert device == backend.detect()
    assert device.fingerprint == backend.detect().fingerprint
    assert device.fingerprint.startswith(f"{device.kind}-")


def test_fingerprint_is_the_same_in_another_process(backend: DeviceBackend) -> None:
    code = (
        f"from kernels.device import load_backend; print(load_backend({backend.detect().kind!r}).detect().fingerprint)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == backend.detect().fingerprint


def test_dtypes_are_known(backend: DeviceBackend) -> None:
    assert backend.dtypes()[0] == "float32"
    assert set(backend.dtypes()) <= set(BYTES_PER_ELEMENT)


@pytest.mark.parametrize("threads", [1, 2])
def test_an_empty_and_a_known_operation_take_time(backend: DeviceBackend, threads: int) -> None:
    kind = backend.detect().kind
    timings = time_paired(
        [lambda: None, build(feed_forward(64, 64, SMALL), kind)],
        backend=backend,
        reference=build(backend.reference, kind),
        threads=threads,
        settings=TimingSettings(min_rounds=2, max_rounds=2),
    )
    for timing in timings:
        assert 0 < timing.seconds_median <= timing.seconds_p95
        assert timing.clock in CLOCKS


@pytest.mark.parametrize("spec", [attention_block(32, 2, 16, SMALL), feed_forward(32, 64, SMALL)])
def test_results_equal_the_reference(backend: DeviceBackend, spec: OpSpec) -> None:
    exact = build_module(spec).double()(build_input(spec).double())
    torch.testing.assert_close(build(spec, backend.detect().kind)().cpu().double(), exact, rtol=1e-4, atol=1e-5)


def test_listing_imports_no_torch() -> None:
    code = (
        "import sys; from kernels.device import device_names; print(device_names()); assert 'torch' not in sys.modules"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(device_names())


def test_an_unknown_device_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown device 'tpu'; known: cpu, cuda; .*devices"):
        load_backend("tpu")


def test_fingerprint_depends_on_kind_and_description_only() -> None:
    one = Device(name="one", kind="cpu", description={"model": "m", "cores": 2})
    assert one.fingerprint == Device(name="two", kind="cpu", description={"cores": 2, "model": "m"}).fingerprint
    assert one.fingerprint != Device(name="one", kind="cpu", description={"model": "m", "cores": 4}).fingerprint
