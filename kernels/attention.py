"""Attention with grouped key-value heads, in one kernel for prompts and for single decoded tokens.

Shapes: B batch, H query heads, G key-value heads, S queries, L keys, K head_dim. M, the rows of a tile, are the queries
of all H / G heads that share keys, so that a decoded token still fills a tile and keys are read once per group.
Online softmax after FlashAttention (arXiv 2205.14135).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from kernels.kernel_op import Configs, KernelOp, element_type
from kernels.launch_config import config_for
from kernels.triton_jit import Count, Number, Pointer, Size, constexpr, jit, tl


@jit
def attention_kernel(
    q_BHSK: Pointer,
    k_BGLK: Pointer,
    v_BGLK: Pointer,
    out_BHSK: Pointer,
    log2_scale: Number,
    groups: Count,
    queries: Count,
    keys: Count,
    head_dim: Size,
    stride_query_batch: Size,
    stride_query_head: Size,
    stride_query: Size,
    stride_key_batch: Size,
    stride_key_group: Size,
    stride_key: Size,
    HEADS_PER_GROUP: constexpr,
    CAUSAL: constexpr,
    BLOCK_M: constexpr,
    BLOCK_N: constexpr,
    BLOCK_K: constexpr,
) -> None:
    """One tile of (query, head of the group) rows against all keys, for one group of one sequence."""
    group, batch = tl.program_id(1) % groups, (tl.program_id(1) // groups).to(tl.int64)
    row_M = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    query_M, head_M = row_M // HEADS_PER_GROUP, group * HEADS_PER_GROUP + row_M % HEADS_PER_GROUP
    key_N, feature_K = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    feature_ok = feature_K < head_dim
    mask_MK = (query_M < queries)[:, None] & feature_ok[None, :]

    q_offset_M = batch * stride_query_batch + head_M * stride_query_head + query_M.to(tl.int64) * stride_query
    q_MK = tl.load(q_BHSK + q_offset_M[:, None] + feature_K[None, :], mask=mask_MK, other=0.0)
    first_key = batch * stride_key_batch + group * stride_key_group
    k_KN = k_BGLK + first_key + key_N.to(tl.int64)[None, :] * stride_key + feature_K[:, None]
    v_NK = v_BGLK + first_key + key_N.to(tl.int64)[:, None] * stride_key + feature_K[None, :]

    top_M = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    total_M = tl.zeros((BLOCK_M,), dtype=tl.float32)
    mixed_MK = tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.float32)
    end = keys
    if CAUSAL:
        end = tl.minimum(keys, (tl.program_id(0) * BLOCK_M + BLOCK_M - 1) // HEADS_PER_GROUP + keys - queries + 1)
    for done in range(0, end, BLOCK_N):
        key_ok = key_N < keys - done
        k = tl.load(k_KN, mask=key_ok[None, :] & feature_ok[:, None], other=0.0)
        allowed = key_ok[None, :]
        if CAUSAL:
            allowed = allowed & (done + key_N[None, :] <= (query_M + keys - queries)[:, None])
        score_MN = tl.where(allowed, tl.dot(q_MK, k, input_precision="ieee") * log2_scale, float("-inf"))
        higher_M = tl.maximum(top_M, tl.max(score_MN, 1))
        share_MN = tl.exp2(score_MN - higher_M[:, None])
        decay_M = tl.exp2(top_M - higher_M)
        total_M = total_M * decay_M + tl.sum(share_MN, 1)
        v = tl.load(v_NK, mask=key_ok[:, None] & feature_ok[None, :], other=0.0)
        mixed_MK = tl.dot(share_MN.to(v.dtype), v, mixed_MK * decay_M[:, None], input_precision="ieee")
        top_M = higher_M
        k_KN += BLOCK_N * stride_key
        v_NK += BLOCK_N * stride_key
    out_M = (batch * groups * HEADS_PER_GROUP + head_M) * queries + query_M
    result_MK = (mixed_MK / total_M[:, None]).to(out_BHSK.dtype.element_ty)
    tl.store(out_BHSK + out_M[:, None] * head_dim + feature_K[None, :], result_MK, mask=mask_MK)


SPECIMENS = {"attention": (attention_kernel, {"HEADS_PER_GROUP": 4, "CAUSAL": True})}
"""By name, with the constants besides the blocks for which the compile report builds it."""


def _reference(q_BHSK: Tensor, k_BGLK: Tensor, v_BGLK: Tensor, causal: bool, scale: float) -> Tensor:
    queries, keys = q_BHSK.shape[2], k_BGLK.shape[2]
    mask_SL = None
    if causal:
        mask_SL = torch.ones(queries, keys, dtype=torch.bool, device=q_BHSK.device).tril(keys - queries)
    return functional.scaled_dot_product_attention(
        q_BHSK, k_BGLK, v_BGLK, attn_mask=mask_SL, scale=scale, enable_gqa=True
    ).contiguous()


def _launch(configs: Configs, q_BHSK: Tensor, k_BGLK: Tensor, v_BGLK: Tensor, causal: bool, scale: float) -> Tensor:
    (config,) = configs
    batch, heads, queries, head_dim = q_BHSK.shape
    groups, keys = k_BGLK.shape[1:3]
    q_BHSK = q_BHSK if q_BHSK.stride(3) == 1 else q_BHSK.contiguous()
    if k_BGLK.stride(3) != 1 or k_BGLK.stride() != v_BGLK.stride():
        k_BGLK, v_BGLK = k_BGLK.contiguous(), v_BGLK.contiguous()
    out_BHSK = q_BHSK.new_empty(q_BHSK.shape)
    if not out_BHSK.numel():
        return out_BHSK
    rows = queries * (heads // groups)
    attention_kernel[-(-rows // config.block_m), batch * groups](
        *(q_BHSK, k_BGLK, v_BGLK, out_BHSK, scale * math.log2(math.e), groups, queries, keys, head_dim),
        *(*q_BHSK.stride()[:3], *k_BGLK.stride()[:3]),
        HEADS_PER_GROUP=heads // groups,
        CAUSAL=causal,
        **config.blocks,
        **config.options,
    )
    return out_BHSK


def _configure(arch: str, q_BHSK: Tensor, k_BGLK: Tensor, v_BGLK: Tensor, causal: bool, scale: float) -> Configs:
    rows, head_dim = q_BHSK.shape[2] * q_BHSK.shape[1] // k_BGLK.shape[1], q_BHSK.shape[3]
    return (config_for("attention", rows=rows, width=head_dim, dtype=element_type(q_BHSK), arch=arch),)


def _fake(q_BHSK: Tensor, k_BGLK: Tensor, v_BGLK: Tensor, causal: bool, scale: float) -> Tensor:
    return q_BHSK.new_empty(q_BHSK.shape)


OP = KernelOp(name="attention", reference=_reference, launch=_launch, configure=_configure, fake=_fake)
_run = OP.register()


def attention(
    q_BHSK: Tensor, k_BGLK: Tensor, v_BGLK: Tensor, *, causal: bool = False, scale: float | None = None
) -> Tensor:
    """``softmax(q k^T * scale) v``, every key-value head shared by H / G query heads.

    Args:
        q_BHSK: (B, H, S, K) queries.
        k_BGLK: (B, G, L, K) keys, any strides; G divides H.
        v_BGLK: (B, G, L, K) values.
        causal: query s sees the keys up to ``s + L - S``: a prompt if S equals L, decoding if S is 1.
        scale: ``1 / sqrt(K)`` if not given.

    Returns:
        (B, H, S, K), contiguous.
    """
    (heads, queries, head_dim), (groups, keys) = q_BHSK.shape[1:], k_BGLK.shape[1:3]
    assert heads % groups == 0, f"{groups} key-value heads do not divide {heads} query heads"
    assert k_BGLK.shape == v_BGLK.shape, f"keys {tuple(k_BGLK.shape)} and values {tuple(v_BGLK.shape)} must agree"
    assert keys > 0, "attention needs a key"
    assert not causal or keys >= queries, f"{queries} queries cannot be the last of {keys} keys"
    return _run(q_BHSK, k_BGLK, v_BGLK, causal, head_dim**-0.5 if scale is None else scale)
