"""Mixtures of the tiny supernet, of every kind, and what tests ask of them."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from supernets.finetune import TuneSettings
from supernets.mixture import Mixture
from supernets.recipe import Recipe
from supernets.space import Architecture
from supernets.supernet import SOURCE, Supernet
from supernets.weights import ElasticLinear
from tests.toy_task import tiny_inputs, tiny_supernet

EXPERTS = 3
CHOICES: dict[str, dict[str, Any]] = {
    "layer": {"kind": "layer"},
    "neuron": {"kind": "neuron"},
    "layer low rank": {"kind": "layer", "rank": 4},
    "neuron low rank": {"kind": "neuron", "rank": 4},
    "layer with attention": {"kind": "layer", "modules": ("attention", "ffn")},
    "neuron, attention alone": {"kind": "neuron", "modules": ("attention",), "rank": 2},
}
KINDS = {name: {"experts": EXPERTS, "hidden": 16, **choice} for name, choice in CHOICES.items()}
SETTINGS = TuneSettings(
    steps=6, batch_size=16, importance_batches=1, precision="float32", recipe=Recipe(gamma=0.0, sampling="sandwich")
)


def mixed(options: dict[str, Any], model_type: str = "bert") -> Supernet:
    """A mixture nobody has trained."""
    supernet = tiny_supernet(model_type)
    Mixture.over(supernet, **options)
    return supernet


def source_of(supernet: Supernet) -> Mixture:
    assert isinstance(supernet.trained_source, Mixture)
    return supernet.trained_source


@torch.no_grad()
def scrambled(supernet: Supernet) -> Supernet:
    """The mixture with parameters that are anything but what they were at first."""
    generator = torch.Generator().manual_seed(3)
    for parameter in source_of(supernet).parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return supernet


def is_mixed(supernet: Supernet, name: str) -> bool:
    return name.replace(".", "/") in source_of(supernet).deltas


def a_mixed_module(supernet: Supernet, layer: int = 0) -> ElasticLinear:
    return next(m for n, m in supernet.elastic.items() if is_mixed(supernet, n) and f".{layer}." in n)


@torch.no_grad()
def logits(network: Any) -> Tensor:
    output: Tensor = network(**tiny_inputs()).logits
    return output


def active_logits(supernet: Supernet, architecture: Architecture | None) -> Tensor:
    with supernet.active(architecture):
        return logits(supernet)


def architectures(supernet: Supernet, count: int = 4) -> list[Architecture]:
    rng, space = random.Random(1), supernet.space
    return [space.decode(g) for g in (space.smallest, space.largest, *(space.sample(rng) for _ in range(count)))]


def loss_of(supernet: Supernet, architecture: Architecture | None = None, seed: int = 0) -> Tensor:
    with supernet.active(architecture):
        loss: Tensor = supernet(**tiny_inputs(seed=seed)).logits.square().sum()
    return loss


def gradients(supernet: Supernet) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in supernet.model.named_parameters() if p.grad is not None}
    supernet.model.zero_grad()
    return found


def units_left_alone(supernet: Supernet, architecture: Architecture) -> int:
    """How many units of the mixture lie outside a network; asserts that none of them has a gradient."""
    found, outside = gradients(supernet), 0
    for group in supernet.groups:
        for member in group.members:
            if member.parameter.startswith(SOURCE) and member.parameter in found:
                left = member.positions(range(group.kept(architecture), group.units))
                assert not found[member.parameter].index_select(member.dim, torch.tensor(left).long()).any()
                outside += len(left)
    return outside
