"""A device on which every call takes equally long."""

from __future__ import annotations

from collections.abc import Callable

from kernels.device import Device, DeviceBackend, Sample
from kernels.op_cost import linear
from kernels.op_spec import Context


class CallCounter(DeviceBackend):
    """Runs calls for real and says they took 2 ms each; remembers how many there were."""

    reference = linear(4, 4, 1, Context())

    def __init__(self) -> None:
        self.outputs: list[object] = []

    def detect(self) -> Device:
        return Device(name="counter", kind="cpu", description={"model": "counter"})

    def dtypes(self) -> tuple[str, ...]:
        return ("float32",)

    def clock_kind(self, threads: int) -> str:
        return "thread_cpu"

    def sample(self, call: Callable[[], object], *, loops: int, threads: int) -> Sample:
        self.outputs.append(call())
        return Sample(2e-3)
