"""Constructors of `OpSpec` with exact FLOPs and bytes, for the blocks of pre-trained encoders.

Counting rules: every multiply-accumulate of a matrix product is two FLOPs; biases, activations, softmax, norms and
residual additions are not counted. Bytes are the parameters one call reads plus its input and output activations;
intermediate activations are not counted. Every context here has exactly one sequence length: with several, make one
spec per length by ``context.at(length)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kernels.op_spec import BYTES_PER_ELEMENT, Context, Kind, OpSpec


def attention_block(hidden: int, heads: int, head_dim: int, context: Context) -> OpSpec:
    """Self-attention with q, k, v and output projections (all with bias), residual connection and LayerNorm.

    Heads may cover less than the hidden size. MACs with T = batch x S tokens and I = heads x head_dim:
    ``4*T*hidden*I`` for the projections, ``T*S*I`` each for the scores and for the weighted values.
    """
    tokens, inner = _tokens(context), heads * head_dim
    macs = 4 * tokens * hidden * inner + 2 * tokens * context.sequences[0] * inner
    parameters = 4 * hidden * inner + 3 * inner + hidden + 2 * hidden
    sizes = {"hidden": hidden, "heads": heads, "head_dim": head_dim}
    return _spec("attention_block", sizes, context, macs, parameters + 2 * tokens * hidden)


def feed_forward(hidden: int, width: int, context: Context) -> OpSpec:
    """Two linear layers with bias around a GELU, residual connection and LayerNorm; ``2*T*hidden*width`` MACs."""
    tokens = _tokens(context)
    parameters = 2 * hidden * width + width + hidden + 2 * hidden
    sizes = {"hidden": hidden, "width": width}
    return _spec("feed_forward", sizes, context, 2 * tokens * hidden * width, parameters + 2 * tokens * hidden)


def embedding(hidden: int, vocabulary: int, context: Context) -> OpSpec:
    """Sum of word, position and token-type embeddings, then LayerNorm.

    No matrix product, hence 0 FLOPs. Bytes: one row of each of the three tables per token, the norm's parameters and
    the output; the rest of the tables is not touched, so that `vocabulary` is identity, not cost.
    """
    tokens = _tokens(context)
    return _spec("embedding", {"hidden": hidden, "vocab": vocabulary}, context, 0, (4 * tokens + 2) * hidden)


def linear(inputs: int, outputs: int, rows: int, context: Context) -> OpSpec:
    """A linear layer with bias over `rows` vectors, such as a pooler or classifier; ``rows*inputs*outputs`` MACs."""
    _tokens(context)
    elements = inputs * outputs + outputs + rows * (inputs + outputs)
    sizes = {"in": inputs, "out": outputs, "rows": rows}
    return _spec("linear", sizes, context, rows * inputs * outputs, elements)


def custom(name: str, sizes: Mapping[str, int], context: Context, macs: int = 0, elements: int = 0) -> OpSpec:
    """An operation of one's own, such as ``my-cnn.conv3x3``: name and sizes must say all that decides its latency.

    `macs` are its multiply-accumulates, `elements` the numbers it reads and writes; they may be left at 0.
    """
    assert name, "an operation of one's own needs a name"
    return replace(_spec("custom", dict(sizes), context, macs, elements), implementation=name)


def model(tag: str, context: Context) -> OpSpec:
    """An end-to-end row: one forward pass of the whole network that `tag` identifies. Its cost is left at 0."""
    assert tag, "an end-to-end row needs the identity of its network"
    _tokens(context)
    return OpSpec(kind="model", dims=(), context=context, tag=tag)


def _tokens(context: Context) -> int:
    assert len(context.sequences) == 1, f"one spec per sequence length, got {context.sequences}"
    return context.batch * context.sequences[0]


def _spec(kind: Kind, sizes: dict[str, int], context: Context, macs: int, elements: int) -> OpSpec:
    assert all(size > 0 for size in sizes.values()), f"sizes of {kind} must be positive, got {sizes}"
    dims = tuple(sorted(sizes.items()))
    return OpSpec(
        kind=kind, dims=dims, context=context, flops=2 * macs, bytes=elements * BYTES_PER_ELEMENT[context.dtype]
    )
