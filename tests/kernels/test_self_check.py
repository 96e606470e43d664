"""First use of a kernel on a GPU, played with a made-up kernel on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.elastic_linear import OP
from kernels.kernel_op import KernelOp
from kernels.self_check import forget, outcomes, relative_error

X, WEIGHT = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), torch.eye(8)
ARGUMENTS = (X, WEIGHT, None)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("kernels.self_check.HAS_TRITON", True)
    forget()
    yield
    forget()


def op_with(launch: Callable[..., Tensor]) -> tuple[KernelOp, list[int]]:
    """The linear layer with another kernel, and how often that ran."""
    calls: list[int] = []

    def counted(configs: Any, *arguments: Any) -> Tensor:
        calls.append(1)
        return launch(*arguments)

    return replace(OP, launch=counted), calls


def test_a_right_kernel_is_compared_once_and_used() -> None:
    op, calls = op_with(lambda x, weight, bias: x.clone())
    for _ in range(3):
        assert torch.equal(op.on_gpu("sm_90", ARGUMENTS), X)
    (outcome,) = outcomes()
    assert (outcome.kernel, outcome.passed, outcome.error, outcome.reason) == ("elastic_linear", True, 0.0, "")
    assert len(calls) == 3


def test_other_settings_are_compared_again() -> None:
    op, _ = op_with(lambda x, weight, bias: x.clone())
    op.on_gpu("sm_90", ARGUMENTS)
    op.on_gpu("sm_90", (X.bfloat16(), WEIGHT.bfloat16(), None))
    op.on_gpu("sm_120", ARGUMENTS)
    assert [outcome.where[0] for outcome in outcomes()] == ["sm_90", "sm_90", "sm_120"]


@pytest.mark.parametrize(
    "wrong",
    [lambda x, *_: x + 0.1, lambda x, *_: x * float("nan"), lambda x, *_: x[:, :4]],
    ids=["off", "nan", "shape"],
)
def test_a_wrong_kernel_never_answers(wrong: Callable[..., Tensor]) -> None:
    op, calls = op_with(wrong)
    with pytest.warns(RuntimeWarning, match="elastic_linear runs as plain torch: its result differs"):
        assert torch.equal(op.on_gpu("sm_90", ARGUMENTS), X)
    assert torch.equal(op.on_gpu("sm_90", ARGUMENTS), X)
    assert [outcome.passed for outcome in outcomes()] == [False]
    assert len(calls) == 1


def test_a_kernel_that_cannot_be_built() -> None:
    def broken(*_: Any) -> Tensor:
        raise RuntimeError("failed to find C compiler")

    op, calls = op_with(broken)
    with pytest.warns(RuntimeWarning, match=r"RuntimeError: failed to find C compiler\); check the GPU driver and a C"):
        assert torch.equal(op.on_gpu("sm_90", ARGUMENTS), X)
    op.on_gpu("sm_90", ARGUMENTS)
    assert len(calls) == 1


def test_a_gpu_nobody_knows() -> None:
    op, calls = op_with(lambda x, *_: x)
    with pytest.warns(RuntimeWarning, match="unknown GPU architecture 'sm_70'"):
        assert torch.equal(op.on_gpu("sm_70", ARGUMENTS), X)
    assert not calls


def test_triton_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernels.self_check.HAS_TRITON", False)
    op, calls = op_with(lambda x, *_: x)
    with pytest.warns(RuntimeWarning, match=r"triton is missing; pip install 'triton==3\.7"):
        assert torch.equal(op.on_gpu("sm_90", ARGUMENTS), X)
    assert not calls


@pytest.mark.parametrize(
    ("result", "expected", "error"),
    [([1.0, 3.0], [1.0, 4.0], 0.25), ([0.5], [0.0], 0.5), ([], [], 0.0), ([float("inf")], [1.0], float("inf"))],
)
def test_relative_error(result: list[float], expected: list[float], error: float) -> None:
    assert relative_error(torch.tensor(result), torch.tensor(expected)) == error
