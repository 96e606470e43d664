"""A kernel is believed on a GPU only after its first result there has been compared with plain torch.

Every (kernel, launch settings, device, element type) is compared once; the outcome is kept for this process. Where
the results differ, or the kernel cannot be built or launched, torch answers instead and a warning says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.triton_jit import HAS_TRITON, REMEDY

Where = tuple[Hashable, ...]

TOLERANCES = {torch.float32: 2e-3, torch.float16: 1e-2, torch.bfloat16: 2e-2}
"""Largest accepted difference per element type, relative to the largest result; float32 leaves room for TF32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What the first use of a kernel showed.

    Attributes:
        kernel: its name.
        where: architecture, device, element type and launch settings.
        passed: whether the kernel is used.
        error: largest difference from torch relative to the largest result; None if the kernel did not run.
        reason: why it is not used; empty if it is.
    """

    kernel: str
    where: Where
    passed: bool
    error: float | None = None
    reason: str = ""


_outcomes: dict[tuple[str, Where], Outcome] = {}


def outcomes() -> tuple[Outcome, ...]:
    """All first uses of this process, in the order in which they happened."""
    return tuple(_outcomes.values())


def refused() -> tuple[str, ...]:
    """Names of the kernels that torch stands in for, sorted."""
    return tuple(sorted({outcome.kernel for outcome in _outcomes.values() if not outcome.passed}))


def forget() -> None:
    """Compare every kernel anew, for instance after a new driver or in a test."""
    _outcomes.clear()


def checked(kernel: str, where: Where, fast: Callable[[], Tensor], reference: Callable[[], Tensor]) -> Tensor:
    """The kernel's result if it proved itself here, torch's otherwise; the first call makes the proof.

    Args:
        kernel: its name.
        where: what the proof holds for.
        fast: runs the kernel.
        reference: runs the same on torch.
    """
    known = _outcomes.get((kernel, where))
    if known is not None:
        return fast() if known.passed else reference()
    expected = reference()
    outcome, result = _first_use(kernel, where, fast, expected)
    _outcomes[kernel, where] = outcome
    if not outcome.passed:
        warnings.warn(f"{kernel} runs as plain torch: {outcome.reason}", RuntimeWarning, stacklevel=3)
    return result


def _first_use(kernel: str, where: Where, fast: Callable[[], Tensor], expected: Tensor) -> tuple[Outcome, Tensor]:
    if not HAS_TRITON:
        return Outcome(kernel=kernel, where=where, passed=False, reason=f"triton is missing; {REMEDY}"), expected
    try:
        result = fast()
        error = relative_error(result, expected)
    except Exception as problem:  # whatever a compiler, a driver or a launch raises: torch still has the answer
        reason = f"the kernel failed ({type(problem).__name__}: {problem}); check the GPU driver and a C compiler (gcc)"
        return Outcome(kernel=kernel, where=where, passed=False, reason=reason), expected
    limit = TOLERANCES.get(expected.dtype, 0.0)
    if error <= limit:
        return Outcome(kernel=kernel, where=where, passed=True, error=error), result
    reason = f"its result differs from torch's by {error:.2g} of the largest value, more than {limit:.2g} ({where})"
    return Outcome(kernel=kernel, where=where, passed=False, error=error, reason=reason), expected


def relative_error(result: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest expected magnitude; infinite for NaN or another shape."""
    if result.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    difference = (result.float() - expected.float()).abs().max().item()
    scale = expected.float().abs().max().item()
    error = difference / scale if scale else difference
    return error if error == error else float("inf")
