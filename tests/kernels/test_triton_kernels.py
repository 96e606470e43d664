"""The proof of `make check-kernels` in a fast form: most interpreter cases and a sample of the compile results."""

from __future__ import annotations

from importlib.metadata import version
from xml.etree import ElementTree

import pytest

from kernels.compile_report import cells, compile_cell, recorded
from kernels.launch_config import ARCHITECTURES, KERNELS
from tests.benchmarks.check_kernels import REMEDY, differences, interpret, read_results

pytest.importorskip("triton")

SAMPLE = cells(dtypes=["bfloat16"])[::5]


@pytest.mark.timeout(600)
def test_interpreted_kernels_equal_torch() -> None:
    cases, errors = interpret("bfloat16 or not float16")
    assert cases >= 60
    assert errors["float32"] <= 1e-5
    assert errors["bfloat16"] <= 2e-2


def test_sample_covers_kernels_and_architectures() -> None:
    assert {cell.kernel for cell in SAMPLE} == set(KERNELS)
    assert {cell.architecture for cell in SAMPLE} == set(ARCHITECTURES)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_compiled_kernels_are_good_and_as_recorded(arch: str) -> None:
    results = [compile_cell(cell) for cell in SAMPLE if cell.architecture == arch]
    assert not [fault for result in results for fault in result.faults()]
    found = {result.cell.name: result.record() for result in results}
    changes = differences(found, version("triton"), recorded())
    assert not changes, "\n".join((*changes, REMEDY))


def test_everything_is_recorded_and_nothing_else() -> None:
    triton, numbers_of = recorded()
    assert triton == version("triton"), REMEDY
    assert sorted(numbers_of) == sorted(cell.name for cell in cells())
    assert not [name for name, numbers in numbers_of.items() if numbers["spill_bytes"]]


def test_differences_are_readable() -> None:
    golden = ("3.7.1", {"a": {"registers": 8, "stages": 2}})
    assert differences({"a": {"registers": 8, "stages": 2}}, "3.7.1", golden) == []
    changed = {"a": {"registers": 9, "stages": 2}, "b": {"registers": 1}}
    assert differences(changed, "3.7.1", golden) == ["a registers: 8 -> 9", "b is not on record"]
    assert differences({}, "3.8.0", golden) == ["compiled by triton 3.8.0, recorded with 3.7.1"]


def test_results_of_the_interpreter_are_read() -> None:
    case = '<testcase name="{}"><properties><property name="error" value="{}"/></properties></testcase>'
    cases = (("test_a[bfloat16-1]", 0.01), ("test_b[float32]", 1e-7), ("test_c[float32]", 3e-7))
    found = ElementTree.fromstring(f"<suite>{''.join(case.format(*one) for one in cases)}</suite>")
    assert read_results(found) == (3, {"bfloat16": 0.01, "float32": 3e-7})
