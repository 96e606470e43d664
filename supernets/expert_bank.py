"""The experts of one layer in one layout, whatever the model stores, and the layers of a loaded model.

transformers 5 holds the experts of a layer as 3-D parameters, as listed in its ``use_experts_implementation``: gate
rows before up rows or interleaved with them, transposed or not, with or without biases. An `ExpertBank` is always
``gate_up_E2FD`` (F gate rows, then F up rows) and ``down_EDF``.

Shapes: N rows of tokens, E experts, D model width, F expert width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Activation = Callable[[Tensor, Tensor], Tensor]
"""(N, F) gate and (N, F) up to the (N, F) inner units."""

NEVER = -1e30
"""A router logit that is never chosen; finite, since the identity multiplies it by zeros."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ExpertBank:
    """``down(activate(gate(x), up(x)))`` for each of E experts.

    Attributes:
        gate_up_E2FD: F gate rows, then F up rows of each expert.
        down_EDF: the way back.
        gate_up_bias_E2F: None in models without.
        down_bias_ED: None in models without.
        activate: the model's own activation of gate and up.
    """

    gate_up_E2FD: Tensor
    down_EDF: Tensor
    gate_up_bias_E2F: Tensor | None = None
    down_bias_ED: Tensor | None = None
    activate: Activation

    def __post_init__(self) -> None:
        assert self.gate_up_E2FD.shape == (self.count, 2 * self.width, self.down_EDF.shape[1])

    @property
    def count(self) -> int:
        """E."""
        return len(self.down_EDF)

    @property
    def width(self) -> int:
        """F."""
        return self.down_EDF.shape[2]

    def select(self, experts: Sequence[int]) -> ExpertBank:
        """A bank of some of the experts, in this order; copies them."""
        index = torch.tensor(list(experts), dtype=torch.long)
        return self.mapped(lambda tensor: tensor[index])

    def mapped(self, function: Callable[[Tensor], Tensor]) -> ExpertBank:
        """The bank of what a function makes of each tensor."""
        changed: dict[str, Any] = {name: function(tensor) for name, tensor in self.tensors().items()}
        return replace(self, **changed)

    def tensors(self) -> dict[str, Tensor]:
        """Field name to tensor, those that exist."""
        names = ("gate_up_E2FD", "down_EDF", "gate_up_bias_E2F", "down_bias_ED")
        return {name: tensor for name in names if (tensor := getattr(self, name)) is not None}

    def inner(self, expert: int, x_ND: Tensor) -> Tensor:
        """(N, F): what the down-projection of one expert reads."""
        bias = None if self.gate_up_bias_E2F is None else self.gate_up_bias_E2F[expert]
        gate_NF, up_NF = functional.linear(x_ND, self.gate_up_E2FD[expert], bias).chunk(2, dim=-1)
        return self.activate(gate_NF, up_NF)

    def outputs(self, expert: int, x_ND: Tensor) -> Tensor:
        """(N, D): what one expert answers, not yet weighted by its gate."""
        bias = None if self.down_bias_ED is None else self.down_bias_ED[expert]
        return functional.linear(self.inner(expert, x_ND), self.down_EDF[expert], bias)

    def norms(self) -> Tensor:
        """(E,): the Euclidean norm of all weights of each expert, float64."""
        experts = zip(*self.tensors().values(), strict=True)  # one by one: all in float64 would take twice the layer
        squares = [sum(tensor.double().square().sum() for tensor in expert) for expert in experts]
        return torch.stack(squares).sqrt()


@dataclass(frozen=True, kw_only=True, slots=True)
class MoeLayer:
    """One mixture-of-experts layer of a loaded model.

    Attributes:
        index: position among the decoder's layers, dense ones counted.
        name: dotted name of the block, such as ``model.layers.3.mlp``.
        block: the model's own block, which holds `experts` and `router`.
        residual_name: dotted name of the norm before the block, whose input is the residual stream.
    """

    index: int
    name: str
    block: nn.Module
    residual_name: str

    @property
    def experts(self) -> Any:
        """The module that holds the fused parameters; merged experts have an expert map around it."""
        return fused_experts(self.block)

    @property
    def router(self) -> Any:
        """The module that returns logits [N, E], weights [N, k] and choices [N, k]."""
        return getattr(self.block, router_name(self.block))

    @property
    def count(self) -> int:
        """Outputs of the router: as many as there are experts, unless experts were merged behind it."""
        return len(self.router.weight)

    @property
    def top_k(self) -> int:
        """Experts per token."""
        return int(self.router.top_k)

    @property
    def router_groups(self) -> int:
        """Groups of consecutive experts, of which a token may use some; 1 where the model has none.

        DeepSeek-V2 divides its experts only where its method is ``group_limited_greedy``.
        """
        limited = getattr(self.router, "topk_method", "group_limited_greedy") == "group_limited_greedy"
        return int(getattr(self.router, "num_group", None) or 1) if limited else 1

    @property
    def least_count(self) -> int:
        """Fewest experts for which the model's own gate still works."""
        chosen_groups = int(self.router.topk_group) if self.router_groups > 1 else 1
        per_group = -(-self.top_k // chosen_groups)
        # DeepSeek-V3 ranks groups by the sum of their two best experts.
        least = 2 if hasattr(self.router, "e_score_correction_bias") else 1
        return max(per_group, least) * self.router_groups

    def bank(self) -> ExpertBank:
        """The experts in the one layout; views of the parameters where the model stores them so."""
        experts = self.experts
        return ExpertBank(
            gate_up_E2FD=_rows(experts, _turned(experts, experts.gate_up_proj.detach())),
            down_EDF=_turned(experts, experts.down_proj.detach()),
            gate_up_bias_E2F=_rows(experts, experts.gate_up_proj_bias.detach()) if experts.has_bias else None,
            down_bias_ED=experts.down_proj_bias.detach() if experts.has_bias else None,
            activate=_activation(experts),
        )

    def gate(self, logits_NE: Tensor, gone_NE: Tensor) -> tuple[Tensor, Tensor]:
        """(N, k) gates and (N, k) choices by the model's own rule, as if the experts marked as gone were not there.

        The model's router computes them: its weight is the identity, its input the logits.
        """
        router = copy.deepcopy(self.router)
        router.weight = nn.Parameter(torch.eye(self.count), requires_grad=False)
        router.hidden_dim = self.count
        if getattr(router, "bias", None) is not None:
            router.bias = None  # is in the logits
        if hasattr(router, "e_score_correction_bias"):
            router.e_score_correction_bias = router.e_score_correction_bias.masked_fill(gone_NE, NEVER)
        _, gates_Nk, chosen_Nk = router(logits_NE.masked_fill(gone_NE, NEVER))
        return gates_Nk, chosen_Nk

    def outputs(self, expert: int, x_ND: Tensor) -> Tensor:
        """(N, D): what one expert answers, from the parameters as they are stored."""
        experts = self.experts
        up_bias, down_bias = (
            (experts.gate_up_proj_bias[expert], experts.down_proj_bias[expert]) if experts.has_bias else (None, None)
        )
        up = functional.linear(x_ND, _turned(experts, experts.gate_up_proj[expert]), up_bias)
        return functional.linear(experts._apply_gate(up), _turned(experts, experts.down_proj[expert]), down_bias)

    def stored(self, bank: ExpertBank) -> dict[str, Tensor]:
        """Parameter name to tensor, as the model's `experts` stores a bank; contiguous."""
        experts = self.experts
        tensors = {
            "gate_up_proj": _turned(experts, _stored_rows(experts, bank.gate_up_E2FD)),
            "down_proj": _turned(experts, bank.down_EDF),
        }
        if bank.gate_up_bias_E2F is not None and bank.down_bias_ED is not None:
            tensors["gate_up_proj_bias"] = _stored_rows(experts, bank.gate_up_bias_E2F)
            tensors["down_proj_bias"] = bank.down_bias_ED
        return {name: tensor.contiguous() for name, tensor in tensors.items()}


def moe_layers(model: nn.Module) -> tuple[MoeLayer, ...]:
    """The mixture-of-experts layers of a loaded model, first to last.

    Raises:
        ValueError: there are none, they are quantised, layers share them, or they are stored in a way unknown here.
    """
    found = []
    owners: dict[int, str] = {}
    for name, block in model.named_modules(remove_duplicate=False):
        if hasattr(block, "experts") and router_name(block) and isinstance(block.experts, nn.Module):
            _check_storage(name, fused_experts(block))
            owner = owners.setdefault(id(fused_experts(block).down_proj), name)
            if owner != name:
                raise ValueError(f"{owner} and {name} share their experts; untie them: each layer is cut by itself")
            layer_name = name.rpartition(".")[0]
            index = int(layer_name.rpartition(".")[2])
            norm = f"{layer_name}.post_attention_layernorm"
            found.append(MoeLayer(index=index, name=name, block=block, residual_name=norm))
    if not found:
        kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        raise ValueError(f"the model ({kind}) has no mixture-of-experts layer; choose a sparse checkpoint")
    return tuple(found)


def check_router(layer: MoeLayer) -> None:
    """ValueError if a router is not finite; one whose weights are not there yet passes."""
    weight = layer.router.weight
    if not weight.is_meta and not bool(weight.isfinite().all()):
        raise ValueError(f"the router of layer {layer.index} holds NaN or infinity; the checkpoint is damaged")


def fused_experts(block: nn.Module) -> Any:
    """The module that holds the fused parameters of a block."""
    return getattr(block.experts, "experts", block.experts)


def router_name(block: nn.Module) -> str:
    """``gate`` or ``router``, whichever child routes; empty if none does."""
    children = dict(block.named_children())
    return next((name for name in ("gate", "router") if isinstance(children.get(name), nn.Module)), "")


def _check_storage(name: str, experts: nn.Module) -> None:
    weight = getattr(experts, "gate_up_proj", None)
    if not isinstance(weight, Tensor) or weight.dim() != 3:
        raise ValueError(
            f"{name} keeps its experts as {type(experts).__name__}, not as fused tensors; supported are Mixtral, "
            "Qwen2-MoE, Qwen3-MoE, OLMoE, DeepSeek-V2, DeepSeek-V3 and GPT-OSS"
        )
    if not weight.is_floating_point() or weight.element_size() < 2:
        raise ValueError(
            f"{name} holds quantised experts ({weight.dtype}), which cannot be merged or cut; load it in 16 or 32 bits"
        )


def _turned(experts: Any, weight: Tensor) -> Tensor:
    return weight.transpose(-2, -1) if experts.is_transposed else weight


def _rows(experts: Any, stored: Tensor) -> Tensor:
    """Dimension 1 from the model's order to gate rows before up rows."""
    return stored if experts.is_concatenated else torch.cat([stored[:, ::2], stored[:, 1::2]], dim=1)


def _stored_rows(experts: Any, rows: Tensor) -> Tensor:
    """The inverse of `_rows`."""
    return rows if experts.is_concatenated else torch.stack(rows.chunk(2, dim=1), dim=2).flatten(1, 2)


def _activation(experts: Any) -> Activation:
    """The model's own code, fed in the order that it stores."""

    def activate(gate_NF: Tensor, up_NF: Tensor) -> Tensor:
        stacked = torch.cat([gate_NF, up_NF], -1) if experts.is_concatenated else torch.stack([gate_NF, up_NF], -1)
        inner_NF: Tensor = experts._apply_gate(stacked.flatten(gate_NF.dim() - 1))
        return inner_NF

    return activate
