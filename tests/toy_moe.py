"""Tiny random mixture-of-experts models of every supported architecture."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

COMMON = {
    "vocab_size": 40,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
MLA = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
GROUPED = {"n_routed_experts": 8, "n_group": 2, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1}
CONFIGS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 8, "intermediate_size": 16},
    "qwen2_moe": {
        "num_experts": 8,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 20,
        "intermediate_size": 32,
    },
    "qwen3_moe": {"num_experts": 8, "moe_intermediate_size": 16, "intermediate_size": 32, "head_dim": 12},
    "olmoe": {"num_experts": 8, "intermediate_size": 16},
    "deepseek_v2": {
        **MLA,
        **GROUPED,
        "moe_intermediate_size": 16,
        "intermediate_size": 32,
        "topk_method": "group_limited_greedy",
    },
    "deepseek_v3": {**MLA, **GROUPED, "moe_intermediate_size": 16, "intermediate_size": 32},
    "gpt_oss": {"num_local_experts": 8, "intermediate_size": 16, "head_dim": 12, "rope_parameters": PLAIN_ROPE},
}


def toy_moe(kind: str, *, seed: int = 0, experts_implementation: str | None = None, **changes: Any) -> nn.Module:
    """A causal language model whose routers, norms and biases are random, too."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{**COMMON, **CONFIGS[kind], **changes})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    if experts_implementation is not None:
        model.set_experts_implementation(experts_implementation)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "norm" in name:
                tensor.add_(0.1 * torch.randn_like(tensor))
            elif "bias" in name:
                tensor.copy_(0.2 * torch.randn_like(tensor))
            elif "inv_freq" not in name:
                tensor.copy_(0.3 * torch.randn_like(tensor))
    return cast("nn.Module", model.eval())


def toy_batches(*, batches: int = 3, size: int = 4, length: int = 16, seed: int = 0) -> list[dict[str, Tensor]]:
    """Random tokens without padding."""
    draws = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(0, 40, (size, length), generator=draws)} for _ in range(batches)]
