"""The operations as users call them on a CPU: values, gradients, shapes without data, and life without triton.

Shapes: T tokens, k choices, E experts, B stored experts, D model width, F expert width; others as in the kernels.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels.attention import attention
from kernels.elastic_linear import elastic_linear
from kernels.experts import experts_reference
from kernels.grouped_experts import grouped_experts, select_experts
from kernels.routing_plan import with_shared
from kernels.weight_blend import weight_blend

ROOT = Path(__file__).resolve().parents[2]
CHOSEN_Tk = torch.tensor([[0, 2], [1, 0], [2, 1]])


def draw(*shape: int, seed: int = 0) -> Tensor:
    """float64 normal numbers that ask for a gradient."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def experts_of(x_TD: Tensor, up_BFD: Tensor, down_BDF: Tensor, weight_Tk: Tensor) -> Tensor:
    parts = select_experts(up_BFD, bank=[3, 0, 2], widths=[16, 32, 16])
    return grouped_experts(x_TD, up_BFD, down_BDF, CHOSEN_Tk.to(x_TD.device), weight_Tk, parts)


CASES: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "linear": (elastic_linear, (draw(2, 3, 4), draw(5, 4), draw(5))),
    "linear-unbiased": (elastic_linear, (draw(3, 4), draw(5, 4))),
    "blend": (weight_blend, (draw(3, 2, 4), draw(3))),
    "blend-rows": (weight_blend, (draw(3, 2, 4), draw(3, 2))),
    "attention": (attention, (draw(1, 4, 3, 2), draw(1, 2, 5, 2), draw(1, 2, 5, 2, seed=1))),
    "attention-causal": (
        partial(attention, causal=True),
        (draw(1, 2, 2, 2), draw(1, 1, 3, 2), draw(1, 1, 3, 2, seed=1)),
    ),
    "experts": (experts_of, (draw(3, 4), draw(4, 64, 4), draw(4, 4, 32), draw(3, 2))),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients(name: str) -> None:
    """The operation's gradients against finite differences in float64."""
    function, inputs = CASES[name]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("name", CASES)
def test_shapes_without_data(name: str) -> None:
    """What `torch.compile` asks for: the result's shape and type from tensors that hold nothing."""
    function, inputs = CASES[name]
    expected, found = function(*inputs), function(*(one.to("meta") for one in inputs))
    assert found.is_meta
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)


def test_gradients_reach_only_the_slice() -> None:
    full_OI = draw(6, 8)
    (grad_OI,) = torch.autograd.grad(elastic_linear(draw(2, 5), full_OI[:3, :5]).sum(), full_OI)
    outside = torch.ones_like(full_OI, dtype=torch.bool)
    outside[:3, :5] = False
    assert grad_OI[~outside].all()
    assert not grad_OI[outside].any()


def test_experts_equal_the_literal_loop() -> None:
    x_TD, up_BFD, down_BDF, weight_Tk = CASES["experts"][1]
    expected = experts_reference(x_TD, up_BFD, down_BDF, CHOSEN_Tk, weight_Tk, bank=[3, 0, 2], widths=[16, 32, 16])
    torch.testing.assert_close(experts_of(x_TD, up_BFD, down_BDF, weight_Tk), expected, rtol=1e-12, atol=1e-12)


def test_the_whole_bank_is_the_default() -> None:
    x_TD, up_BFD, down_BDF, weight_Tk = CASES["experts"][1]
    expected = experts_reference(x_TD, up_BFD, down_BDF, CHOSEN_Tk, weight_Tk)
    result = grouped_experts(x_TD, up_BFD, down_BDF, CHOSEN_Tk, weight_Tk)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


def test_shared_experts_are_chosen_by_every_token() -> None:
    chosen_Tk, weight_Tk = with_shared(torch.tensor([[1], [0]]), torch.tensor([[0.5], [0.25]]), 2, 2)
    assert chosen_Tk.tolist() == [[1, 2, 3], [0, 2, 3]]
    assert weight_Tk.tolist() == [[0.5, 1, 1], [0.25, 1, 1]]
    _, gated_Tk = with_shared(torch.tensor([[1]]), torch.tensor([[0.5]]), 2, 1, torch.tensor([[0.75]]))
    assert gated_Tk.tolist() == [[0.5, 0.75]]


@pytest.mark.parametrize(
    ("bank", "widths", "message"),
    [
        ([0, 4], None, r"experts \[0, 4\] are not all among the 4 stored ones"),
        ([0], [16, 16], "1 experts and 2 widths"),
        ([], None, "0 experts"),
        ([0], [24], r"widths \[24\] must be multiples of 16 up to the stored 32"),
        ([0], [48], r"widths \[48\] must be multiples of 16 up to the stored 32"),
    ],
)
def test_refused_selections(bank: list[int], widths: list[int] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_experts(torch.empty(4, 64, 8), bank, widths)


def test_everything_works_without_triton(tmp_path: Path) -> None:
    """In a process whose triton cannot be imported, on plain torch."""
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text("raise ImportError('built for another system')")
    code = """
import torch
from kernels import attention, compile_report, elastic_linear, grouped_experts, weight_blend
print(elastic_linear.elastic_linear(torch.ones(1, 2), torch.ones(3, 2)).tolist())
try:
    compile_report.compile_cell(compile_report.cells()[0])
except ValueError as problem:
    print(problem)
"""
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "[[2.0, 2.0, 2.0]]"
    assert done.stdout.splitlines()[1].startswith("triton is not installed, or broken; pip install")
