"""The weight of a mixture of supernets: a sum of expert weights by coefficients.

Shapes: E experts, R rows, C columns of the slice that is used; the stack may be a view such as ``weights[:, :R, :C]``.
Mixture-of-Supernets (arXiv 2306.04845) has one coefficient per expert (layer-wise) or per expert and row (neuron-wise).
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.kernel_op import Configs, KernelOp, element_type
from kernels.launch_config import config_for
from kernels.triton_jit import Count, FloatPointer, Pointer, Size, constexpr, jit, tl


@jit
def weight_blend_kernel(
    weight_ERC: Pointer,
    coefficient_ER: FloatPointer,
    out_RC: Pointer,
    experts: Count,
    rows: Count,
    columns: Size,
    stride_expert: Size,
    stride_row: Size,
    BLOCK_M: constexpr,
    BLOCK_N: constexpr,
) -> None:
    """One (BLOCK_M, BLOCK_N) tile of the result per program; every weight is read once."""
    row_M = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column_N = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_ok = row_M < rows
    mask_MN = row_ok[:, None] & (column_N < columns)[None, :]
    weight_MN = weight_ERC + row_M.to(tl.int64)[:, None] * stride_row + column_N[None, :]
    sum_MN = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for expert in range(experts):
        coefficient_M = tl.load(coefficient_ER + expert * rows + row_M, mask=row_ok, other=0.0)
        weight = tl.load(weight_MN, mask=mask_MN, other=0.0)
        sum_MN += coefficient_M[:, None] * weight.to(tl.float32)
        weight_MN += stride_expert
    out_MN = out_RC + row_M.to(tl.int64)[:, None] * columns + column_N[None, :]
    tl.store(out_MN, sum_MN.to(out_RC.dtype.element_ty), mask=mask_MN)


SPECIMENS = {"weight_blend": (weight_blend_kernel, dict[str, object]())}
"""By name, with the constants besides the blocks for which the compile report builds it."""


def _reference(weight_ERC: Tensor, coefficient_ER: Tensor) -> Tensor:
    wide = torch.promote_types(weight_ERC.dtype, torch.float32)
    blended_RC = (coefficient_ER.to(wide)[..., None] * weight_ERC.to(wide)).sum(0)  # several times as fast as einsum
    return blended_RC.to(weight_ERC.dtype)


def _launch(configs: Configs, weight_ERC: Tensor, coefficient_ER: Tensor) -> Tensor:
    (config,) = configs
    experts, rows, columns = weight_ERC.shape
    assert weight_ERC.stride(2) == 1, "the columns of a slice must be contiguous"
    out_RC = weight_ERC.new_empty(rows, columns)
    if not out_RC.numel():
        return out_RC
    grid = (-(-rows // config.block_m), -(-columns // config.block_n))
    sizes = (experts, rows, columns, weight_ERC.stride(0), weight_ERC.stride(1))
    coefficients = coefficient_ER.float().contiguous()
    blocks = {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n}
    weight_blend_kernel[grid](weight_ERC, coefficients, out_RC, *sizes, **blocks, **config.options)
    return out_RC


def _configure(arch: str, weight_ERC: Tensor, coefficient_ER: Tensor) -> Configs:
    _, rows, columns = weight_ERC.shape
    return (config_for("weight_blend", rows=rows, width=columns, dtype=element_type(weight_ERC), arch=arch),)


def _fake(weight_ERC: Tensor, coefficient_ER: Tensor) -> Tensor:
    return weight_ERC.new_empty(weight_ERC.shape[1:])


OP = KernelOp(name="weight_blend", reference=_reference, launch=_launch, configure=_configure, fake=_fake)
_run = OP.register()


def weight_blend(weight_ERC: Tensor, coefficients: Tensor) -> Tensor:
    """``sum_e a_e W_e``, accumulated in float32 at least.

    Args:
        weight_ERC: (E, R, C) stack, or a view of it with contiguous columns.
        coefficients: (E,) one per expert, or (E, R) one per expert and row.

    Returns:
        (R, C) in the element type of the weights.
    """
    experts, rows, _ = weight_ERC.shape
    per_row = coefficients[:, None].expand(experts, rows) if coefficients.dim() == 1 else coefficients
    assert per_row.shape == (experts, rows), f"coefficients {tuple(coefficients.shape)} for {experts} x {rows} weights"
    if weight_ERC.device.type != "cuda":
        return _reference(weight_ERC, per_row)  # its own graph spares the backward pass a second forward pass
    return _run(weight_ERC, per_row)
