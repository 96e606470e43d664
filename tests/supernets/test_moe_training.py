"""Training of a mixture of experts: what it optimises, that it learns, and that an interruption changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from supernets.expert_bank import moe_layers
from supernets.moe_training import MoeTrainingSettings, load_balance, next_token_loss, top_k_of, train_moe

SIZES: dict[str, Any] = {
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


def _model(seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    experts: dict[str, Any] = {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "norm_topk_prob": True,
    }
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **experts, **changes))


def _batch(step: int) -> torch.Tensor:
    """Numbers that count up."""
    start = torch.randint(20, (4, 1), generator=torch.Generator().manual_seed(step))
    return (start + torch.arange(12)) % 20


def _trained(settings: MoeTrainingSettings, **where: Any) -> Any:
    model = _model()
    progress = list(train_moe(model, _batch, settings, **where))
    assert progress[-1].step == settings.steps
    return model, progress


def test_it_learns_to_count() -> None:
    model, progress = _trained(MoeTrainingSettings(steps=60, learning_rate=1e-2))
    assert progress[-1].loss < 0.5 < 2 < progress[0].loss
    assert not model.training


def test_an_interrupted_training_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    settings = MoeTrainingSettings(steps=12, least_top_k=1, save_seconds=-1.0)
    whole, _ = _trained(settings)
    state, model = tmp_path / "state.safetensors", _model()
    for progress in train_moe(model, _batch, settings, state_file=state, identity="counting"):
        if progress.step == 7:
            break
    with pytest.raises(ValueError, match="belongs to a run with other settings"):
        list(train_moe(_model(), _batch, settings, state_file=state, identity="something else"))
    resumed = _model(seed=1)
    first = next(train_moe(resumed, _batch, settings, state_file=state, identity="counting"))
    assert first.step == 8
    list(train_moe(resumed, _batch, settings, state_file=state, identity="counting"))
    assert state.exists(), "whoever saves the model removes it"
    assert not list(train_moe(_model(seed=2), _batch, settings, state_file=state, identity="counting"))
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_tied_weights_are_saved_once(tmp_path: Path) -> None:
    settings, state = MoeTrainingSettings(steps=4, save_seconds=-1.0), tmp_path / "state.safetensors"
    ends = []
    for stop in (2, 4):
        torch.manual_seed(stop)
        model = _model(tie_word_embeddings=True)
        for progress in train_moe(model, _batch, settings, state_file=state):
            if progress.step == stop:
                break
        ends.append(model)
    assert ends[1].lm_head.weight is ends[1].model.embed_tokens.weight
    whole = _model(tie_word_embeddings=True)
    list(train_moe(whole, _batch, settings))
    assert torch.equal(whole.lm_head.weight, ends[1].lm_head.weight)


def test_balance_is_least_for_even_experts_and_counts_each_layer_by_itself() -> None:
    even_NE = torch.eye(4).repeat(3, 1) * 0.01
    assert load_balance(even_NE, 1) == pytest.approx(1.0)
    one_NE = torch.zeros(12, 4)
    one_NE[:, 2] = 50.0
    assert load_balance(one_NE, 1) == pytest.approx(4.0)


def test_balance_agrees_with_a_loop() -> None:
    logits_NE = torch.randn(50, 6, dtype=torch.float64)
    expected = 0.0
    for expert in range(6):
        chosen = sum(expert in row.topk(2).indices.tolist() for row in logits_NE) / 50
        expected += 6 * chosen * float(logits_NE.softmax(-1)[:, expert].mean())
    assert float(load_balance(logits_NE, 2)) == pytest.approx(expected, rel=1e-5)


def test_a_balanced_router_is_more_even() -> None:
    def imbalance(weight: float) -> float:
        model, _ = _trained(MoeTrainingSettings(steps=30, learning_rate=1e-2, balance=weight))
        with torch.no_grad():
            logits = model(input_ids=_batch(99), output_router_logits=True).router_logits
        return max(float(load_balance(one, 2)) for one in logits)

    assert imbalance(0.3) < imbalance(0.0)


def test_the_loss_is_that_of_transformers() -> None:
    model, ids = _model().eval(), _batch(0)
    output = model(input_ids=ids, labels=ids)
    torch.testing.assert_close(next_token_loss(output.logits, ids), output.loss)


def test_top_k_is_changed_for_a_while() -> None:
    model = _model().eval()
    layers, ids = moe_layers(model), _batch(0)
    with torch.no_grad():
        before = model(input_ids=ids).logits
        with top_k_of(layers, [1, 4]):
            assert [layer.top_k for layer in layers] == [1, 4]
            assert not torch.equal(model(input_ids=ids).logits, before)
        assert torch.equal(model(input_ids=ids).logits, before)
    with pytest.raises(ValueError, match=r"layer 1 has 4 experts; top-k must be in 1\.\.4"), top_k_of(layers, [1, 5]):
        pass
    assert [layer.top_k for layer in layers] == [2, 2]


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(ValueError, match="least_top_k 3 is above the model's top-k 2"):
        list(train_moe(_model(), _batch, MoeTrainingSettings(steps=1, least_top_k=3)))
    with pytest.raises(ValueError, match="no mixture-of-experts layer"):
        list(train_moe(LlamaForCausalLM(LlamaConfig(**SIZES)), _batch, MoeTrainingSettings(steps=1)))
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        MoeTrainingSettings(steps=0)
    broken = _model()
    with torch.no_grad():
        broken.lm_head.weight.fill_(float("nan"))
    with pytest.raises(ArithmeticError, match="the loss of step 0 is nan; lower the learning rate"):
        list(train_moe(broken, _batch, MoeTrainingSettings(steps=1)))
