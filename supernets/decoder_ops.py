"""Operations of decoders with rotary attention, as `OpSpec`s: what the families of language models are made of.

D model width, H query heads, G key/value heads, K head size, T new tokens.
"""

from __future__ import annotations

from typing import Any

from kernels import op_cost
from kernels.op_spec import Context, OpSpec
from supernets.moe_layout import ExpertLayer


def head_dim(config: Any) -> int:
    """K; under multi-head latent attention the larger of the key's and the value's."""
    if is_latent(config):
        return max(int(config.qk_nope_head_dim + config.qk_rope_head_dim), int(config.v_head_dim))
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def is_latent(config: Any) -> bool:
    """Whether keys and values are expanded from a latent vector (DeepSeek's MLA)."""
    return hasattr(config, "kv_lora_rank")


def ends(config: Any, context: Context) -> list[OpSpec]:
    """Embedding, last norm and head; the head answers for every new token."""
    hidden, vocabulary = int(config.hidden_size), int(config.vocab_size)
    tokens = context.batch * context.sequences[0]
    return [
        op_cost.embedding(hidden, vocabulary, context),
        op_cost.norm(hidden, context, parameters=1),
        op_cost.linear(hidden, vocabulary, tokens, context),
    ]


def attention(config: Any, kv_groups: int | None, context: Context) -> list[OpSpec]:
    """Norm, projections and causal attention of one layer, with all key/value heads unless fewer are given."""
    if is_latent(config):
        return _latent_attention(config, context)
    hidden, size, tokens = int(config.hidden_size), head_dim(config), context.batch * context.sequences[0]
    groups = kv_groups or int(config.num_key_value_heads)
    heads = groups * (config.num_attention_heads // config.num_key_value_heads)
    return [
        op_cost.norm(hidden, context, parameters=1),
        op_cost.linear(hidden, heads * size, tokens, context),
        *[op_cost.linear(hidden, groups * size, tokens, context)] * 2,
        op_cost.attention(heads, groups, size, context),
        op_cost.linear(heads * size, hidden, tokens, context),
    ]


def _latent_attention(config: Any, context: Context) -> list[OpSpec]:
    """MLA: queries by way of a low rank or not, keys and values expanded from the latent vector of each token.

    Keys and values of different size are counted at their mean, which is exact in FLOPs.
    """
    hidden, heads, tokens = int(config.hidden_size), int(config.num_attention_heads), _tokens(context)
    key = int(config.qk_nope_head_dim + config.qk_rope_head_dim)
    nope_value = int(config.qk_nope_head_dim + config.v_head_dim)
    rank, latent = config.q_lora_rank, int(config.kv_lora_rank)
    queries = [(hidden, rank), (rank, heads * key)] if rank else [(hidden, heads * key)]
    shapes = [*queries, (hidden, latent + config.qk_rope_head_dim), (latent, heads * nope_value)]
    return [
        op_cost.norm(hidden, context, parameters=1),
        *(op_cost.linear(inputs, outputs, tokens, context) for inputs, outputs in shapes),
        op_cost.attention(heads, heads, (key + int(config.v_head_dim)) // 2, context),
        op_cost.linear(heads * int(config.v_head_dim), hidden, tokens, context),
    ]


def experts(config: Any, layer: ExpertLayer, rows: int, constants: int, context: Context) -> list[OpSpec]:
    """Norm and mixture of experts.

    Args:
        rows: of the router besides one per expert: it kept all of them, and merged or constant experts answer.
        constants: how many of these lead to a constant output, which the weights of a token are multiplied with.
    """
    hidden = int(config.hidden_size)
    specs = [op_cost.linear(hidden, rows, _tokens(context), context)] if rows else []
    specs += [op_cost.linear(constants, hidden, _tokens(context), context)] if constants else []
    if hasattr(config, "shared_expert_intermediate_size"):
        specs.append(op_cost.linear(hidden, 1, _tokens(context), context))
    moe = op_cost.moe(hidden, layer.experts, layer.top_k, layer.width, context, shared=layer.shared)
    return [op_cost.norm(hidden, context, parameters=1), *specs, moe]


def dense(config: Any, context: Context) -> list[OpSpec]:
    """Norm and a gated feed-forward: an expert that every token chooses."""
    hidden, width = int(config.hidden_size), int(config.intermediate_size)
    return [
        op_cost.norm(hidden, context, parameters=1),
        *[op_cost.linear(hidden, width, _tokens(context), context)] * 2,
        op_cost.linear(width, hidden, _tokens(context), context),
    ]


def _tokens(context: Context) -> int:
    return context.batch * context.sequences[0]
