"""Tiny models of every supported type, with a space that cuts them along every axis of their family."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from supernets.space import DEPTH, EXPERT_WIDTH, EXPERTS, KV_GROUPS, TOP_K, Choice, SearchSpace
from supernets.supernet import Supernet
from tests.toy_moe import toy_moe
from tests.toy_task import CLASSES, LAYERS, VOCABULARY, tiny_model, tiny_space

SHARED_HEADS = ("mixtral", "qwen2_moe", "qwen3_moe")
"""Whose query heads share keys and values here."""


def toy_family_model(model_type: str, **config: Any) -> nn.Module:
    """A random model of three layers in evaluation mode; the same for the same configuration."""
    if model_type in CLASSES:
        return tiny_model(model_type, **config)
    attention = config.pop("attn_implementation", "eager")
    if model_type in SHARED_HEADS:
        config = {"num_attention_heads": 4, **config}
    model = toy_moe(model_type, vocab_size=VOCABULARY, num_hidden_layers=LAYERS, **config)
    cast("Any", model).set_attn_implementation(attention)
    return model


def toy_family_space(model_type: str) -> SearchSpace:
    """Depth, and everything that the family can vary, per layer."""
    if model_type in CLASSES:
        return tiny_space()
    grouped = model_type.startswith("deepseek")
    choices = [Choice(axis=DEPTH, options=(1, 2, 3))]
    for layer in range(LAYERS):
        if model_type in SHARED_HEADS:
            choices.append(Choice(axis=KV_GROUPS, options=(1, 2), layer=layer))
        if layer or not grouped:
            choices.append(Choice(axis=EXPERTS, options=(4, 6, 8) if grouped else (2, 5, 8), layer=layer))
            choices.append(Choice(axis=TOP_K, options=(1, 2), layer=layer))
            choices.append(Choice(axis=EXPERT_WIDTH, options=(8, 16), layer=layer))
    return SearchSpace("moe", LAYERS, tuple(range(LAYERS)), tuple(choices))


def toy_family_supernet(model_type: str, **config: Any) -> Supernet:
    """`toy_family_model` over `toy_family_space`."""
    return Supernet.wrap(toy_family_model(model_type, **config), toy_family_space(model_type))
