"""A mixture-of-experts layer of random weights that is routed as its `OpSpec` says: what is timed.

Shapes: B batch, S sequence, T = B*S tokens, k choices per token, D hidden, F the largest expert width, E experts,
U shared width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.experts import experts
from kernels.grouped_experts import ExpertSelection, grouped_experts, select_experts
from kernels.op_cost import expert_widths
from kernels.op_spec import OpSpec
from kernels.routing_profile import RoutingProfile, histogram, positions

INIT_STD = 0.02

Compute = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(T, D) tokens, (T, k) choices and (T, k) weights to (T, D)."""


class MoeLayer(nn.Module):
    """``sum_k weight_k * expert_k(x) + shared(x)``.

    The router computes all that a router computes, but which experts it chooses is given: random weights would choose
    another histogram every time.
    """

    def __init__(
        self, hidden: int, chosen_Tk: Tensor, widths: Sequence[int], shared: int = 0, implementation: str = "torch"
    ) -> None:
        super().__init__()
        count, width = len(widths), max(widths)
        self.widths, self.implementation = tuple(widths), implementation
        self.chosen_Tk: Tensor
        self.register_buffer("chosen_Tk", chosen_Tk)
        self.router = nn.Linear(hidden, count, bias=False)
        self.gate_up_proj = nn.Parameter(torch.empty(count, 2 * width, hidden).normal_(std=INIT_STD))
        self.down_proj = nn.Parameter(torch.empty(count, hidden, width).normal_(std=INIT_STD))
        self.shared_up = nn.Linear(hidden, 2 * shared, bias=False) if shared else None
        self.shared_down = nn.Linear(shared, hidden, bias=False) if shared else None
        self.compute = self._compute()
        self.selection: ExpertSelection | None = None

    def forward(self, x_BSD: Tensor) -> Tensor:
        """(B, S, D) to (B, S, D)."""
        x_TD = x_BSD.flatten(0, -2)
        top_k = self.chosen_Tk.shape[1]
        weight_Tk = torch.topk(self.router(x_TD).softmax(-1), top_k, dim=-1).values
        out_TD = self.compute(x_TD, self.chosen_Tk, weight_Tk)
        if self.shared_up is not None and self.shared_down is not None:
            gate_TU, up_TU = self.shared_up(x_TD).chunk(2, dim=-1)
            out_TD = out_TD + self.shared_down(functional.silu(gate_TU) * up_TU)
        return out_TD.view_as(x_BSD)

    def _compute(self) -> Compute:
        match self.implementation:
            case "stock":
                return self._stock
            case "torch":
                return self._torch
            case "triton":
                return self._triton
        raise ValueError(f"experts run as 'stock', 'torch' or 'triton', not as {self.implementation!r}")

    def _torch(self, x_TD: Tensor, chosen_Tk: Tensor, weight_Tk: Tensor) -> Tensor:
        return experts(x_TD, self.gate_up_proj, self.down_proj, chosen_Tk, weight_Tk, widths=self.widths)

    def _triton(self, x_TD: Tensor, chosen_Tk: Tensor, weight_Tk: Tensor) -> Tensor:
        self.selection = self.selection or select_experts(self.gate_up_proj, widths=self.widths)
        return grouped_experts(x_TD, self.gate_up_proj, self.down_proj, chosen_Tk, weight_Tk, self.selection)

    # What transformers' function reads from the module that it is a forward pass of.
    has_gate, has_bias, has_post_expert_norm, is_transposed, _is_expert_parallel = True, False, False, False, False

    @property
    def num_experts(self) -> int:
        """E."""
        return len(self.widths)

    def _apply_gate(self, gate_up_NF: Tensor) -> Tensor:
        gate_NF, up_NF = gate_up_NF.chunk(2, dim=-1)
        return functional.silu(gate_NF) * up_NF

    def _stock(self, x_TD: Tensor, chosen_Tk: Tensor, weight_Tk: Tensor) -> Tensor:
        from transformers.integrations.moe import grouped_mm_experts_forward

        out_TD: Tensor = grouped_mm_experts_forward(self, x_TD, chosen_Tk, weight_Tk)
        return out_TD


def build_moe(spec: OpSpec) -> MoeLayer:
    """The layer of a spec of kind ``moe``; its weights come from torch's global generator."""
    size, (sequence,) = spec.size, spec.context.sequences
    count, top_k, tokens = size["experts"], size["top_k"], spec.context.batch * sequence
    chosen_Tk = draw_choices(tokens, top_k, count, RoutingProfile.parse(spec.routing))
    return MoeLayer(size["hidden"], chosen_Tk, expert_widths(size), size.get("shared", 0), spec.implementation)


def draw_choices(tokens: int, top_k: int, count: int, profile: RoutingProfile, *, seed: int = 0) -> Tensor:
    """(T, k) distinct choices per token among E experts, with exactly the profile's histogram."""
    counts = histogram(tokens, top_k, profile)
    # One expert's choices lie side by side and are at most T: dealt out one per token in turn, no token gets two.
    dealt = [one for one, number in zip(positions(profile.busy, count), counts, strict=True) for _ in range(number)]
    chosen_Tk = torch.tensor(dealt).view(top_k, tokens).t()
    return chosen_Tk[torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))].contiguous()
