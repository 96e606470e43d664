"""A mixture-of-experts layer in two grouped matrix products over the rows that each expert was given.

Shapes: T tokens, k choices per token, N = T*k rows sorted by expert, D model width, F expert width as stored, B experts
in the stored bank, E experts of the layer, G tiles; M, N, K in kernels are the rows, columns and inner part of a tile.
Weights lie as in transformers: ``up`` (B, 2F, D) holds the gate in its first F rows, ``down`` (B, D, F).

`moe_up` computes ``silu(gate) * up`` of every row, `moe_down` the weighted output of every choice; the sum over the
choices of a token has a fixed order, so the same input gives the same bits. A layer that keeps some experts, or parts
of them, is a list of bank rows and widths: no weight is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.experts import experts
from kernels.experts_rule import Path
from kernels.kernel_op import Configs, KernelOp, element_type
from kernels.launch_config import LaunchConfig, config_for
from kernels.routing_plan import RoutingPlan, routing_plan
from kernels.triton_jit import Count, FloatPointer, IntPointer, Pointer, Size, constexpr, jit, tl

WIDTH_STEP = 16
"""Widths of experts are multiples of this: the kernels rely on it to load 16 bytes at a time."""


@jit
def moe_up_kernel(
    x_TD: Pointer,
    up_BFD: Pointer,
    inner_NF: Pointer,
    order_N: IntPointer,
    offsets_E1: IntPointer,
    tile_expert_G: IntPointer,
    tile_start_G: IntPointer,
    bank_E: IntPointer,
    width_E: IntPointer,
    model: Size,
    stored: Size,
    top_k: Count,
    stride_x: Size,
    stride_expert: Size,
    stride_row: Size,
    stride_inner: Size,
    BLOCK_M: constexpr,
    BLOCK_N: constexpr,
    BLOCK_K: constexpr,
) -> None:
    """``silu(x gate^T) * (x up^T)`` for one tile of rows and BLOCK_N columns of its expert."""
    expert = tl.load(tile_expert_G + tl.program_id(0))
    if expert < 0:
        return
    width = tl.multiple_of(tl.load(width_E + expert), 16)
    first = tl.program_id(1) * BLOCK_N
    if first >= width:
        return
    row_M = tl.load(tile_start_G + tl.program_id(0)) + tl.arange(0, BLOCK_M)
    row_ok = row_M < tl.load(offsets_E1 + expert + 1)
    token_M = tl.load(order_N + row_M, mask=row_ok, other=0) // top_k
    column_N, model_K = first + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    column_ok = column_N < width

    x_MK = x_TD + token_M.to(tl.int64)[:, None] * stride_x + model_K[None, :]
    bank = up_BFD + tl.load(bank_E + expert).to(tl.int64) * stride_expert
    gate_KN = bank + column_N[None, :] * stride_row + model_K[:, None]
    up_KN = gate_KN + stored * stride_row
    gate_MN = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    up_MN = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for done in range(0, model, BLOCK_K):
        model_ok = model_K < model - done
        mask_KN = model_ok[:, None] & column_ok[None, :]
        x = tl.load(x_MK + done, mask=row_ok[:, None] & model_ok[None, :], other=0.0)
        gate_MN = tl.dot(x, tl.load(gate_KN + done, mask=mask_KN, other=0.0), gate_MN, input_precision="ieee")
        up_MN = tl.dot(x, tl.load(up_KN + done, mask=mask_KN, other=0.0), up_MN, input_precision="ieee")
    inner_MN = gate_MN * tl.sigmoid(gate_MN) * up_MN
    target_MN = inner_NF + row_M.to(tl.int64)[:, None] * stride_inner + column_N[None, :]
    tl.store(target_MN, inner_MN.to(inner_NF.dtype.element_ty), mask=row_ok[:, None] & column_ok[None, :])


@jit
def moe_down_kernel(
    inner_NF: Pointer,
    down_BDF: Pointer,
    weight_N: FloatPointer,
    out_ND: Pointer,
    order_N: IntPointer,
    offsets_E1: IntPointer,
    tile_expert_G: IntPointer,
    tile_start_G: IntPointer,
    bank_E: IntPointer,
    width_E: IntPointer,
    model: Size,
    stride_expert: Size,
    stride_row: Size,
    stride_inner: Size,
    BLOCK_M: constexpr,
    BLOCK_N: constexpr,
    BLOCK_K: constexpr,
) -> None:
    """The routing weight times ``inner down^T``, stored at the row of the choice, for one tile and BLOCK_N columns."""
    expert = tl.load(tile_expert_G + tl.program_id(0))
    if expert < 0:
        return
    width = tl.multiple_of(tl.load(width_E + expert), 16)
    row_M = tl.load(tile_start_G + tl.program_id(0)) + tl.arange(0, BLOCK_M)
    row_ok = row_M < tl.load(offsets_E1 + expert + 1)
    choice_M = tl.load(order_N + row_M, mask=row_ok, other=0)
    column_N, inner_K = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    column_ok = column_N < model

    inner_MK = inner_NF + row_M.to(tl.int64)[:, None] * stride_inner + inner_K[None, :]
    bank = down_BDF + tl.load(bank_E + expert).to(tl.int64) * stride_expert
    down_KN = bank + column_N[None, :] * stride_row + inner_K[:, None]
    sum_MN = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for done in range(0, width, BLOCK_K):
        inner_ok = inner_K < width - done
        inner = tl.load(inner_MK + done, mask=row_ok[:, None] & inner_ok[None, :], other=0.0)
        down = tl.load(down_KN + done, mask=inner_ok[:, None] & column_ok[None, :], other=0.0)
        sum_MN = tl.dot(inner, down, sum_MN, input_precision="ieee")
    sum_MN *= tl.load(weight_N + choice_M, mask=row_ok, other=0.0)[:, None]
    target_MN = out_ND + choice_M.to(tl.int64)[:, None] * model + column_N[None, :]
    tl.store(target_MN, sum_MN.to(out_ND.dtype.element_ty), mask=row_ok[:, None] & column_ok[None, :])


SPECIMENS = {"moe_down": (moe_down_kernel, dict[str, object]()), "moe_up": (moe_up_kernel, dict[str, object]())}
"""By name, with the constants besides the blocks for which the compile report builds them."""


@dataclass(frozen=True, slots=True)
class ExpertSelection:
    """The experts of one layer as parts of a stored bank; made by `select_experts`, kept as long as the layer.

    Attributes:
        bank: (E,) int32, the bank row of each expert.
        width: (E,) int32, how many of its F inner units it has: the first ones.
    """

    bank: Tensor
    width: Tensor


def select_experts(
    up_BFD: Tensor, bank: Sequence[int] | None = None, widths: Sequence[int] | None = None
) -> ExpertSelection:
    """Check a selection once and put it where the weights are.

    Args:
        up_BFD: (B, 2F, D), the stored weights.
        bank: the bank row of each expert; all rows in order if not given.
        widths: the inner width of each expert; F if not given.

    Raises:
        ValueError: a row is not in the bank, the lengths differ, or a width is no multiple of 16 up to F.
    """
    stored_experts, stored = len(up_BFD), up_BFD.shape[1] // 2
    bank = range(stored_experts) if bank is None else bank
    widths = [stored] * len(bank) if widths is None else widths
    if len(widths) != len(bank) or not bank:
        raise ValueError(f"{len(bank)} experts and {len(widths)} widths: give one width to each of at least one expert")
    if not all(0 <= row < stored_experts for row in bank):
        raise ValueError(f"experts {list(bank)} are not all among the {stored_experts} stored ones; count from 0")
    if not all(0 < width <= stored and width % WIDTH_STEP == 0 for width in widths):
        raise ValueError(f"widths {list(widths)} must be multiples of {WIDTH_STEP} up to the stored {stored}")
    device = up_BFD.device
    return ExpertSelection(
        torch.tensor(list(bank), dtype=torch.int32, device=device),
        torch.tensor(list(widths), dtype=torch.int32, device=device),
    )


def _reference(
    x_TD: Tensor,
    up_BFD: Tensor,
    down_BDF: Tensor,
    chosen_Tk: Tensor,
    weight_Tk: Tensor,
    bank_E: Tensor,
    width_E: Tensor,
) -> Tensor:
    path: Path | None = "loop" if x_TD.is_cuda else None
    bank, widths = bank_E.tolist(), width_E.tolist()
    return experts(x_TD, up_BFD, down_BDF, chosen_Tk, weight_Tk, bank=bank, widths=widths, path=path)


def _launch(
    configs: Configs,
    x_TD: Tensor,
    up_BFD: Tensor,
    down_BDF: Tensor,
    chosen_Tk: Tensor,
    weight_Tk: Tensor,
    bank_E: Tensor,
    width_E: Tensor,
) -> Tensor:
    up_config, down_config = configs
    assert up_config.block_m == down_config.block_m, "both products share one list of tiles"
    (tokens, top_k), model = chosen_Tk.shape, x_TD.shape[1]
    if not tokens:
        return torch.zeros_like(x_TD)
    plan = routing_plan(chosen_Tk, len(bank_E), up_config.block_m)
    inner_NF = _up(up_config, plan, x_TD.contiguous(), up_BFD, bank_E, width_E)
    out_ND = x_TD.new_empty(tokens * top_k, model)
    moe_down_kernel[len(plan.tile_expert), -(-model // down_config.block_n)](
        *(inner_NF, down_BDF, weight_Tk.reshape(-1).float(), out_ND),
        *(plan.order, plan.offsets, plan.tile_expert, plan.tile_start, bank_E, width_E),
        *(model, *down_BDF.stride()[:2], inner_NF.stride(0)),
        **down_config.blocks,
        **down_config.options,
    )
    return out_ND.view(tokens, top_k, model).sum(1)


def _up(
    config: LaunchConfig, plan: RoutingPlan, x_TD: Tensor, up_BFD: Tensor, bank_E: Tensor, width_E: Tensor
) -> Tensor:
    stored = up_BFD.shape[1] // 2
    inner_NF = x_TD.new_empty(len(plan.order), stored)
    moe_up_kernel[len(plan.tile_expert), -(-stored // config.block_n)](
        *(x_TD, up_BFD, inner_NF),
        *(plan.order, plan.offsets, plan.tile_expert, plan.tile_start, bank_E, width_E),
        *(x_TD.shape[1], stored, plan.top_k, x_TD.stride(0), *up_BFD.stride()[:2], inner_NF.stride(0)),
        **config.blocks,
        **config.options,
    )
    return inner_NF


def _configure(
    arch: str, x_TD: Tensor, up_BFD: Tensor, down_BDF: Tensor, chosen_Tk: Tensor, weight_Tk: Tensor, *experts_E: Tensor
) -> Configs:
    rows = -(-chosen_Tk.numel() // len(experts_E[0]))
    width, dtype = up_BFD.shape[1] // 2, element_type(x_TD)
    if width % WIDTH_STEP:
        raise ValueError(f"the kernels need experts whose width is a multiple of {WIDTH_STEP}, got {width}")
    return (
        config_for("moe_up", rows=rows, width=x_TD.shape[1], dtype=dtype, arch=arch),
        config_for("moe_down", rows=rows, width=width, dtype=dtype, arch=arch),
    )


def _fake(x_TD: Tensor, *others: Tensor) -> Tensor:
    return torch.empty_like(x_TD)


OP = KernelOp(name="grouped_experts", reference=_reference, launch=_launch, configure=_configure, fake=_fake)
_run = OP.register()


def grouped_experts(
    x_TD: Tensor,
    up_BFD: Tensor,
    down_BDF: Tensor,
    chosen_Tk: Tensor,
    weight_Tk: Tensor,
    selection: ExpertSelection | None = None,
) -> Tensor:
    """The weighted sum of what each token's experts answer: ``down(silu(gate(x)) * up(x))``.

    Shared experts are experts that every token chose: see `kernels.routing_plan.with_shared`.

    Args:
        x_TD: (T, D) tokens; D may be less than what is stored if the weights are views of the first D columns.
        up_BFD: (B, 2F, D) gate rows, then up rows; contiguous in the last dimension.
        down_BDF: (B, D, F); contiguous in the last dimension.
        chosen_Tk: (T, k) integers in [0, E): positions in the selection.
        weight_Tk: (T, k) routing weights.
        selection: which experts, how wide; the whole bank if not given.

    Returns:
        (T, D) in the element type of the tokens.
    """
    model, stored = x_TD.shape[1], up_BFD.shape[1] // 2
    assert up_BFD.shape[2] == model, f"{model} features do not fit weights of {tuple(up_BFD.shape)}"
    assert down_BDF.shape == (len(up_BFD), model, stored), f"up {tuple(up_BFD.shape)}, down {tuple(down_BDF.shape)}"
    assert chosen_Tk.shape == weight_Tk.shape, f"choices {tuple(chosen_Tk.shape)}, weights {tuple(weight_Tk.shape)}"
    assert up_BFD.stride(2) == down_BDF.stride(2) == 1, "weights must be contiguous in the last dimension"
    parts = selection or _whole_bank(up_BFD)
    return _run(x_TD, up_BFD, down_BDF, chosen_Tk, weight_Tk, parts.bank, parts.width)


def _whole_bank(up_BFD: Tensor) -> ExpertSelection:
    """Made where the weights are, so that the host does not wait."""
    stored_experts, device = len(up_BFD), up_BFD.device
    bank_E = torch.arange(stored_experts, dtype=torch.int32, device=device)
    return ExpertSelection(bank_E, torch.full_like(bank_E, up_BFD.shape[1] // 2))
