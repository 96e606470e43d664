"""Triton where it is installed, and the words in which kernel parameters say what they are.

A module that defines kernels imports `jit` and `tl` from here, so that it also loads where triton is missing or broken.
The annotations below decide the signature with which `kernels.compile_report` compiles a kernel for an absent GPU:
`Pointer` points to the element type of the data, `IntPointer` to int32, `FloatPointer` to float32; `Size` is an int32
that is a multiple of 16 in every pre-trained model (a width or stride), `Count` any other int32, `Number` a float32.
Triton reads ``constexpr`` by its name.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

REMEDY = "pip install 'triton==3.7.*' (Linux on x86-64); without it every operation runs as plain torch"


def _triton_language() -> Any:
    """None where triton is missing, or was built for another system."""
    try:
        return importlib.import_module("triton.language")
    except ImportError:
        return None


tl: Any = _triton_language()
HAS_TRITON = tl is not None

if TYPE_CHECKING:
    Pointer: TypeAlias = Any
    IntPointer: TypeAlias = Any
    FloatPointer: TypeAlias = Any
    Size: TypeAlias = Any
    Count: TypeAlias = Any
    Number: TypeAlias = Any
    constexpr: TypeAlias = Any
else:

    class _Word:
        """A name that triton's compiler accepts as an annotation."""

        __triton_builtin__ = True

    Pointer = IntPointer = FloatPointer = Size = Count = Number = _Word()
    constexpr = tl.constexpr if HAS_TRITON else _Word()


def jit(function: Callable[..., None]) -> Any:
    """``triton.jit``; without triton the function itself, which then must not be called."""
    return importlib.import_module("triton").jit(function) if HAS_TRITON else function


def require_triton() -> None:
    """ValueError with the remedy where triton is not there."""
    if not HAS_TRITON:
        raise ValueError(f"triton is not installed, or broken; {REMEDY}")
