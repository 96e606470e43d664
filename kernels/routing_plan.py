"""Which expert computes which rows: routing decisions as offsets, a stable order and a list of tiles.

Shapes: T tokens, k experts per token, E experts, N = T*k choices, G tiles (an upper bound that needs no data).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RoutingPlan:
    """The choices of all tokens, grouped by expert and cut into tiles. All tensors are int32 on the choices' device.

    Choice ``c`` of the flattened (T, k) matrix belongs to token ``c // k``. Rows of expert e are
    ``order_N[offsets_E1[e] : offsets_E1[e + 1]]``, in the order of the tokens.

    Attributes:
        offsets: (E + 1,) where each expert's rows begin and the last one's end.
        order: (N,) flat choices, sorted by expert.
        tile_expert: (G,) the expert of each tile; -1 for the tiles that are not needed.
        tile_start: (G,) the tile's first position in `order`; a tile ends after `block` rows or with its expert.
        block: rows per tile.
        top_k: k, the choices per token.
    """

    offsets: Tensor
    order: Tensor
    tile_expert: Tensor
    tile_start: Tensor
    block: int
    top_k: int


def routing_plan(chosen_Tk: Tensor, experts: int, block: int) -> RoutingPlan:
    """Group the choices by expert; nothing is copied to the host, so the number of tiles is a bound.

    An expert with n rows needs ``ceil(n / block)`` tiles, hence at most ``N // block + min(E, N)`` in total.

    Args:
        chosen_Tk: (T, k) integers in [0, experts).
        experts: E.
        block: rows per tile, at least 1.
    """
    assert chosen_Tk.dim() == 2, f"choices must be (tokens, top-k), got {tuple(chosen_Tk.shape)}"
    assert experts > 0, f"there must be an expert, got {experts}"
    assert block > 0, f"a tile needs at least one row, got {block}"
    device, choices = chosen_Tk.device, chosen_Tk.numel()
    sorted_N, order_N = torch.sort(chosen_Tk.reshape(-1), stable=True)
    edges_E1 = torch.arange(experts + 1, device=device, dtype=sorted_N.dtype)
    offsets_E1 = torch.searchsorted(sorted_N, edges_E1)

    tiles_E = (offsets_E1.diff() + block - 1) // block
    ends_E = tiles_E.cumsum(0)
    tile_G = torch.arange(choices // block + min(experts, choices), device=device)
    expert_G = torch.searchsorted(ends_E, tile_G, right=True)
    needed_G = expert_G < experts
    expert_G = expert_G.clamp(max=experts - 1)
    start_G = offsets_E1[expert_G] + (tile_G - (ends_E - tiles_E)[expert_G]) * block
    return RoutingPlan(
        offsets=offsets_E1.int(),
        order=order_N.int(),
        tile_expert=torch.where(needed_G, expert_G, -1).int(),
        tile_start=torch.where(needed_G, start_G, choices).int(),
        block=block,
        top_k=chosen_Tk.shape[1],
    )


def with_shared(
    chosen_Tk: Tensor, weight_Tk: Tensor, first: int, count: int, gate_TS: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Let every token also choose the shared experts, so that they run in the same launches as the others.

    Args:
        chosen_Tk: (T, k) choices of the router.
        weight_Tk: (T, k) their weights.
        first: position of the first shared expert; the others follow it.
        count: S, the number of shared experts.
        gate_TS: (T, S) weights of the shared experts where the model gates them; 1 if not given.

    Returns:
        (T, k + S) choices and weights.
    """
    tokens = len(chosen_Tk)
    shared_TS = torch.arange(first, first + count, device=chosen_Tk.device, dtype=chosen_Tk.dtype).expand(tokens, -1)
    gate_TS = weight_Tk.new_ones(tokens, count) if gate_TS is None else gate_TS.to(weight_Tk.dtype)
    return torch.cat([chosen_Tk, shared_TS], 1), torch.cat([weight_Tk, gate_TS], 1)
