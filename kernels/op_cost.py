"""Constructors of `OpSpec` with exact FLOPs and bytes, for the operations of pre-trained transformers.

Counting rules: every multiply-accumulate of a matrix product is two FLOPs; biases, activations, softmax, norms and
residual additions are not counted. Bytes are the parameters one call reads plus its input and output activations;
intermediate activations are not counted. Every context here has exactly one sequence length: with several, make one
spec per length by ``context.at(length)``.

Launches count the torch operations of a block, views not among them, as if each were one kernel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from kernels.op_spec import BYTES_PER_ELEMENT, Context, Kind, OpSpec
from kernels.routing_profile import RoutingProfile, expected_profile, histogram, positions


def attention_block(hidden: int, heads: int, head_dim: int, context: Context) -> OpSpec:
    """Self-attention with q, k, v and output projections (all with bias), residual connection and LayerNorm.

    Heads may cover less than the hidden size. MACs with T = batch x S tokens and I = heads x head_dim:
    ``4*T*hidden*I`` for the projections, ``T*S*I`` each for the scores and for the weighted values.
    """
    tokens, inner = _tokens(context), heads * head_dim
    assert not context.cached, "this block has no cache; use the operations it consists of"
    macs = 4 * tokens * hidden * inner + 2 * tokens * context.sequences[0] * inner
    parameters = 4 * hidden * inner + 3 * inner + hidden + 2 * hidden
    sizes = {"hidden": hidden, "heads": heads, "head_dim": head_dim}
    return _spec("attention_block", sizes, context, macs, parameters + 2 * tokens * hidden, launches=7)


def attention(heads: int, kv_groups: int, head_dim: int, context: Context, *, causal: bool = True) -> OpSpec:
    """Scaled dot-product attention alone, with `kv_groups` keys and values shared by equally many heads each.

    A new token sees what is cached and itself; without `causal` it sees all new tokens, otherwise those before it.
    ``2*batch*pairs*heads*head_dim`` MACs, where ``pairs`` is how many tokens the S new ones see in total:
    ``S*cached + S*(S+1)/2``, or ``S*(cached + S)``. Bytes: queries, all keys and values, outputs.
    """
    tokens, (new,) = _tokens(context), context.sequences
    assert heads % kv_groups == 0, f"{kv_groups} groups cannot share {heads} heads evenly"
    pairs = new * context.cached + (new * (new + 1) // 2 if causal else new * new)
    elements = 2 * tokens * heads * head_dim + 2 * context.batch * (context.cached + new) * kv_groups * head_dim
    sizes = {"heads": heads, "groups": kv_groups, "head_dim": head_dim} | ({"causal": 1} if causal else {})
    return _spec("attention", sizes, context, 2 * context.batch * pairs * heads * head_dim, elements)


def norm(hidden: int, context: Context, *, parameters: int = 2) -> OpSpec:
    """LayerNorm (`parameters` 2 per channel) or RMSNorm (1) of every new token; 0 FLOPs by the rules."""
    assert parameters in (1, 2), f"a norm has 1 or 2 parameters per channel, got {parameters}"
    elements = (2 * _tokens(context) + parameters) * hidden
    return _spec("norm", {"hidden": hidden, "parameters": parameters}, context, 0, elements)


def blend(inputs: int, outputs: int, sources: int, context: Context) -> OpSpec:
    """A weight matrix as the weighted sum of `sources` others, all read once; ``sources*inputs*outputs`` MACs."""
    numel = inputs * outputs
    sizes = {"in": inputs, "out": outputs, "sources": sources}
    return _spec("blend", sizes, context, sources * numel, (sources + 1) * numel + sources)


def feed_forward(hidden: int, width: int, context: Context) -> OpSpec:
    """Two linear layers with bias around a GELU, residual connection and LayerNorm; ``2*T*hidden*width`` MACs."""
    tokens = _tokens(context)
    parameters = 2 * hidden * width + width + hidden + 2 * hidden
    sizes = {"hidden": hidden, "width": width}
    elements = parameters + 2 * tokens * hidden
    return _spec("feed_forward", sizes, context, 2 * tokens * hidden * width, elements, launches=5)


def embedding(hidden: int, vocabulary: int, context: Context) -> OpSpec:
    """Sum of word, position and token-type embeddings, then LayerNorm.

    No matrix product, hence 0 FLOPs. Bytes: one row of each of the three tables per token, the norm's parameters and
    the output; the rest of the tables is not touched, so that `vocabulary` is identity, not cost.
    """
    tokens = _tokens(context)
    sizes = {"hidden": hidden, "vocab": vocabulary}
    return _spec("embedding", sizes, context, 0, (4 * tokens + 2) * hidden, launches=6)


def linear(inputs: int, outputs: int, rows: int, context: Context) -> OpSpec:
    """A linear layer with bias over `rows` vectors, such as a pooler or classifier; ``rows*inputs*outputs`` MACs."""
    _tokens(context)
    elements = inputs * outputs + outputs + rows * (inputs + outputs)
    sizes = {"in": inputs, "out": outputs, "rows": rows}
    return _spec("linear", sizes, context, rows * inputs * outputs, elements)


def moe(
    hidden: int,
    experts: int,
    top_k: int,
    width: int | Sequence[int],
    context: Context,
    *,
    shared: int = 0,
    profile: RoutingProfile | None = None,
    implementation: str = "stock",
) -> OpSpec:
    """A mixture-of-experts layer without its norm: router, gated experts of their own widths, shared experts.

    With n tokens at an expert of width w: ``T*hidden*experts + sum(3*n*hidden*w) + 3*T*hidden*shared`` MACs; the n are
    those of the profile. Softmax and the choice of experts are part of the layer but count nothing. Bytes: the router,
    the weights of the busy and of the shared experts, input and output. Launches: 20 of the stock layer, however many
    experts are busy, since it sorts tokens and multiplies all experts in groups; otherwise three of the router,
    gathering and combining, then four per busy expert (products, activation, multiplication) or, by Triton, two for
    all; five more of shared experts.

    Args:
        hidden: D.
        experts: E.
        top_k: k, the experts that each token chooses.
        width: F, one for all experts or one for each; which expert has which does not matter.
        context: batch, length, threads, dtype.
        shared: inner width of all always-on experts together.
        profile: how the choices are spread; by default as a router without preferences spreads them.
        implementation: ``stock`` (transformers' grouped product), ``torch`` (our CPU path) or ``triton``.
    """
    tokens, widths = _tokens(context), (width,) * experts if isinstance(width, int) else spread_widths(width)
    assert 0 < top_k <= experts == len(widths), f"{top_k} of {experts} experts with {len(widths)} widths"
    assert implementation != "stock" or len(set(widths)) == 1, (
        f"stock experts have one width, got {sorted(set(widths))}"
    )
    profile = profile or expected_profile(tokens, top_k, experts)
    counts = histogram(tokens, top_k, profile)
    busy = [widths[position] for position in positions(profile.busy, experts)]
    worked = sum(count * one for count, one in zip(counts, busy, strict=True))
    macs = hidden * (tokens * experts + 3 * worked + 3 * tokens * shared)
    elements = hidden * (experts + 3 * sum(busy) + 3 * shared + 2 * tokens)
    sizes = {"hidden": hidden, "experts": experts, "top_k": top_k} | ({"shared": shared} if shared else {})
    of_width = Counter(widths)
    sizes |= {"width": widths[0]} if len(of_width) == 1 else {f"width_{one}": of_width[one] for one in of_width}
    of_experts = {"stock": 15, "triton": 2}.get(implementation, 4 * len(busy))
    launches = 5 + of_experts + (5 if shared else 0)
    spec = _spec("moe", sizes, context, macs, elements, launches=launches)
    return replace(spec, implementation=implementation, routing=profile.key)


def spread_widths(widths: Sequence[int]) -> tuple[int, ...]:
    """The same widths, each as evenly spread over the experts as it can be: no width meets only the busy ones."""
    of_width = Counter(widths)
    places = ((((2 * nth + 1) / count), one) for one, count in of_width.items() for nth in range(count))
    return tuple(one for _, one in sorted(places))


def expert_widths(size: Mapping[str, int]) -> tuple[int, ...]:
    """The widths of all experts of a spec of kind ``moe``, in their order, from its dims."""
    mixed = {int(name.removeprefix("width_")): count for name, count in size.items() if name.startswith("width_")}
    widths = [width for width, count in mixed.items() for _ in range(count)]
    return spread_widths(widths or [size["width"]] * size["experts"])


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
    return OpSpec(kind="model", dims=(), context=context, launches=0, tag=tag)


def _tokens(context: Context) -> int:
    assert len(context.sequences) == 1, f"one spec per sequence length, got {context.sequences}"
    return context.batch * context.sequences[0]


def _spec(
    kind: Kind, sizes: dict[str, int], context: Context, macs: int, elements: int, *, launches: int = 1
) -> OpSpec:
    assert all(size > 0 for size in sizes.values()), f"sizes of {kind} must be positive, got {sizes}"
    return OpSpec(
        kind=kind,
        dims=tuple(sorted(sizes.items())),
        context=context,
        flops=2 * macs,
        bytes=elements * BYTES_PER_ELEMENT[context.dtype],
        launches=launches,
    )
