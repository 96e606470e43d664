"""A mixture of experts out of a dense language model, to start training from.

- `upcycle` copies every feed-forward layer into each of the experts (sparse upcycling, arXiv 2212.05055). Gates sum to
  one, so that without noise the mixture answers what the dense model does, whatever the router says.
- `factorise` cuts every feed-forward layer into blocks of its inner units, one an expert (FactorLLM, arXiv 2408.11855).
  Experts answer ``E`` times their block's part: with all of them active and even gates the mixture equals the dense
  model, with k of them it is the method's ``E/k`` times the sum of their parts.

Shapes: E experts, D model width, F inner units of an expert, I of the dense layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

MIXTURES = {"qwen3": "qwen3_moe", "llama": "mixtral", "mistral": "mixtral"}
"""Dense model type → the mixture whose other layers are the same."""


def upcycle(dense: nn.Module, *, experts: int, top_k: int, noise: float = 0.0, seed: int = 0) -> Any:
    """A mixture whose experts are copies of the dense feed-forward layers, with randomly initialised routers.

    Args:
        dense: a causal language model whose type is in `MIXTURES`.
        noise: standard deviation of what is added to the copies' weights, as a share of each weight matrix's own.

    Raises:
        ValueError: the model's type has no mixture, or `top_k` is not in 1..`experts`.
    """
    generator = torch.Generator().manual_seed(seed)

    def banks(gate_up_2ID: Tensor, down_DI: Tensor) -> tuple[Tensor, Tensor]:
        copies = [weight.expand(experts, *weight.shape).clone() for weight in (gate_up_2ID, down_DI)]
        for copy in copies:
            copy += noise * copy[0].std() * torch.randn(copy.shape, generator=generator)
        return copies[0], copies[1]

    model = _mixture(dense, experts, top_k, _inner_units(dense), banks)
    for name, parameter in model.named_parameters():
        if name.endswith("mlp.gate.weight"):
            parameter.data.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model


def factorise(dense: nn.Module, *, experts: int, top_k: int) -> Any:
    """A mixture whose experts are consecutive blocks of the dense layers' inner units, with even gates.

    Args:
        dense: a causal language model whose type is in `MIXTURES`.

    Raises:
        ValueError: as in `upcycle`, or the inner units do not divide into so many blocks.
    """
    inner = _inner_units(dense)
    if inner % experts:
        raise ValueError(f"{inner} inner units do not divide into {experts} experts; choose a divisor of {inner}")

    def banks(gate_up_2ID: Tensor, down_DI: Tensor) -> tuple[Tensor, Tensor]:
        halves = gate_up_2ID.view(2, experts, inner // experts, -1)
        return halves.transpose(0, 1).flatten(1, 2), experts * torch.stack(down_DI.chunk(experts, dim=1))

    return _mixture(dense, experts, top_k, inner // experts, banks)


def _inner_units(dense: Any) -> int:
    return int(dense.config.intermediate_size)


def _mixture(dense: Any, experts: int, top_k: int, width: int, banks: Any) -> Any:
    """The mixture with the dense model's other weights; routers are zero, `banks` makes (E, 2F, D) and (E, D, F)."""
    kind = dense.config.model_type
    if kind not in MIXTURES:
        raise ValueError(f"a {kind!r} model has no mixture of the same layers; supported are {', '.join(MIXTURES)}")
    if not 1 <= top_k <= experts:
        raise ValueError(f"top-k must be in 1..{experts}, got {top_k}")
    model: Any = AutoModelForCausalLM.from_config(_config(dense.config, experts, top_k, width))
    state = model.state_dict()
    if unknown := [name for name in dense.state_dict() if name.endswith(".bias") and name not in state]:
        raise ValueError(f"a mixture of {kind!r} layers has no place for {unknown[0]}; choose a model without biases")
    weights = {name: weight for name, weight in dense.state_dict().items() if ".mlp." not in name}
    for layer in range(dense.config.num_hidden_layers):
        mlp = dense.get_submodule(f"model.layers.{layer}.mlp")
        gate_up = torch.cat([mlp.gate_proj.weight.detach(), mlp.up_proj.weight.detach()])
        prefix = f"model.layers.{layer}.mlp"
        up_E2FD, down_EDF = banks(gate_up, mlp.down_proj.weight.detach())
        weights |= {f"{prefix}.experts.gate_up_proj": up_E2FD, f"{prefix}.experts.down_proj": down_EDF}
        weights[f"{prefix}.gate.weight"] = torch.zeros_like(state[f"{prefix}.gate.weight"])
    model.load_state_dict(weights)
    return model.eval()


def _config(dense: Any, experts: int, top_k: int, width: int) -> Any:
    kept = {k: v for k, v in dense.to_dict().items() if k not in ("architectures", "model_type", "layer_types")}
    if MIXTURES[dense.model_type] == "mixtral":
        counts = {"num_local_experts": experts, "intermediate_size": width}
    else:
        counts = {"num_experts": experts, "moe_intermediate_size": width, "norm_topk_prob": True}
    return AutoConfig.for_model(MIXTURES[dense.model_type], **{**kept, **counts, "num_experts_per_tok": top_k})
