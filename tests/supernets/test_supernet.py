"""What a supernet refuses, and what its hash covers. All else is in the contract of the families."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from supernets.space import FFN_WIDTH, HEADS, Choice, SearchSpace
from supernets.supernet import Supernet, family_for
from tests.toy_task import tiny_model, tiny_space, tiny_supernet


def test_an_unsupported_model_type_is_named_with_the_supported_ones() -> None:
    with pytest.raises(ValueError, match=r"model type 'gpt2' is not supported; supported are .*bert, .*roberta"):
        family_for("gpt2")


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (tiny_space(4), "the space has 4 layers, but the model has 3"),
        (SearchSpace("bert", 3, (0, 1, 2), (Choice(axis=HEADS, options=(2, 8)),)), "heads offers 8, but .* has 4"),
        (SearchSpace("bert", 3, (0, 1, 2), (Choice(axis="fnn", options=(2,), layer=1),)), "layer1.fnn offers 2, but"),
    ],
)
def test_a_space_that_does_not_fit_the_model_is_refused(space: SearchSpace, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Supernet.wrap(tiny_model(), space)


@pytest.mark.parametrize("order", [[0, 1, 2], [0, 0, 1, 2], [1, 2, 3, 4]])
def test_an_order_that_is_no_permutation_is_refused(order: list[int]) -> None:
    with pytest.raises(ValueError, match="must be a permutation of 4 units"):
        tiny_supernet().reorder({(HEADS, 0): order})


def test_companions_follow_their_parameters() -> None:
    supernet = tiny_supernet()
    name = "bert.encoder.layer.1.intermediate.dense.weight"
    moments = {name: supernet.model.get_parameter(name).detach().clone()}
    supernet.reorder({(FFN_WIDTH, 1): list(reversed(range(64)))}, companions=[moments, {}])
    assert torch.equal(moments[name], supernet.model.get_parameter(name))
    assert not torch.equal(moments[name], tiny_model().get_parameter(name))


def test_the_hash_covers_weights_order_and_space() -> None:
    supernet = tiny_supernet()
    hashes = [supernet.hash, tiny_supernet(seed=1).hash]
    supernet.space = supernet.space.reordered((2, 1, 0))
    hashes.append(supernet.hash)
    supernet.reorder({(HEADS, 0): [1, 0, 2, 3]})
    hashes.append(supernet.hash)
    assert len(set(hashes)) == len(hashes)
    assert tiny_supernet().hash == hashes[0]


def test_the_hash_does_not_depend_on_what_is_active() -> None:
    supernet = tiny_supernet()
    with supernet.active(supernet.space.decode(supernet.space.smallest)):
        assert supernet.hash == tiny_supernet().hash


def test_a_fixed_network_has_one_sub_network() -> None:
    model: Any = tiny_model()
    fixed = Supernet.fixed(model)
    assert fixed.space.size == 1
    assert fixed.count_parameters(fixed.space.decode(())) == sum(p.numel() for p in model.parameters())
