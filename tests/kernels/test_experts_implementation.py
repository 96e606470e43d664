"""Our experts inside transformers' own models against its eager loop; tiny models of random weights."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import MixtralConfig, OlmoeConfig, PreTrainedConfig, PreTrainedModel, Qwen3MoeConfig
from transformers.models.gpt_oss.configuration_gpt_oss import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts, MixtralForCausalLM
from transformers.models.olmoe.modeling_olmoe import OlmoeForCausalLM
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeForCausalLM

from kernels import experts_implementation
from kernels.experts import experts
from kernels.experts_implementation import has_usual_layout, register_experts

SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "num_experts_per_tok": 2,
    "head_dim": 16,
}
MODELS: list[tuple[type[PreTrainedModel], PreTrainedConfig]] = [
    (MixtralForCausalLM, MixtralConfig(**SIZES, intermediate_size=48, num_local_experts=4)),
    (Qwen3MoeForCausalLM, Qwen3MoeConfig(**SIZES, moe_intermediate_size=16, num_experts=6)),
    (OlmoeForCausalLM, OlmoeConfig(**SIZES, intermediate_size=16, num_experts=5)),
]


def logits(model: PreTrainedModel, implementation: str, tokens: Tensor) -> Tensor:
    model.set_experts_implementation(implementation)
    output: Tensor = model(tokens).logits
    return output


@pytest.fixture(params=MODELS, ids=lambda pair: pair[1].model_type)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    kind, config = request.param
    torch.manual_seed(0)
    built: PreTrainedModel = kind(config).eval()
    return built


@pytest.mark.parametrize("length", [1, 9])
def test_models_answer_as_with_the_eager_loop(
    model: PreTrainedModel, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        return experts(*args, **kwargs)

    monkeypatch.setattr(experts_implementation, "experts", counted)
    tokens = torch.arange(2 * length).view(2, length)
    with torch.no_grad():
        expected = logits(model, "eager", tokens)
        assert not calls
        torch.testing.assert_close(logits(model, register_experts(), tokens), expected, rtol=1e-5, atol=1e-6)
    assert len(calls) == model.config.num_hidden_layers


def test_training_has_the_same_gradients(model: PreTrainedModel) -> None:
    tokens = torch.arange(12).view(2, 6)
    found = []
    for implementation in ("eager", register_experts()):
        model.zero_grad()
        torch.autograd.backward(logits(model, implementation, tokens).square().mean())
        found.append({name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, rtol=1e-4, atol=1e-6)


def test_a_layer_of_another_layout_runs_as_in_transformers() -> None:
    config = GptOssConfig(hidden_size=16, intermediate_size=16, num_local_experts=3)
    layer = GptOssExperts(config)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.1)
    assert not has_usual_layout(layer)
    assert has_usual_layout(MixtralExperts(MixtralConfig(**SIZES, intermediate_size=16, num_local_experts=2)))
    x, weights = torch.randn(5, 16), torch.rand(5, 2)
    chosen = torch.rand(5, 3).topk(2).indices
    results = []
    for implementation in ("grouped_mm", register_experts()):
        config._experts_implementation = implementation
        results.append(layer(x, chosen, weights))
    assert torch.equal(*results)
