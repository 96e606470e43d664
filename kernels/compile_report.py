"""What triton's compiler makes of every kernel for GPUs that are not here, and whether that is good enough to ship.

No GPU is needed and no speed is claimed: registers, spills, shared memory and instructions are facts about the code.
Those of every cell are on record in `compiled.json`; `make check-kernels` compares.
Compile in another process than the interpreter: triton cannot do both in one.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from kernels.launch_config import (
    ARCHITECTURES,
    HEAD_BLOCKS,
    KERNELS,
    Architecture,
    LaunchConfig,
    architecture,
    config_for,
)
from kernels.triton_jit import require_triton

RECORD = Path(__file__).with_name("compiled.json")
"""What the compiler made of every cell, one line each."""

Record = dict[str, dict[str, int]]
"""Name of a cell → number by name."""

_MODULES = ("kernels.attention", "kernels.elastic_linear", "kernels.grouped_experts", "kernels.weight_blend")
_ROWS = (16, 64, 1024)
_TYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
_ALIGNED = ("Pointer", "IntPointer", "FloatPointer", "Size")
_MATRIX = {"cuda": r"\bmma\.sync\.", "hip": r"\bv_mfma_"}
_WIDE_MATRIX = {"sm_90": r"\bwgmma\.mma_async\.", "sm_100": r"\btcgen05\.mma\."}
_WIDE_ROWS = 64
"""Hopper's and Blackwell's own instructions take 64 rows; smaller tiles run on those that came before."""

_ASYNC = r"\bcp\.async\.(?:ca|cg|bulk)\b"
_PRODUCTS = ("attention", "elastic_linear", "moe_down", "moe_up")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One thing to compile: a kernel, an element type and launch settings for an architecture."""

    kernel: str
    architecture: str
    dtype: str
    config: LaunchConfig

    @property
    def name(self) -> str:
        """``moe_up/bfloat16/64x32x64/sm_90``, unique within a report."""
        blocks = "x".join(map(str, self.config.blocks.values()))
        return f"{self.kernel}/{self.dtype}/{blocks}/{self.architecture}"


@dataclass(frozen=True, kw_only=True, slots=True)
class CompileResult:
    """What became of one cell.

    Attributes:
        cell: what was compiled.
        registers: per thread; VGPRs on AMD.
        spill_bytes: stores and loads of spilled registers per thread; scratch and spilled VGPRs on AMD.
        shared_bytes: shared memory of one block.
        tensor_memory: columns of Blackwell's tensor memory; 0 elsewhere.
        matrix_instructions: tensor-core or MFMA instructions.
        async_copies: instructions that copy from global to shared memory beside the arithmetic; 0 on AMD.
        accumulators: AGPRs; 0 on NVIDIA.
        scalars: SGPRs; 0 on NVIDIA.
    """

    cell: Cell
    registers: int
    spill_bytes: int
    shared_bytes: int
    matrix_instructions: int
    async_copies: int = 0
    tensor_memory: int = 0
    accumulators: int = 0
    scalars: int = 0

    @property
    def resident_blocks(self) -> int:
        """Blocks that fit on one multiprocessor at a time."""
        return ARCHITECTURES[self.cell.architecture].resident_blocks(
            warps=self.cell.config.warps, registers=self.registers, shared_bytes=self.shared_bytes
        )

    def faults(self) -> list[str]:
        """Which rules it breaks; none if it may ship."""
        target = ARCHITECTURES[self.cell.architecture]
        is_product = self.cell.kernel in _PRODUCTS and self.cell.dtype != "float32"
        needs_copies = is_product and target.backend == "cuda"
        over_shared = self.shared_bytes > target.shared_bytes
        rules = {
            f"spills {self.spill_bytes} bytes of registers; use smaller blocks or more warps": self.spill_bytes > 0,
            f"uses {self.shared_bytes} bytes of shared memory; {target.name} has {target.shared_bytes}": over_shared,
            "leaves no room for one block on a multiprocessor": not (over_shared or self.resident_blocks),
            "has no matrix instruction of its architecture": is_product and not self.matrix_instructions,
            "has no asynchronous copy; look for loads of unknown alignment": needs_copies and not self.async_copies,
        }
        return [f"{self.cell.name} {rule}" for rule, broken in rules.items() if broken]

    def record(self) -> dict[str, int]:
        """All numbers, launch settings included, for JSON under the name of the cell."""
        numbers = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "cell"}
        return {"warps": self.cell.config.warps, "stages": self.cell.config.stages, **numbers}


@cache
def recorded() -> tuple[str, Record]:
    """The version of triton and the numbers of every cell, by its name, as they are on record."""
    content = json.loads(RECORD.read_text(encoding="utf-8"))
    return content["triton"], content["cells"]


def recorded_result(cell: Cell) -> CompileResult:
    """What is on record about a cell, without a compiler.

    Raises:
        ValueError: it was never compiled.
    """
    found = recorded()[1].get(cell.name)
    if found is None:
        raise ValueError(f"{cell.name} is not on record; UPDATE_GOLDEN=1 make check-kernels compiles what is missing")
    return CompileResult(cell=cell, **{name: found[name] for name in found if name not in ("warps", "stages")})


def cells(
    architectures: Iterable[str] = tuple(ARCHITECTURES), dtypes: Iterable[str] = ("bfloat16", "float32")
) -> list[Cell]:
    """Every kernel with every launch setting that `config_for` can give.

    float16 has the settings and instructions of bfloat16 and is left out.

    Raises:
        ValueError: an architecture is unknown.
    """
    targets = [architecture(name).name for name in architectures]
    return [
        Cell(kernel=kernel, architecture=target, dtype=dtype, config=config)
        for target, kernel, dtype in product(targets, KERNELS, tuple(dtypes))
        for config in _configs(kernel, dtype, target)
    ]


def _configs(kernel: str, dtype: str, target: str) -> list[LaunchConfig]:
    widths = HEAD_BLOCKS if kernel == "attention" else (1024,)
    found = (config_for(kernel, rows=r, width=w, dtype=dtype, arch=target) for w, r in product(widths, _ROWS))
    return list(dict.fromkeys(found))


def _specimens() -> dict[str, tuple[Any, Mapping[str, object]]]:
    """Every kernel with its constants, from the modules that define them."""
    return {name: pair for module in _MODULES for name, pair in importlib.import_module(module).SPECIMENS.items()}


def compile_cell(cell: Cell) -> CompileResult:
    """Compile one kernel for one architecture and read what came out.

    Sizes and strides are taken to be multiples of 16, as in every pre-trained model.

    Raises:
        ValueError: triton is not installed, or its own tools cannot be run.
    """
    require_triton()
    target = architecture(cell.architecture)
    compiled, log = _compile(cell, target)
    read = _read_nvidia if target.backend == "cuda" else _read_amd
    return CompileResult(cell=cell, **read(compiled, log, _matrix_pattern(target, cell.config)))


def _compile(cell: Cell, target: Architecture) -> tuple[Any, str]:
    """What triton made, and what the assembler said about it."""
    triton, source = importlib.import_module("triton"), importlib.import_module("triton.compiler").ASTSource
    gpu = importlib.import_module("triton.backends.compiler").GPUTarget
    is_cuda = target.backend == "cuda"
    arch: int | str = int(target.name.removeprefix("sm_")) if is_cuda else target.name
    log, knobs = io.StringIO(), triton.knobs
    with knobs.compilation.scope(), knobs.nvidia.scope(), contextlib.redirect_stdout(log):
        knobs.compilation.always_compile, knobs.nvidia.dump_ptxas_log = True, True
        try:
            compiled = triton.compile(
                source(*_signature(cell)),
                target=gpu(target.backend, arch, 32 if is_cuda else 64),
                options=cell.config.options,
            )
        except (OSError, RuntimeError, importlib.import_module("triton.errors").TritonError) as problem:
            raise ValueError(_tool_problem(problem)) from problem
    return compiled, log.getvalue()


def _signature(cell: Cell) -> tuple[Any, dict[str, str], dict[str, object], dict[tuple[int], list[list[object]]]]:
    """The kernel, the types of its arguments, its constants, and which arguments are multiples of 16."""
    kernel, constants = _specimens()[cell.kernel]
    kinds: dict[str, str] = kernel.fn.__annotations__
    types = {
        "Pointer": f"*{_TYPES[cell.dtype]}",
        "IntPointer": "*i32",
        "FloatPointer": "*fp32",
        "Number": "fp32",
        "constexpr": "constexpr",
    }
    signature = {name: types.get(kinds[name], "i32") for name in kernel.arg_names}
    values = {name: value for name, value in {**constants, **cell.config.blocks}.items() if name in signature}
    aligned: dict[tuple[int], list[list[object]]] = {
        (index,): [["tt.divisibility", 16]] for index, name in enumerate(kernel.arg_names) if kinds[name] in _ALIGNED
    }
    return kernel, signature, values, aligned


def _matrix_pattern(target: Architecture, config: LaunchConfig) -> str:
    wide = _WIDE_MATRIX.get(target.name) if config.block_m >= _WIDE_ROWS else None
    return wide or _MATRIX[target.backend]


def _tool_problem(problem: Exception) -> str:
    line = (str(problem).splitlines() or [type(problem).__name__])[0]
    return (
        f"triton could not compile: {line}; reinstall it with its tools: pip install --force-reinstall 'triton==3.7.*'"
    )


def _read_nvidia(compiled: Any, log: str, matrix: str) -> dict[str, int]:
    """Registers and spills from ptxas; instructions from PTX, each of which becomes one or more of the machine."""
    machine = str(compiled.asm["ptx"])
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", log)
    registers = re.search(r"Used (\d+) registers", log)
    assert registers is not None, f"ptxas said nothing about registers: {log}"
    assert spills, f"ptxas said nothing about spills: {log}"
    return {
        "registers": int(registers[1]),
        "spill_bytes": sum(map(int, spills)),
        "shared_bytes": compiled.metadata.shared,
        "tensor_memory": getattr(compiled.metadata, "tmem_size", None) or 0,
        "matrix_instructions": len(re.findall(matrix, machine)),
        "async_copies": len(re.findall(_ASYNC, machine)),
    }


def _read_amd(compiled: Any, log: str, matrix: str) -> dict[str, int]:
    """Everything from the assembly and the metadata at its end."""
    machine = str(compiled.asm["amdgcn"])

    def field(name: str) -> int:
        return sum(int(value) for value in re.findall(rf"\.{name}:\s+(\d+)", machine)[:1])

    return {
        "registers": field("vgpr_count"),
        "accumulators": field("agpr_count"),
        "scalars": field("sgpr_count"),
        "spill_bytes": field("private_segment_fixed_size") + 4 * field("vgpr_spill_count"),
        "shared_bytes": max(field("group_segment_fixed_size"), compiled.metadata.shared),
        "matrix_instructions": len(re.findall(matrix, machine)),
    }
