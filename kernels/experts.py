"""A mixture-of-experts layer on the CPU, along the fastest of several paths, and the slow loop that they must equal.

Shapes: T tokens, k choices per token, N = T*k rows sorted by expert, R rows of one expert, D model width, F expert
width as stored, W width in use, B experts in the stored bank, E experts of the layer.
Weights lie as in transformers: ``up`` (B, 2F, D) holds the gate in its first F rows, ``down`` (B, D, F).

A layer that keeps some experts, or the first units of some, is a list of bank rows and of widths: no weight is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from kernels.experts_rule import BLOCK, Form, Path, form_for, padded, path_for

Activation = Callable[[Tensor], Tensor]

HAS_BLOCKED = bool(torch._C._has_mkldnn) and hasattr(torch.ops.mkldnn, "_linear_pointwise")
ALIGNMENT = 16
"""Bytes to which torch's grouped product wants its operands and their strides aligned."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """The weights of one call and what is used of them."""

    up: Tensor
    down: Tensor
    bank: Sequence[int]
    widths: Sequence[int]
    act: Activation

    @property
    def stored(self) -> int:
        return self.down.shape[2]

    def halves(self, expert: int) -> tuple[Tensor, ...]:
        """(2W, D) gate and up together where they are neighbours, (W, D) of each otherwise."""
        up_GD, width, stored = self.up[self.bank[expert]], self.widths[expert], self.stored
        return (up_GD,) if width == stored else (up_GD[:width], up_GD[stored : stored + width])

    def down_of(self, expert: int) -> Tensor:
        """(D, W)."""
        return self.down[self.bank[expert], :, : self.widths[expert]]

    def activate(self, parts: Sequence[Tensor]) -> Tensor:
        """(R, W) from the products with `halves`; overwrites them unless gradients are recorded."""
        gate_RW, up_RW = parts if len(parts) == 2 else parts[0].chunk(2, dim=-1)
        if self.act is functional.silu and not torch.is_grad_enabled():
            return functional.silu(gate_RW, inplace=True).mul_(up_RW)
        return self.act(gate_RW) * up_RW


def experts(
    x_TD: Tensor,
    up_BGD: Tensor,
    down_BDF: Tensor,
    chosen_Tk: Tensor,
    weight_Tk: Tensor,
    *,
    bank: Sequence[int] | None = None,
    widths: Sequence[int] | None = None,
    act: Activation = functional.silu,
    path: Path | None = None,
) -> Tensor:
    """The weighted sum of what each token's experts answer: ``down(act(gate(x)) * up(x))``.

    While gradients are recorded it takes a differentiable path, ``grouped`` or ``loop``.

    Args:
        x_TD: (T, D) tokens.
        up_BGD: (B, 2F, D) gate rows, then up rows.
        down_BDF: (B, D, F).
        chosen_Tk: (T, k) integers in [0, E), distinct for each token.
        weight_Tk: (T, k) routing weights.
        bank: the bank row of each of the E experts; all rows in order if not given.
        widths: how many inner units of each expert are used, the first ones; F if not given.
        act: the gate's activation.
        path: by default the one that `kernels.experts_rule` expects to be fastest.

    Returns:
        (T, D) in the element type of the tokens.

    Raises:
        ValueError: the path cannot run these weights or record gradients.
    """
    layer = _layer(up_BGD, down_BDF, bank, widths, act)
    assert chosen_Tk.shape == weight_Tk.shape, f"choices {tuple(chosen_Tk.shape)}, weights {tuple(weight_Tk.shape)}"
    if not x_TD.shape[0]:
        return torch.zeros_like(x_TD)
    recording = torch.is_grad_enabled() and any(one.requires_grad for one in (x_TD, up_BGD, down_BDF, weight_Tk))
    path = path or _choose(layer, x_TD, chosen_Tk, recording)
    if path == "expert" and (recording or x_TD.dtype != torch.float32):
        raise ValueError("path 'expert' computes float32 without gradients; use 'loop', or torch.no_grad()")
    if path == "grouped" and not _groupable(layer, x_TD):
        raise ValueError("path 'grouped' needs one width and 16-byte strides in float32 or 16 bits; use 'loop'")
    with _as_given(x_TD.device.type), nullcontext() if recording else torch.no_grad():
        return _PATHS[path](layer, x_TD, chosen_Tk, weight_Tk)


def _as_given(device: str) -> AbstractContextManager[object]:
    """Nothing is cast on the way: paths write into tensors of the tokens' own type."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def experts_reference(
    x_TD: Tensor,
    up_BGD: Tensor,
    down_BDF: Tensor,
    chosen_Tk: Tensor,
    weight_Tk: Tensor,
    *,
    bank: Sequence[int] | None = None,
    widths: Sequence[int] | None = None,
    act: Activation = functional.silu,
) -> Tensor:
    """The same as `experts`, one token and one choice after another: the oracle, in any element type."""
    layer = _layer(up_BGD, down_BDF, bank, widths, act)
    rows = []
    for x_D, chosen_k, weight_k in zip(x_TD, chosen_Tk.tolist(), weight_Tk, strict=True):
        out_D = torch.zeros_like(x_D)
        for expert, weight in zip(chosen_k, weight_k, strict=True):
            up_GD, width = layer.up[layer.bank[expert]], layer.widths[expert]
            inner_W = act(up_GD[:width] @ x_D) * (up_GD[layer.stored :][:width] @ x_D)
            out_D = out_D + weight * (layer.down[layer.bank[expert]][:, :width] @ inner_W)
        rows.append(out_D)
    return torch.stack(rows) if rows else torch.zeros_like(x_TD)


def _layer(
    up: Tensor, down: Tensor, bank: Sequence[int] | None, widths: Sequence[int] | None, act: Activation
) -> _Layer:
    stored = down.shape[2]
    assert up.shape == (len(down), 2 * stored, down.shape[1]), f"up {tuple(up.shape)}, down {tuple(down.shape)}"
    bank = range(len(up)) if bank is None else bank
    widths = [stored] * len(bank) if widths is None else widths
    assert len(widths) == len(bank), f"{len(bank)} experts, {len(widths)} widths"
    return _Layer(up, down, bank, widths, act)


def _choose(layer: _Layer, x_TD: Tensor, chosen_Tk: Tensor, recording: bool) -> Path:
    (tokens, top_k), count = chosen_Tk.shape, len(layer.bank)
    path: Path = path_for(
        tokens,
        top_k,
        count,
        x_TD.shape[1],
        sum(layer.widths) // count,
        dtype=str(x_TD.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
    )
    if recording or path == "grouped":
        fallback: Path = "loop" if recording or x_TD.dtype != torch.float32 else "expert"
        return "grouped" if path != "loop" and _groupable(layer, x_TD) else fallback
    return path


def _groupable(layer: _Layer, x_TD: Tensor) -> bool:
    """Whether torch's grouped product takes these operands; it neither knows 64 bits nor rows off a 16-byte grid."""
    if x_TD.dtype not in (torch.float32, torch.bfloat16, torch.float16) or len(set(layer.widths)) != 1:
        return False
    size = x_TD.element_size()
    weights = (layer.up, layer.down)
    pitches = (one.stride(dim) * size for one in weights for dim in (0, 1))
    starts = (one.storage_offset() * size for one in weights)
    lengths = (length * size for length in (x_TD.shape[1], layer.widths[0], layer.stored))
    aligned = not any(number % ALIGNMENT for number in (*pitches, *starts, *lengths))
    return aligned and all(one.stride(2) == 1 for one in weights)


@dataclass(frozen=True, slots=True)
class _Groups:
    """Choices sorted by what they go to: (N,) positions of the flattened choices, (N,) where each one went, counts."""

    order: Tensor
    inverse: Tensor
    counts: Tensor

    def combine(self, out_ND: Tensor, weight_Tk: Tensor) -> Tensor:
        """(T, D): the weighted sum of each token's rows."""
        if out_ND.dtype == torch.float32:
            # One pass; torch.nn.functional's function of this name spends more time on its checks than on few rows.
            first_T = torch.arange(0, weight_Tk.numel(), weight_Tk.shape[1])
            weight_N = weight_Tk.reshape(-1).float()
            return torch.embedding_bag(out_ND, self.inverse, first_T, False, 0, False, weight_N)[0]
        where_Tk = self.inverse.view(weight_Tk.shape)
        return (out_ND[where_Tk] * weight_Tk[..., None]).sum(1).to(out_ND.dtype)


def _group(chosen_Tk: Tensor, count: int) -> _Groups:
    flat_N = chosen_Tk.reshape(-1)
    order_N = torch.sort(flat_N, stable=True)[1]
    inverse_N = torch.empty_like(order_N)
    inverse_N[order_N] = torch.arange(len(order_N))
    return _Groups(order_N, inverse_N, torch.bincount(flat_N, minlength=count))


def _by_expert(layer: _Layer, x_TD: Tensor, chosen_Tk: Tensor, weight_Tk: Tensor) -> Tensor:
    if x_TD.shape[0] == 1:
        return _one_token(layer, x_TD, chosen_Tk, weight_Tk)
    groups = _group(chosen_Tk, len(layer.bank))
    token_N = groups.order // chosen_Tk.shape[1]
    # An expert whose rows are padded reads on into those of the next one: the last one needs something to read, too.
    x_PD = x_TD.index_select(0, functional.pad(token_N, (0, BLOCK - 1)))
    out_ND = x_TD.new_empty(len(token_N), x_TD.shape[1])
    first, threads = 0, torch.get_num_threads()
    for expert, rows in enumerate(groups.counts.tolist()):
        if rows:
            _one_expert(layer, expert, x_PD[first:], out_ND[first : first + rows], threads)
            first += rows
    return groups.combine(out_ND, weight_Tk)


def _one_token(layer: _Layer, x_1D: Tensor, chosen_1k: Tensor, weight_1k: Tensor) -> Tensor:
    """Nothing to sort: its experts one after another."""
    x_PD, threads = x_1D.expand(2, -1).contiguous(), torch.get_num_threads()
    out_kD = x_1D.new_empty(chosen_1k.shape[1], x_1D.shape[1])
    for position, expert in enumerate(chosen_1k[0].tolist()):
        _one_expert(layer, expert, x_PD, out_kD[position : position + 1], threads)
    return weight_1k.to(x_1D.dtype) @ out_kD


def _one_expert(layer: _Layer, expert: int, x_PD: Tensor, out_RD: Tensor, threads: int) -> None:
    """Fill the rows of one expert from the first of `x_PD`, which has enough of them for every padding."""
    rows = span = len(out_RD)
    halves, down_DW = layer.halves(expert), layer.down_of(expert)
    up_form = _form(rows, halves[0], threads)
    down_form = _form(rows, down_DW, threads, turned=True)
    if "blocked" in (up_form, down_form):
        span = padded(rows)
    elif "skinny" in (up_form, down_form):
        span = max(2, rows)
    inner_PW = layer.activate([product(half, x_PD[:span], up_form) for half in halves])
    if down_form == "plain":
        torch.mm(inner_PW[:rows], down_DW.t(), out=out_RD)
    else:
        inner_PW = inner_PW[: max(2, rows)] if down_form == "skinny" else inner_PW
        out_RD.copy_(product(down_DW, inner_PW, down_form)[:rows])


def _form(rows: int, weight_MK: Tensor, threads: int, turned: bool = False) -> Form:
    form = form_for(rows, *weight_MK.shape, threads=threads, turned=turned)
    # With gaps between its rows oneDNN would copy the weight first.
    return "plain" if form == "blocked" and not (HAS_BLOCKED and weight_MK.is_contiguous()) else form


def product(weight_MK: Tensor, x_RK: Tensor, form: Form) -> Tensor:
    """``x W^T`` as (R, M) in one of the forms of `kernels.experts_rule`, of which two give it as a transposed view."""
    if form == "plain":
        return torch.mm(x_RK, weight_MK.t())
    if form == "skinny":
        return torch.mm(weight_MK, x_RK.contiguous().t()).t()
    blocked_MR: Tensor = torch.ops.mkldnn._linear_pointwise.default(weight_MK, x_RK, None, "none", [], "")
    return blocked_MR.t()


def _by_grouped_product(layer: _Layer, x_TD: Tensor, chosen_Tk: Tensor, weight_Tk: Tensor) -> Tensor:
    if list(layer.bank) != list(range(len(layer.up))):
        chosen_Tk = torch.tensor(list(layer.bank), dtype=chosen_Tk.dtype)[chosen_Tk]
    groups = _group(chosen_Tk, len(layer.up))
    ends_B = groups.counts.cumsum(0, dtype=torch.int32)
    x_ND = x_TD.index_select(0, groups.order // chosen_Tk.shape[1])
    width, stored = layer.widths[0], layer.stored
    up = layer.up
    halves = (up,) if width == stored else (up[:, :width], up[:, stored : stored + width])
    parts = [functional.grouped_mm(x_ND, half.transpose(1, 2), offs=ends_B) for half in halves]
    inner_NW = layer.activate(parts)
    out_ND = functional.grouped_mm(inner_NW, layer.down[:, :, :width].transpose(1, 2), offs=ends_B)
    return groups.combine(out_ND, weight_Tk)


def _by_loop(layer: _Layer, x_TD: Tensor, chosen_Tk: Tensor, weight_Tk: Tensor) -> Tensor:
    top_k, flat_N = chosen_Tk.shape[1], chosen_Tk.reshape(-1)
    out_TD = torch.zeros_like(x_TD)
    for expert in torch.unique(flat_N).tolist():
        choice_R = (flat_N == expert).nonzero()[:, 0]
        x_RD = x_TD[choice_R // top_k]
        inner_RW = layer.activate([functional.linear(x_RD, half) for half in layer.halves(expert)])
        out_RD = functional.linear(inner_RW, layer.down_of(expert))
        weighted_RD = out_RD * weight_Tk.reshape(-1)[choice_R, None]
        out_TD = out_TD.index_add(0, choice_R // top_k, weighted_RD.to(out_TD.dtype))
    return out_TD


_PATHS: dict[Path, Callable[[_Layer, Tensor, Tensor, Tensor], Tensor]] = {
    "expert": _by_expert,
    "grouped": _by_grouped_product,
    "loop": _by_loop,
}
