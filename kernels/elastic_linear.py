"""A linear layer on a slice of a larger layer's weight, read in place.

Shapes: R rows, I inputs, O outputs of the slice; the weight may be any view of a larger matrix, such as
``weight[:O, :I]``, whose last dimension is contiguous.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from kernels.kernel_op import Configs, KernelOp, element_type
from kernels.launch_config import config_for
from kernels.triton_jit import Count, Pointer, Size, constexpr, jit, tl


@jit
def elastic_linear_kernel(
    x_RI: Pointer,
    weight_OI: Pointer,
    bias_O: Pointer,
    out_RO: Pointer,
    rows: Count,
    inputs: Size,
    outputs: Size,
    stride_x: Size,
    stride_weight: Size,
    HAS_BIAS: constexpr,
    BLOCK_M: constexpr,
    BLOCK_N: constexpr,
    BLOCK_K: constexpr,
) -> None:
    """One (BLOCK_M, BLOCK_N) tile of the result per program."""
    row_M = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    output_N = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    input_K = tl.arange(0, BLOCK_K)
    row_ok, output_ok = row_M < rows, output_N < outputs
    x_MK = x_RI + row_M.to(tl.int64)[:, None] * stride_x + input_K[None, :]
    weight_KN = weight_OI + output_N.to(tl.int64)[None, :] * stride_weight + input_K[:, None]
    sum_MN = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for done in range(0, inputs, BLOCK_K):
        input_ok = input_K < inputs - done
        x = tl.load(x_MK + done, mask=row_ok[:, None] & input_ok[None, :], other=0.0)
        weight = tl.load(weight_KN + done, mask=input_ok[:, None] & output_ok[None, :], other=0.0)
        sum_MN = tl.dot(x, weight, sum_MN, input_precision="ieee")
    if HAS_BIAS:
        sum_MN += tl.load(bias_O + output_N, mask=output_ok, other=0.0).to(tl.float32)[None, :]
    out_MN = out_RO + row_M.to(tl.int64)[:, None] * outputs + output_N[None, :]
    tl.store(out_MN, sum_MN.to(out_RO.dtype.element_ty), mask=row_ok[:, None] & output_ok[None, :])


SPECIMENS = {"elastic_linear": (elastic_linear_kernel, {"HAS_BIAS": True})}
"""By name, with the constants besides the blocks for which the compile report builds it."""


def _reference(x_RI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    return functional.linear(x_RI, weight_OI, bias_O)


def _launch(configs: Configs, x_RI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    (config,) = configs
    (outputs, inputs), x_RI = weight_OI.shape, x_RI.contiguous()
    assert weight_OI.stride(1) == 1, "the inputs of a slice must be contiguous"
    out_RO = x_RI.new_empty(len(x_RI), outputs)
    if not out_RO.numel():
        return out_RO
    grid = (-(-len(x_RI) // config.block_m), -(-outputs // config.block_n))
    bias = weight_OI if bias_O is None else bias_O.contiguous()
    sizes = (len(x_RI), inputs, outputs, x_RI.stride(0), weight_OI.stride(0))
    elastic_linear_kernel[grid](
        x_RI, weight_OI, bias, out_RO, *sizes, HAS_BIAS=bias_O is not None, **config.blocks, **config.options
    )
    return out_RO


def _configure(arch: str, x_RI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Configs:
    dtype = element_type(x_RI)
    return (config_for("elastic_linear", rows=len(x_RI), width=weight_OI.shape[1], dtype=dtype, arch=arch),)


def _fake(x_RI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    return x_RI.new_empty(len(x_RI), len(weight_OI))


OP = KernelOp(name="elastic_linear", reference=_reference, launch=_launch, configure=_configure, fake=_fake)
_run = OP.register()


def elastic_linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` on views of larger parameters; no weight is copied.

    Gradients of the views flow to the slice of the full parameters and to nothing else.

    Args:
        x: (…, I) input.
        weight_OI: (O, I) view with contiguous inputs.
        bias_O: (O,) or None.

    Returns:
        (…, O) in the element type of the input.
    """
    assert x.shape[-1] == weight_OI.shape[1], f"{x.shape[-1]} inputs do not fit a weight of {tuple(weight_OI.shape)}"
    return _run(x.reshape(-1, x.shape[-1]), weight_OI, bias_O).view(*x.shape[:-1], len(weight_OI))
