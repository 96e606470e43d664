"""Our experts as an implementation that transformers knows by name.

After `register_experts`, ``model.set_experts_implementation("supernas")`` or ``experts_implementation="supernas"`` at
loading lets every mixture-of-experts layer of the usual layout run here: on a CPU through `kernels.experts`, on a GPU
through the Triton kernel of `kernels.grouped_experts`. Layers of another layout (biases, interleaved or transposed
weights, a gate of their own, no gate, a norm after the experts, expert parallelism), and on a GPU those with another
activation than SiLU, run through transformers' own grouped product, its default.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import SiLUActivation
from transformers.integrations import moe

from kernels.experts import Activation, experts
from kernels.grouped_experts import grouped_experts

NAME = "supernas"


def register_experts() -> str:
    """Make the implementation known to transformers, as often as you like; returns its name."""
    moe.ALL_EXPERTS_FUNCTIONS.register(NAME, experts_forward)
    return NAME


def experts_forward(self: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The forward pass of a transformers module that holds experts.

    Args:
        self: the module, with ``gate_up_proj`` (E, 2F, D) and ``down_proj`` (E, D, F).
        hidden_states: (T, D).
        top_k_index: (T, k) integers in [0, E).
        top_k_weights: (T, k).
    """
    if not has_usual_layout(self) or (hidden_states.is_cuda and _activation(self) is not functional.silu):
        forwarded: Tensor = moe.grouped_mm_experts_forward(self, hidden_states, top_k_index, top_k_weights)
        return forwarded
    weights: Any = self
    up, down = weights.gate_up_proj, weights.down_proj
    if hidden_states.is_cuda:
        return grouped_experts(hidden_states, up, down, top_k_index, top_k_weights)
    return experts(hidden_states, up, down, top_k_index, top_k_weights, act=_activation(self))


def has_usual_layout(module: nn.Module) -> bool:
    """Whether the module computes ``down(act(gate(x)) * up(x))`` with weights as `kernels.experts` wants them."""
    usual: Any = module
    odd = usual.has_bias or usual.has_post_expert_norm or usual.is_transposed or usual._is_expert_parallel
    gate = usual.has_gate and usual.is_concatenated and type(usual)._apply_gate is moe._default_apply_gate
    return bool(gate and not odd)


def _activation(module: nn.Module) -> Activation:
    act: Any = module.act_fn
    return functional.silu if isinstance(act, nn.SiLU | SiLUActivation) else act
