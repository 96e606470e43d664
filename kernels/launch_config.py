"""Block sizes, warps and pipeline stages of every kernel: a table, not a search at run time.

`config_for` depends on nothing but its arguments, so a launch is reproducible and what `kernels.compile_report` checks
is what runs. The tiles were chosen by compile reports (no spills, asynchronous copies, matrix instructions), not by
timing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch

KERNELS = ("attention", "elastic_linear", "moe_down", "moe_up", "weight_blend")
"""Names of all kernels."""

HEAD_BLOCKS = (64, 128)
"""Blocks that hold one attention head; the smallest that fits is used."""

ELEMENT_TYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """A GPU architecture that the kernels are compiled for.

    Attributes:
        name: ``sm_90``, ``gfx942``, …
        backend: triton's name of the back end, ``cuda`` or ``hip``.
        shared_bytes: the most shared memory (LDS on AMD) one block may use.
        warps: the most warps (wavefronts on AMD) that are resident on one multiprocessor (compute unit).

    All numbers: the table of technical specifications per compute capability in NVIDIA's CUDA C++ programming guide;
    AMD's CDNA 3 and CDNA 4 ISA guides.
    """

    name: str
    backend: str
    shared_bytes: int
    warps: int

    @property
    def lanes(self) -> int:
        """Threads of a warp."""
        return 32 if self.backend == "cuda" else 64

    @property
    def registers(self) -> int:
        """32-bit registers of one multiprocessor; a compute unit has four times 512 for each of 64 lanes."""
        return 65536 if self.backend == "cuda" else 4 * 512 * 64

    def resident_blocks(self, *, warps: int, registers: int, shared_bytes: int) -> int:
        """How many blocks of so many warps, registers per thread and bytes fit on one multiprocessor at a time."""
        reserved = 1024 if self.backend == "cuda" else 0
        return min(
            self.warps // warps,
            self.registers // max(1, registers * self.lanes * warps),
            (self.shared_bytes + reserved) // max(1, shared_bytes + reserved),
        )


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture(name="sm_80", backend="cuda", shared_bytes=163 * 1024, warps=64),
        Architecture(name="sm_90", backend="cuda", shared_bytes=227 * 1024, warps=64),
        Architecture(name="sm_100", backend="cuda", shared_bytes=227 * 1024, warps=64),
        Architecture(name="sm_120", backend="cuda", shared_bytes=99 * 1024, warps=48),
        Architecture(name="gfx942", backend="hip", shared_bytes=64 * 1024, warps=32),
        Architecture(name="gfx950", backend="hip", shared_bytes=160 * 1024, warps=32),
    )
}
"""Every architecture that is proved without a GPU, by name."""

_SETTINGS_OF = {"sm_86": "sm_120", "sm_89": "sm_120", "sm_87": "sm_80", "sm_103": "sm_100", "sm_121": "sm_120"}
"""Close relatives, and the listed architecture with at most their shared memory and the same kind of instructions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchConfig:
    """How one kernel is launched. Blocks are in elements: rows, columns, and the inner dimension of the product."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int

    @property
    def blocks(self) -> dict[str, int]:
        """Constants of a kernel."""
        return {"BLOCK_M": self.block_m, "BLOCK_N": self.block_n, "BLOCK_K": self.block_k}

    @property
    def options(self) -> dict[str, int]:
        """Options of triton's compiler."""
        return {"num_warps": self.warps, "num_stages": self.stages}


def architecture(name: str) -> Architecture:
    """The architecture of this name; ValueError with the known names if there is none."""
    found = ARCHITECTURES.get(_SETTINGS_OF.get(name, name))
    if found is None:
        known = ", ".join([*ARCHITECTURES, *_SETTINGS_OF])
        raise ValueError(f"unknown GPU architecture {name!r}; known: {known}; without a kernel the torch path runs")
    return found


@cache
def architecture_name(device: torch.device) -> str:
    """What the device calls its architecture: ``sm_90`` from CUDA, ``gfx942`` from ROCm."""
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return str(properties.gcnArchName).split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def config_for(kernel: str, *, rows: int, width: int, dtype: str, arch: str) -> LaunchConfig:
    """The launch settings of a kernel.

    Args:
        kernel: one of `KERNELS`.
        rows: rows that share weights: of the input for `elastic_linear`, per expert on average for `moe_up` and
            `moe_down`, queries per key-value head for `attention`; not used for `weight_blend`.
        width: size of the inner dimension: head_dim for `attention`; decides nothing elsewhere.
        dtype: ``bfloat16``, ``float16`` or ``float32``.
        arch: such as ``sm_90``.

    Raises:
        ValueError: the kernel, the element type or the architecture is unknown.
    """
    target = architecture(arch)
    if dtype not in ELEMENT_TYPES:
        raise ValueError(f"no kernel computes in {dtype!r}; choose one of {', '.join(ELEMENT_TYPES)}")
    if kernel not in _RULES:
        raise ValueError(f"unknown kernel {kernel!r}; known: {', '.join(KERNELS)}")
    return _RULES[kernel](rows, width, dtype, target)


def _tile_rows(rows: int, dtype: str, largest: int) -> int:
    """The smallest tile of 16, 64 or 128 rows that holds them, up to the largest; always 32 for float32."""
    if dtype == "float32":
        return 32
    return min(largest, 16 if rows <= 16 else 64 if rows <= 64 else 128)


def _product(rows: int, width: int, dtype: str, target: Architecture) -> LaunchConfig:
    """One matrix product per tile. float32 runs on ordinary units: smaller tiles, for registers."""
    block_m = _tile_rows(rows, dtype, 128)
    if dtype == "float32":
        return LaunchConfig(block_m=block_m, block_n=32, block_k=32, warps=4, stages=2)
    block_n, warps = (128, 8) if block_m == 128 else (64, 4)
    stages = 2 if target.backend == "hip" else 3
    return LaunchConfig(block_m=block_m, block_n=block_n, block_k=64, warps=warps, stages=stages)


def _double_product(rows: int, width: int, dtype: str, target: Architecture) -> LaunchConfig:
    """Gate and up share a tile of input, so each takes half of the columns."""
    whole = _product(rows, width, dtype, target)
    return replace(whole, block_n=max(32, whole.block_n // 2))


def _attention(rows: int, width: int, dtype: str, target: Architecture) -> LaunchConfig:
    """Two products in a row: the scores of a tile stay in registers, and a head is one block."""
    if width > HEAD_BLOCKS[-1]:
        raise ValueError(f"the attention kernel takes heads of up to {HEAD_BLOCKS[-1]} features, got {width}")
    block_m, block_k = _tile_rows(rows, dtype, 64), min(block for block in HEAD_BLOCKS if block >= width)
    if dtype == "float32":
        return LaunchConfig(block_m=block_m, block_n=32, block_k=block_k, warps=4, stages=2)
    is_large = block_m == 64 and block_k == 128
    block_n = 32 if is_large and target.name == "sm_100" else 64
    return LaunchConfig(block_m=block_m, block_n=block_n, block_k=block_k, warps=8 if is_large else 4, stages=2)


def _blend(rows: int, width: int, dtype: str, target: Architecture) -> LaunchConfig:
    """Bound by memory: 16 elements per thread, one tile of them at a time."""
    return LaunchConfig(block_m=4, block_n=512, block_k=1, warps=4, stages=1)


_RULES: dict[str, Callable[[int, int, str, Architecture], LaunchConfig]] = {
    "attention": _attention,
    "elastic_linear": _product,
    "moe_down": _product,
    "moe_up": _double_product,
    "weight_blend": _blend,
}
