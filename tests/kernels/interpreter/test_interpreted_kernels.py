"""Every kernel against plain torch in float64, through triton's interpreter.

Shapes: T tokens, k choices, E experts, D model width, F expert width, B batch, H heads, G key-value heads, S queries,
L keys, K head_dim, R rows, I inputs, O outputs, C columns.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from kernels import attention, elastic_linear, grouped_experts, weight_blend
from kernels.experts import experts_reference
from kernels.grouped_experts import select_experts
from kernels.kernel_op import KernelOp
from kernels.routing_plan import with_shared
from kernels.self_check import relative_error

LIMITS = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}
ARCH = "sm_90"
DTYPES = list(LIMITS)
Record = Callable[[str, object], None]


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    return found


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    """Normal numbers that depend on the seed and the shape."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def check(op: KernelOp, arguments: tuple[object, ...], expected: Tensor, record: Record) -> None:
    """Launch with the settings that ship, compare, and keep the error for the report."""
    result = op.launch(op.configure(ARCH, *arguments), *arguments)
    error = relative_error(result, expected)
    record("error", error)
    assert error <= LIMITS[result.dtype]


def moe_arguments(
    seed: int, tokens: int, experts: int, top_k: int, dtype: torch.dtype, model: int = 48, width: int = 64
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Tokens, weights of magnitude one over the square root of their inputs, distinct choices and their weights."""
    scores_TE = draw(seed, tokens, experts)
    weight_Tk, chosen_Tk = scores_TE.softmax(1).topk(top_k)
    return (
        draw(seed + 1, tokens, model, dtype=dtype),
        draw(seed + 2, experts, 2 * width, model, dtype=dtype, scale=model**-0.5),
        draw(seed + 3, experts, model, width, dtype=dtype, scale=width**-0.5),
        chosen_Tk,
        weight_Tk,
    )


def oracle(
    arguments: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    bank: list[int] | None = None,
    widths: list[int] | None = None,
) -> Tensor:
    x_TD, up_BFD, down_BDF, chosen_Tk, weight_Tk = arguments
    doubles = (x_TD.double(), up_BFD.double(), down_BDF.double())
    return experts_reference(*doubles, chosen_Tk, weight_Tk.double(), bank=bank, widths=widths)


def check_experts(
    record: Record,
    arguments: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    bank: list[int] | None = None,
    widths: list[int] | None = None,
) -> None:
    parts = select_experts(arguments[1], bank, widths)
    check(grouped_experts.OP, (*arguments, parts.bank, parts.width), oracle(arguments, bank, widths), record)


@pytest.mark.parametrize(("experts", "top_k"), [(e, k) for e, k in product((1, 4, 8, 60), (1, 2, 8)) if k <= e])
def test_experts(experts: int, top_k: int, dtype: torch.dtype, record_property: Record) -> None:
    """Nine tokens: with 60 experts most of them are empty, and no tile is full."""
    check_experts(record_property, moe_arguments(0, 9, experts, top_k, dtype))


@pytest.mark.parametrize("tokens", [1, 70, 150])
def test_tiles_of_every_height(tokens: int, dtype: torch.dtype, record_property: Record) -> None:
    """Rows per expert below 16, up to 64 and above: one of each tile, the last ones not full."""
    check_experts(record_property, moe_arguments(1, tokens, 2, 2, dtype))


@pytest.mark.parametrize("model", [40, 72])
def test_model_widths_off_the_block(model: int, dtype: torch.dtype, record_property: Record) -> None:
    check_experts(record_property, moe_arguments(2, 5, 4, 2, dtype, model=model))


def test_mixed_widths(dtype: torch.dtype, record_property: Record) -> None:
    check_experts(record_property, moe_arguments(3, 9, 4, 2, dtype, width=96), widths=[16, 96, 48, 80])


def test_pruned_layer_on_the_full_bank(dtype: torch.dtype, record_property: Record) -> None:
    """Three of eight stored experts in another order, one of them narrower, chosen by their new positions."""
    x_TD, up_BFD, down_BDF, *_ = moe_arguments(4, 9, 8, 2, dtype)
    *_, chosen_Tk, weight_Tk = moe_arguments(5, 9, 3, 2, dtype)
    check_experts(record_property, (x_TD, up_BFD, down_BDF, chosen_Tk, weight_Tk), bank=[6, 0, 3], widths=[64, 32, 64])


def test_everything_goes_to_one_expert(dtype: torch.dtype, record_property: Record) -> None:
    x_TD, up_BFD, down_BDF, _, weight_Tk = moe_arguments(6, 40, 8, 1, dtype)
    check_experts(record_property, (x_TD, up_BFD, down_BDF, torch.full((40, 1), 5), weight_Tk))


@pytest.mark.parametrize("gated", [False, True])
def test_shared_experts(gated: bool, dtype: torch.dtype, record_property: Record) -> None:
    """Two shared experts at the end of the bank, against the routed part and the shared part one by one."""
    x_TD, up_BFD, down_BDF, *_ = moe_arguments(7, 9, 6, 2, dtype)
    *_, chosen_Tk, weight_Tk = moe_arguments(8, 9, 4, 2, dtype)
    gate_TS = draw(9, 9, 2).sigmoid() if gated else None
    weights = (x_TD, up_BFD, down_BDF)
    expected = oracle((*weights, chosen_Tk, weight_Tk))
    for shared in (0, 1):
        always = torch.full((9, 1), 4 + shared)
        share = torch.ones(9, 1) if gate_TS is None else gate_TS[:, shared : shared + 1]
        expected = expected + oracle((*weights, always, share))
    parts = select_experts(up_BFD)
    both = with_shared(chosen_Tk, weight_Tk, 4, 2, gate_TS)
    check(grouped_experts.OP, (*weights, *both, parts.bank, parts.width), expected, record_property)


def test_slices_of_the_model_width(dtype: torch.dtype, record_property: Record) -> None:
    """Tokens of 32 features on views of weights stored for 48."""
    x_TD, up_BFD, down_BDF, chosen_Tk, weight_Tk = moe_arguments(10, 9, 4, 2, dtype)
    check_experts(record_property, (x_TD[:, :32], up_BFD[..., :32], down_BDF[:, :32], chosen_Tk, weight_Tk))


def test_no_tokens(dtype: torch.dtype) -> None:
    arguments = moe_arguments(11, 1, 4, 2, dtype)
    empty = tuple(arguments[index][:0] if index in (0, 3, 4) else arguments[index] for index in range(5))
    parts = select_experts(arguments[1])
    everything = (*empty, parts.bank, parts.width)
    op = grouped_experts.OP
    assert op.launch(op.configure(ARCH, *everything), *everything).shape == (0, 48)


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "biased"), [(1, 70, 50, True), (33, 64, 64, False), (130, 96, 160, True)]
)
def test_elastic_linear(
    rows: int, inputs: int, outputs: int, biased: bool, dtype: torch.dtype, record_property: Record
) -> None:
    """Slices of a 200 x 128 weight that was never copied."""
    x_RI, full_OI = draw(0, rows, inputs, dtype=dtype), draw(1, 200, 128, dtype=dtype)
    weight_OI, bias_O = full_OI[:outputs, :inputs], draw(2, 200, dtype=dtype)[:outputs] if biased else None
    expected = x_RI.double() @ weight_OI.double().T + (0 if bias_O is None else bias_O.double())
    check(elastic_linear.OP, (x_RI, weight_OI, bias_O), expected, record_property)


@pytest.mark.parametrize("experts", [1, 4, 8])
def test_weight_blend(experts: int, dtype: torch.dtype, record_property: Record) -> None:
    """A slice of every expert's weight, one coefficient per expert and row."""
    weight_ERC = draw(0, experts, 12, 600, dtype=dtype)[:, :7, :530]
    coefficient_ER = draw(1, experts, 7)
    expected = (coefficient_ER[..., None].double() * weight_ERC.double()).sum(0)
    check(weight_blend.OP, (weight_ERC, coefficient_ER), expected, record_property)


def attention_by_hand(q_BHSK: Tensor, k_BGLK: Tensor, v_BGLK: Tensor, causal: bool, scale: float) -> Tensor:
    """One softmax per query head and query, in float64."""
    queries, keys, per_group = q_BHSK.shape[2], k_BGLK.shape[2], q_BHSK.shape[1] // k_BGLK.shape[1]
    out_BHSK = torch.zeros_like(q_BHSK, dtype=torch.float64)
    for head, query in product(range(q_BHSK.shape[1]), range(queries)):
        seen = query + keys - queries + 1 if causal else keys
        k_BLK, v_BLK = (side[:, head // per_group, :seen].double() for side in (k_BGLK, v_BGLK))
        score_BL = (k_BLK @ q_BHSK[:, head, query].double()[..., None])[..., 0] * scale
        out_BHSK[:, head, query] = (score_BL.softmax(-1)[:, None] @ v_BLK)[:, 0]
    return out_BHSK


@pytest.mark.parametrize(
    ("heads", "groups", "queries", "keys", "causal"),
    [(4, 4, 20, 20, False), (4, 2, 1, 70, True), (6, 2, 20, 20, True), (8, 1, 9, 40, True), (3, 1, 5, 33, False)],
    ids=["heads", "decode", "causal", "cached", "off-the-block"],
)
@pytest.mark.parametrize("head_dim", [16, 40])
def test_attention(
    heads: int,
    groups: int,
    queries: int,
    keys: int,
    causal: bool,
    head_dim: int,
    dtype: torch.dtype,
    record_property: Record,
) -> None:
    """Heads stored behind the sequence, as projections leave them."""
    q_BHSK = draw(0, 1, queries, heads, head_dim, dtype=dtype).transpose(1, 2)
    k_BGLK, v_BGLK = (draw(seed, 1, keys, groups, head_dim, dtype=dtype).transpose(1, 2) for seed in (1, 2))
    arguments = (q_BHSK, k_BGLK, v_BGLK, causal, head_dim**-0.5)
    check(attention.OP, arguments, attention_by_hand(*arguments), record_property)
