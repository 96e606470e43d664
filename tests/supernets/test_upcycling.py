"""A mixture made of a dense model answers what the dense model does, where the method says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from supernets.upcycling import factorise, upcycle

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
}


@pytest.fixture(params=["qwen3", "llama"])
def dense(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    if request.param == "llama":
        return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    return Qwen3ForCausalLM(Qwen3Config(**SIZES)).eval()


def _logits(model: Any) -> torch.Tensor:
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids).logits
    return logits


def test_copies_answer_what_the_dense_model_does_whatever_the_router_says(dense: Any) -> None:
    mixture = upcycle(dense, experts=4, top_k=2)
    assert mixture.config.model_type in ("qwen3_moe", "mixtral")
    torch.testing.assert_close(_logits(mixture), _logits(dense), atol=1e-5, rtol=1e-5)


def test_noise_tells_copies_apart_and_is_seeded(dense: Any) -> None:
    one, same, other = (upcycle(dense, experts=4, top_k=2, noise=0.1, seed=seed) for seed in (1, 1, 2))
    weight = one.model.layers[0].mlp.experts.down_proj
    spread = (weight[0] - weight[1]).std() / weight.std()
    assert 0.1 < spread < 0.2  # sqrt(2) times 0.1
    assert torch.equal(_logits(one), _logits(same))
    assert not torch.equal(_logits(one), _logits(other))


def test_all_blocks_together_are_the_dense_layer(dense: Any) -> None:
    torch.testing.assert_close(_logits(factorise(dense, experts=4, top_k=4)), _logits(dense), atol=1e-5, rtol=1e-5)


def test_some_blocks_answer_for_all(dense: Any) -> None:
    mixture = factorise(dense, experts=4, top_k=2)
    x_TD = torch.randn(5, 16)
    _, gates, chosen = mixture.model.layers[0].mlp.gate(x_TD)
    assert torch.equal(gates, torch.full_like(gates, 0.5))
    mlp = dense.model.layers[0].mlp
    inner_TI = torch.nn.functional.silu(mlp.gate_proj(x_TD)) * mlp.up_proj(x_TD)
    kept_TI = torch.zeros_like(inner_TI)
    for token, experts in enumerate(chosen.tolist()):
        for expert in experts:
            kept_TI[token, 8 * expert : 8 * expert + 8] = inner_TI[token, 8 * expert : 8 * expert + 8]
    expected = mlp.down_proj(kept_TI) * 4 / 2
    torch.testing.assert_close(mixture.model.layers[0].mlp(x_TD[None])[0], expected, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_made_is_said_in_one_line(dense: Any) -> None:
    with pytest.raises(ValueError, match=r"32 inner units do not divide into 5 experts; choose a divisor of 32"):
        factorise(dense, experts=5, top_k=1)
    with pytest.raises(ValueError, match=r"top-k must be in 1\.\.4, got 5"):
        upcycle(dense, experts=4, top_k=5)
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=10))
    gpt2.config.intermediate_size = 32
    with pytest.raises(ValueError, match=r"a 'gpt2' model has no mixture .* supported are qwen3, llama, mistral"):
        upcycle(gpt2, experts=4, top_k=2)


def test_biases_have_no_place() -> None:
    for field in ("mlp_bias", "attention_bias"):
        sizes = {**SIZES, field: True}
        biased = LlamaForCausalLM(LlamaConfig(**sizes))
        with pytest.raises(ValueError, match=r"a mixture of 'llama' layers has no place for .*\.bias; choose a model"):
            upcycle(biased, experts=4, top_k=2)


def test_the_mixture_of_a_16_bit_model_runs(dense: Any) -> None:
    dense = dense.to(torch.bfloat16)
    dense.config.dtype = torch.bfloat16
    mixture = upcycle(dense, experts=4, top_k=2)
    assert {parameter.dtype for parameter in mixture.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(_logits(mixture), _logits(dense), atol=2e-2, rtol=2e-2)
