"""Compile reports: what is listed, what is refused, and that every rule of the gate can fail."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kernels import compile_report
from kernels.compile_report import Cell, CompileResult, cells, compile_cell
from kernels.launch_config import ARCHITECTURES, KERNELS, config_for

CELL = Cell(
    kernel="moe_up",
    architecture="sm_90",
    dtype="bfloat16",
    config=config_for("moe_up", rows=64, width=1024, dtype="bfloat16", arch="sm_90"),
)
GOOD = CompileResult(cell=CELL, registers=72, spill_bytes=0, shared_bytes=49152, matrix_instructions=8, async_copies=24)


def test_every_kernel_on_every_architecture() -> None:
    found = cells()
    assert {(cell.kernel, cell.architecture) for cell in found} == {(k, a) for k in KERNELS for a in ARCHITECTURES}
    assert len({cell.name for cell in found}) == len(found)


def test_name() -> None:
    assert CELL.name == "moe_up/bfloat16/64x32x64/sm_90"


def test_unknown_architecture() -> None:
    with pytest.raises(ValueError, match=r"unknown GPU architecture 'sm_999'; known: sm_80, .*gfx950"):
        cells(["sm_999"])


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernels.triton_jit.HAS_TRITON", False)
    with pytest.raises(ValueError, match=r"triton is not installed, or broken; pip install 'triton==3\.7"):
        compile_cell(CELL)


def test_without_the_assembler(monkeypatch: pytest.MonkeyPatch) -> None:
    """A triton whose tools are gone says which remedy there is, not which system call failed."""
    pytest.importorskip("triton")

    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError("no such file: ptxas")

    monkeypatch.setattr("triton.compile", missing)
    with pytest.raises(ValueError, match=r"could not compile: no such file: ptxas; reinstall it with its tools: pip"):
        compile_cell(CELL)


def test_an_assembler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = pytest.importorskip("triton.errors")

    def failing(*_: object, **__: object) -> None:
        raise errors.TritonError("ptxas exited with 127")

    monkeypatch.setattr("triton.compile", failing)
    with pytest.raises(ValueError, match="could not compile: ptxas exited with 127; reinstall it"):
        compile_cell(CELL)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"spill_bytes": 8}, "spills 8 bytes"),
        ({"shared_bytes": 2**18}, "uses 262144 bytes of shared memory; sm_90 has 232448"),
        ({"registers": 1024}, "no room for one block"),
        ({"matrix_instructions": 0}, "no matrix instruction"),
        ({"async_copies": 0}, "no asynchronous copy"),
    ],
)
def test_gate(change: dict[str, Any], fault: str) -> None:
    assert GOOD.faults() == []
    (found,) = replace(GOOD, **change).faults()
    assert found.startswith(CELL.name)
    assert fault in found


@pytest.mark.parametrize("cell", [replace(CELL, dtype="float32"), replace(CELL, kernel="weight_blend")])
def test_only_products_of_16_bits_need_matrix_instructions(cell: Cell) -> None:
    assert replace(GOOD, cell=cell, matrix_instructions=0, async_copies=0).faults() == []


def test_record_holds_every_number() -> None:
    record = GOOD.record()
    assert record["registers"] == 72
    assert (record["warps"], record["stages"]) == (4, 3)
    assert all(isinstance(value, int) for value in record.values())


def test_missing_alignment_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate sees what it is for: without the promise of aligned sizes the copies are no longer asynchronous."""
    pytest.importorskip("triton")
    cell = replace(CELL, architecture="sm_80", kernel="moe_down")
    assert compile_cell(cell).async_copies > 0
    monkeypatch.setattr(compile_report, "_ALIGNED", ())
    assert any("asynchronous" in fault for fault in compile_cell(cell).faults())
