"""Mixture-of-experts language models whose layers may each have their own experts.

This file travels with a checkpoint: it needs nothing but torch and transformers. The sizes come from
``config.supernas_layers``, one entry per layer; what an entry leaves out is as the configuration says:

    experts    routed experts
    top_k      how many of them a token chooses
    width      inner width of a routed expert
    kv_groups  key/value heads, each with as many query heads as in the original model
    router     rows of a router that kept them all; merged experts answer for several rows
    constants  rows whose experts became a constant output

The experts are the stock classes' own. transformers computes them in one grouped product only for models whose file has
the word ``@use_experts_implementation`` in it, and otherwise one by one, which rounds differently and is slower.

Shapes: N tokens, k choices per token, E rows of the router, r experts, C constants, D model width.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedConfig,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)


class MappedExperts(nn.Module):
    """Experts behind a router that still has a row for each of the original ones."""

    expert_map: Tensor
    experts: Any

    def __init__(self, experts: nn.Module, rows: int, constants: int, hidden: int) -> None:
        super().__init__()
        self.experts = experts
        self.register_buffer("expert_map", torch.zeros(rows, dtype=torch.long))
        self.constants = nn.Parameter(torch.zeros(constants, hidden)) if constants else None

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """(N, D) tokens, (N, k) rows of the router and their weights to (N, D).

        ``expert_map[e]`` is the expert that answers for row e, or r plus the number of its constant.
        """
        expert_Nk = self.expert_map[top_k_index]
        if self.constants is None:
            mixed_ND: Tensor = self.experts(hidden_states, expert_Nk, top_k_weights)
            return mixed_ND
        count = self.experts.num_experts
        is_constant_Nk = expert_Nk >= count
        own_Nk = top_k_weights.masked_fill(is_constant_Nk, 0)
        mixed_ND = self.experts(hidden_states, expert_Nk.masked_fill(is_constant_Nk, 0), own_Nk)
        weight_NC = own_Nk.new_zeros(len(own_Nk), len(self.constants))
        weight_NC = weight_NC.scatter_add(1, (expert_Nk - count).clamp(min=0), top_k_weights - own_Nk)
        return mixed_ND + weight_NC.to(self.constants.dtype) @ self.constants


def layer_config(config: Any, sizes: dict[str, int]) -> Any:
    """A copy of a configuration with the sizes of one layer in its global fields; the router's rows are its experts."""
    own = copy.deepcopy(config)
    rows = sizes.get("router", sizes.get("experts"))
    if rows is not None:
        setattr(own, count_field(config), rows)
    own.num_experts_per_tok = sizes.get("top_k", config.num_experts_per_tok)
    if "width" in sizes:
        setattr(own, width_field(config), sizes["width"])
    if "kv_groups" in sizes:
        queries_per_group = config.num_attention_heads // config.num_key_value_heads
        own.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        own.num_key_value_heads = sizes["kv_groups"]
        own.num_attention_heads = sizes["kv_groups"] * queries_per_group
    return own


def count_field(config: Any) -> str:
    """The field that holds the number of routed experts."""
    return next(name for name in ("n_routed_experts", "num_local_experts", "num_experts") if hasattr(config, name))


def width_field(config: Any) -> str:
    """The field that holds the inner width of a routed expert."""
    return "moe_intermediate_size" if hasattr(config, "moe_intermediate_size") else "intermediate_size"


def build_block(block_class: Any, config: Any, sizes: dict[str, int]) -> Any:
    """A mixture-of-experts block of the model's own class with the sizes of one layer."""
    block = block_class(layer_config(config, {name: sizes[name] for name in sizes if name != "width"}))
    if "router" in sizes or "width" in sizes:
        experts_class: Any = type(block.experts)
        own = layer_config(config, {name: sizes[name] for name in sizes if name != "router"})
        block.experts = experts_class(own)
    if "router" in sizes:
        block.experts = MappedExperts(block.experts, sizes["router"], sizes.get("constants", 0), config.hidden_size)
    return sharing_config(block, config)


def sharing_config(module: Any, config: Any) -> Any:
    """The module, all parts of which look up how to run (attention and experts implementation) in the model's own."""
    for part in module.modules():
        if hasattr(part, "config"):
            part.config = config
    return module


def resize_layers(decoder: Any, config: PreTrainedConfig) -> None:
    """Give every layer of a decoder the sizes that the configuration lists for it."""
    for index, (layer, sizes) in enumerate(zip(decoder.layers, config.supernas_layers, strict=True)):
        if "kv_groups" in sizes:
            layer.self_attn = sharing_config(type(layer.self_attn)(layer_config(config, sizes), index), config)
        if "experts" in sizes:
            layer.mlp = build_block(type(layer.mlp), config, sizes)


class SupernasDeepseekV2ForCausalLM(DeepseekV2ForCausalLM):
    """DeepSeek-V2 with per-layer sizes."""

    def __init__(self, config: DeepseekV2Config) -> None:
        super().__init__(config)
        resize_layers(self.model, config)


class SupernasDeepseekV3ForCausalLM(DeepseekV3ForCausalLM):
    """DeepSeek-V3 with per-layer sizes."""

    def __init__(self, config: DeepseekV3Config) -> None:
        super().__init__(config)
        resize_layers(self.model, config)


class SupernasGptOssForCausalLM(GptOssForCausalLM):
    """GPT-OSS with per-layer sizes."""

    def __init__(self, config: GptOssConfig) -> None:
        super().__init__(config)
        resize_layers(self.model, config)


class SupernasMixtralForCausalLM(MixtralForCausalLM):
    """Mixtral with per-layer sizes."""

    def __init__(self, config: MixtralConfig) -> None:
        super().__init__(config)
        resize_layers(self.model, config)


class SupernasOlmoeForCausalLM(OlmoeForCausalLM):
    """OLMoE with per-layer sizes."""

    def __init__(self, config: OlmoeConfig) -> None:
        super().__init__(config)
        resize_layers(self.model, config)


class SupernasQwen2MoeForCausalLM(Qwen2MoeForCausalLM):
    """Qwen2-MoE with per-layer sizes."""

    def __init__(self, config: Qwen2MoeConfig) -> None:
        super().__init__(config)
        resize_layers(self.model, config)


class SupernasQwen3MoeForCausalLM(Qwen3MoeForCausalLM):
    """Qwen3-MoE with per-layer sizes."""

    def __init__(self, config: Qwen3MoeConfig) -> None:
        super().__init__(config)
        resize_layers(self.model, config)
