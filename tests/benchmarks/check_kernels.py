"""Proof of the Triton kernels without a GPU: the interpreter against torch, and the compiler for six architectures.

The interpreter runs in a process of its own, since triton cannot interpret and compile in one. Compile results are
compared with `kernels/compiled.json`; ``UPDATE_GOLDEN=1`` writes that file instead. Nothing here says how fast a
kernel is.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from xml.etree import ElementTree

from kernels.compile_report import RECORD, CompileResult, Record, cells, compile_cell, recorded
from kernels.launch_config import ARCHITECTURES
from kernels.triton_jit import require_triton
from tests.benchmarks.common import finish, print_table

ROOT = Path(__file__).resolve().parents[2]
SUITE = "tests/kernels/interpreter"
REMEDY = "if the change is meant, write the file anew: UPDATE_GOLDEN=1 make check-kernels"


def interpret(selection: str = "") -> tuple[int, dict[str, float]]:
    """Run the interpreter suite in another process.

    Args:
        selection: an expression for pytest's ``-k``; all cases if empty.

    Returns:
        How many cases passed, and the largest relative error per element type.

    Raises:
        RuntimeError: a case failed; what pytest printed is the message.
    """
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder, "results.xml")
        command = [sys.executable, "-m", "pytest", "-q", "--tb=short", SUITE, f"--junitxml={results}"]
        command += ["-o", "junit_family=xunit1", *(["-k", selection] if selection else [])]
        environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{done.stdout}{done.stderr}")
        return read_results(ElementTree.parse(results).getroot())


def read_results(root: ElementTree.Element) -> tuple[int, dict[str, float]]:
    """Cases and the largest error per element type from pytest's JUnit file."""
    errors: dict[str, float] = defaultdict(float)
    cases = root.findall(".//testcase")
    for case in cases:
        dtype = next(name for name in ("bfloat16", "float16", "float32") if name in case.attrib["name"])
        for found in case.findall(".//property[@name='error']"):
            errors[dtype] = max(errors[dtype], float(found.attrib["value"]))
    return len(cases), dict(sorted(errors.items()))


def write_golden(results: Iterable[CompileResult]) -> None:
    """Keep the numbers of all cells, one line each."""
    lines = (f"  {json.dumps(result.cell.name)}: {json.dumps(result.record())}" for result in results)
    head = f'{{"triton": {json.dumps(version("triton"))}, "cells": {{\n'
    RECORD.write_text(head + ",\n".join(lines) + "\n}}\n", encoding="utf-8")


def differences(found: Mapping[str, Mapping[str, int]], triton: str, golden: tuple[str, Record]) -> list[str]:
    """What differs from the record, one line per number; cells that were not compiled this time are not compared."""
    recorded_triton, recorded = golden
    if triton != recorded_triton:
        return [f"compiled by triton {triton}, recorded with {recorded_triton}"]
    lines = []
    for name, numbers in found.items():
        known = recorded.get(name)
        if known is None:
            lines.append(f"{name} is not on record")
            continue
        lines += [
            f"{name} {key}: {known.get(key)} -> {numbers[key]}" for key in numbers if known.get(key) != numbers[key]
        ]
    return lines


def cpu_seconds() -> float:
    """CPU time of this process and of its finished children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def compile_all() -> list[CompileResult]:
    """Every cell, one table per architecture."""
    results = []
    for name, group in groupby(cells(), key=lambda cell: cell.architecture):
        of_one = [compile_cell(cell) for cell in group]
        print(f"\n{name}", flush=True)
        head = ("kernel", "registers", "spills", "shared", "matrix", "async", "tensor memory")
        print_table(head, (_row(result) for result in of_one))
        results += of_one
    return results


def _row(result: CompileResult) -> tuple[object, ...]:
    name = result.cell.name.removesuffix(f"/{result.cell.architecture}")
    counts = (result.registers, result.spill_bytes, result.shared_bytes, result.matrix_instructions)
    return (name, *counts, result.async_copies, result.tensor_memory)


def check_golden(results: list[CompileResult]) -> list[str]:
    """Compare with the record, or write it where the environment says so; returns what differs."""
    if os.environ.get("UPDATE_GOLDEN"):
        write_golden(results)
        return []
    golden = recorded()
    found = {result.cell.name: result.record() for result in results}
    gone = [f"{name} is on record but no longer compiled" for name in golden[1] if name not in found]
    return differences(found, version("triton"), golden) + gone


def main() -> None:
    """Run everything, print the tables and end with one line for programs; exit code 1 if anything is wrong."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    try:
        require_triton()
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    start = cpu_seconds()
    cases, errors = interpret()
    interpreted = cpu_seconds()
    print_table(("element type", "largest relative error"), errors.items())
    results = compile_all()
    compiled = cpu_seconds()
    faults = [fault for result in results for fault in result.faults()]
    changes = check_golden(results)
    print("\n".join(("", *faults, *changes, *([REMEDY] if changes else []))))
    finish(
        {
            "interpreter_cases": cases,
            "max_error": errors,
            "architectures": list(ARCHITECTURES),
            "spills": sum(result.spill_bytes for result in results),
            "compiled": len(results),
            "faults": len(faults),
            "golden_differences": len(changes),
            "interpreter_cpu_seconds": round(interpreted - start, 1),
            "compile_cpu_seconds": round(compiled - interpreted, 1),
        }
    )
    if faults or changes:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
