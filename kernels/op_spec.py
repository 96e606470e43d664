"""`OpSpec`: the one currency between architectures, measurements and predictors.

A family translates an (architecture, context) into a list of specs; the timing code builds and times a spec; a
predictor sums or regresses over them. FLOPs and bytes are exact for every kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal[
    "linear", "attention", "feed_forward", "attention_block", "norm", "embedding", "moe", "blend", "custom", "model"
]
"""Operators; `attention_block` and `feed_forward` are residual blocks with norm, `model` is an end-to-end row.

`custom` is whatever a search problem of one's own says it is, under the name that stands as its implementation.
"""

BYTES_PER_ELEMENT = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """Under which circumstances a latency holds; part of every key.

    Attributes:
        batch: sequences per call.
        sequences: one fixed length, or several equally likely ones (quantiles of the user's data), whose mean counts.
        threads: intra-op threads.
        dtype: of weights and activations.
        cached: tokens of every sequence whose keys and values are there already. A prompt is read with none; a token
            is generated with one new token per sequence and the prompt and what was generated before it cached.
    """

    batch: int = 1
    sequences: tuple[int, ...] = (128,)
    threads: int = 1
    dtype: str = "float32"
    cached: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1 or self.threads < 1 or not self.sequences or min(self.sequences) < 1:
            raise ValueError(f"batch, threads and sequence lengths must be at least 1, got {self}")
        if self.cached < 0:
            raise ValueError(f"cached tokens are counted from 0, got {self.cached}")
        if self.dtype not in BYTES_PER_ELEMENT:
            raise ValueError(f"dtype must be one of {sorted(BYTES_PER_ELEMENT)}, got {self.dtype!r}")

    @property
    def key(self) -> str:
        """``b8,s16+24+40,t1,float32``; with a cache ``b8,s1,k128,t1,float32``."""
        lengths = "+".join(map(str, self.sequences)) + (f",k{self.cached}" if self.cached else "")
        return f"b{self.batch},s{lengths},t{self.threads},{self.dtype}"

    def at(self, sequence: int) -> Context:
        """The same circumstances at one length."""
        return replace(self, sequences=(sequence,))

    def generating(self, prompt: int, step: int) -> Context:
        """The same circumstances while token number `step`, from 1, is generated after a prompt."""
        if prompt < 1 or step < 1:
            raise ValueError(f"prompt and step are counted from 1, got {prompt} and {step}")
        return replace(self, sequences=(1,), cached=prompt + step - 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class OpSpec:
    """One operation at one context.

    Attributes:
        kind: what it computes.
        dims: sorted (name, size) pairs; which ones, see `dims_of`.
        context: batch, length, threads, dtype.
        implementation: ``stock``, ``torch`` (our CPU path) or ``triton``; for kind ``custom``, the operation's name.
        routing: quantised routing profile of a MoE layer, such as ``e6,mild``; empty otherwise.
        flops: floating-point operations of one call, multiply and add counted as two.
        bytes: weight and activation bytes one call touches.
        launches: kernels one call starts where every torch operation is one.
        tag: for kind ``model``, the hash of the architecture and family; empty otherwise.
    """

    kind: Kind
    dims: tuple[tuple[str, int], ...]
    context: Context
    implementation: str = "stock"
    routing: str = ""
    flops: int = 0
    bytes: int = 0
    launches: int = 1
    tag: str = ""

    @property
    def size(self) -> Mapping[str, int]:
        """`dims` as a mapping."""
        return dict(self.dims)

    @property
    def key(self) -> str:
        """Identity of the measurement, ``feed_forward[hidden=384,width=768]@b8,s24,t1,float32#stock``."""
        dims = ",".join(f"{name}={size}" for name, size in self.dims)
        tail = "".join(f"#{part}" for part in (self.implementation, self.routing, self.tag) if part)
        return f"{self.kind}[{dims}]@{self.context.key}{tail}"
