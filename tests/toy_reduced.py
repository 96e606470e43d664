"""Supernets of tiny mixture-of-experts models that have operators to choose from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from supernets.calibration import calibrate
from supernets.family import SpaceOptions
from supernets.space import OPERATOR, Architecture
from supernets.supernet import Supernet
from tests.toy_families import toy_family_model
from tests.toy_moe import CONFIGS, toy_batches

KINDS = sorted(CONFIGS)
OPERATORS = ("reap", "hc-smoe", "mone")
"""Rows of the router that go, experts merged behind a map, and constants behind a map."""


def logits(network: Any, **inputs: Tensor) -> Tensor:
    with torch.no_grad():
        output: Tensor = network(**(inputs or toy_batches(batches=1, seed=9)[0])).logits
    return output


def reduced_supernet(kind: str, **options: Any) -> Supernet:
    """Operators to choose from, over a model that was calibrated on random tokens."""
    model = toy_family_model(kind)
    statistics = calibrate(model, toy_batches())
    settings = SpaceOptions(operators=OPERATORS, expert_options=4, **options)
    return Supernet.wrap(model, options=settings, statistics=statistics)


def with_operator(architecture: Architecture, operator: str) -> Architecture:
    """The same sizes, every reduced layer by one operator."""
    layers = [replace(x, names=((OPERATOR, operator),) if x.names else ()) for x in architecture.layers]
    return Architecture(tuple(layers))


def middle(supernet: Supernet, operator: str) -> Architecture:
    """Half the experts in every layer."""
    return with_operator(supernet.space.decode(supernet.space.middle), operator)


def reloaded(network: Any, folder: Path) -> Any:
    network.save_pretrained(folder, save_original_format=False)
    copy, info = type(network).from_pretrained(folder, attn_implementation="eager", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return aligned(copy)


def aligned(network: Any) -> Any:
    """Copies of weights that may lie unaligned as loaded, and round differently."""
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone()
    return network.eval()


def logits_of(supernet: Supernet, architecture: Architecture) -> Tensor:
    with supernet.active(architecture):
        return logits(supernet)
