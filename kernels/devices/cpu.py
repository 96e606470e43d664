"""The processor this process runs on."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from kernels.device import Device, DeviceBackend, Sample
from kernels.op_cost import feed_forward
from kernels.op_spec import Context

_DECISIVE = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd", "bf16", "i8mm", "sve")
_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")


class Cpu(DeviceBackend):
    """CPU time on one thread, wall time on several.

    CPU time does not count what other processes take; it cannot say how long several threads waited for each other.
    No cache is flushed: the reference block and the other candidates displace a candidate's data as the rest of a
    network would.
    """

    reference = feed_forward(384, 1536, Context(batch=8, sequences=(26,)))
    """Several milliseconds on weights beyond the second cache, as in a network. A block of 1 ms on smaller ones, cold
    after every candidate, made sessions a minute apart differ by 5 %; this one by 0.7 %."""

    def detect(self) -> Device:
        """The CPU by model, logical cores and the instruction sets that decide the speed of matrix products."""
        found = torch.cpu.get_capabilities()
        model, cores = str(found["cpu_name"]).strip(), int(found["num_logical_cores"])
        description = {
            "model": model,
            "architecture": str(found["architecture"]),
            "cores": cores,
            "instructions": [flag for flag in _DECISIVE if found.get(flag)],
        }
        return Device(name=f"{model}, {cores} cores", kind="cpu", description=description)

    def dtypes(self) -> tuple[str, ...]:
        """float32, and bfloat16 where the CPU has instructions for it: without them it is slower than float32."""
        found = torch.cpu.get_capabilities()
        return ("float32", "bfloat16") if any(found.get(flag) for flag in _BFLOAT16) else ("float32",)

    def clock_kind(self, threads: int) -> str:
        """CPU time of the calling thread, or wall time as soon as other threads work too."""
        return "thread_cpu" if threads == 1 else "wall"

    def sample(self, call: Callable[[], object], *, loops: int, threads: int) -> Sample:
        """Both clocks are read; their quotient tells how much the thread was interrupted."""
        wall, cpu = time.perf_counter(), time.thread_time()
        for _ in range(loops):
            call()
        cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
        if self.clock_kind(threads) == "wall":
            return Sample(wall / loops)
        return Sample(cpu / loops, contention=wall / cpu if cpu else 1.0)
