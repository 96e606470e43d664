"""What the BERT family promises beyond the contract of all families."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from supernets.space import FFN_WIDTH, HEADS, Architecture, LayerChoice
from supernets.supernet import Supernet
from tests.toy_task import CLASSES, tiny_inputs, tiny_model, tiny_supernet

pytestmark = pytest.mark.parametrize("model_type", sorted(CLASSES))


def logits(network: Any) -> Tensor:
    with torch.no_grad():
        output: Tensor = network(**tiny_inputs()).logits
    return output


def test_a_dropped_layer_is_skipped(model_type: str) -> None:
    """The oracle is the stock class with the kept layers only."""
    supernet = tiny_supernet(model_type)
    kept = Architecture(tuple(LayerChoice(index=i, units=((FFN_WIDTH, 64), (HEADS, 4))) for i in (0, 2)))
    oracle: Any = tiny_model(model_type)
    encoder = getattr(oracle, oracle.base_model_prefix).encoder
    encoder.layer = nn.ModuleList([encoder.layer[0], encoder.layer[2]])
    with supernet.active(kept):
        assert torch.equal(logits(supernet), logits(oracle))


def test_removed_heads_and_neurons_are_those_set_to_zero(model_type: str) -> None:
    """The oracle zeroes what consumes the removed units; it adds in another order, hence the tolerance."""
    supernet = tiny_supernet(model_type)
    architecture = Architecture(tuple(LayerChoice(index=i, units=((FFN_WIDTH, 32), (HEADS, 1))) for i in range(3)))
    oracle: Any = tiny_model(model_type)
    for layer in getattr(oracle, oracle.base_model_prefix).encoder.layer:
        layer.attention.output.dense.weight.data[:, 8:] = 0
        layer.output.dense.weight.data[:, 32:] = 0
    with supernet.active(architecture):
        assert (logits(supernet) - logits(oracle)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([(32, 2), (32, 4)], "layout uniform needs all 4 heads in every layer"),
        ([(16, 4), (32, 4)], r"one feed-forward width for all layers, got \[16, 32\]"),
    ],
)
def test_a_uniform_layout_is_refused_where_it_cannot_say_it(
    model_type: str, sizes: list[tuple[int, int]], message: str
) -> None:
    supernet = tiny_supernet(model_type)
    layers = tuple(LayerChoice(index=i, units=((FFN_WIDTH, w), (HEADS, h))) for i, (w, h) in enumerate(sizes))
    with pytest.raises(ValueError, match=message):
        supernet.extract(Architecture(layers), "uniform")


def test_default_widths_are_multiples_of_16(model_type: str) -> None:
    space = Supernet.wrap(tiny_model(model_type)).space
    options = [choice.options for choice in space.choices if choice.axis == FFN_WIDTH]
    assert options
    assert all(width % 16 == 0 for widths in options for width in widths)
