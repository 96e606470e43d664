"""The kernels' own source, run by triton's interpreter: only in a process that starts with ``TRITON_INTERPRET=1``.

The interpreter keeps bfloat16 as its bits and multiplies those. Here its arithmetic is widened to float32, so that
what is tested stays the source that is compiled.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED else ["test_*.py"]


def widened(handle: Any) -> Any:
    """The same values in float32 if they are bfloat16 bits."""
    import numpy as np
    from triton import language as tl
    from triton.runtime.interpreter import TensorHandle

    if handle.dtype.scalar != tl.bfloat16:
        return handle
    values = (np.asarray(handle.data).astype(np.uint32) << 16).view(np.float32)
    return TensorHandle(values, tl.float32)


@pytest.fixture(autouse=True, scope="session")
def _bfloat16_arithmetic() -> Any:
    """Products of bfloat16 in float32, as tensor cores compute them; other arithmetic is refused."""
    from triton import language as tl
    from triton.runtime.interpreter import InterpreterBuilder

    dot, binary = InterpreterBuilder.create_dot, InterpreterBuilder.binary_op

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, widened(a), widened(b), *rest)

    def binary_op(self: Any, left: Any, right: Any, op: Any) -> Any:
        assert left.dtype.scalar != tl.bfloat16, "compute in float32; the interpreter would use the bits of bfloat16"
        return binary(self, left, right, op)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_dot", create_dot)
        patch.setattr(InterpreterBuilder, "binary_op", binary_op)
        yield
