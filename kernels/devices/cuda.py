"""The current CUDA device."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch

from kernels.device import Device, DeviceBackend, Sample
from kernels.op_cost import feed_forward
from kernels.op_spec import Context

FLUSH_BYTES = 256 * 2**20
"""Larger than the L2 cache of current GPUs; the size `triton.testing.do_bench` writes."""


class Cuda(DeviceBackend):
    """CUDA events around every call, each after the L2 cache was overwritten."""

    reference = feed_forward(1024, 4096, Context(batch=8))

    def detect(self) -> Device:
        """The GPU by name and compute capability."""
        if not torch.cuda.is_available():
            raise ValueError("there is no CUDA device here; choose --device cpu or install a torch build with CUDA")
        name = torch.cuda.get_device_name()
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        return Device(name=name, kind="cuda", description={"model": name, "capability": capability})

    def dtypes(self) -> tuple[str, ...]:
        """float32 and float16, and bfloat16 from compute capability 8.0."""
        bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("float32", "float16", "bfloat16") if bfloat16 else ("float32", "float16")

    def clock_kind(self, threads: int) -> str:
        """Events of the device, however many threads the host uses."""
        return "cuda_event"

    def sample(self, call: Callable[[], object], *, loops: int, threads: int) -> Sample:
        """The time between two events on the current stream, launch gaps included, flushing excluded."""
        event: Any = torch.cuda.Event  # its constructor carries no types
        pairs = []
        for _ in range(loops):
            start, stop = event(enable_timing=True), event(enable_timing=True)
            self._scratch.zero_()
            start.record()
            call()
            stop.record()
            pairs.append((start, stop))
        torch.cuda.synchronize()
        return Sample(sum(start.elapsed_time(stop) for start, stop in pairs) / 1000 / loops)

    @cached_property
    def _scratch(self) -> torch.Tensor:
        return torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
