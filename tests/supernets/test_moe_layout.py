"""Expert layouts: what an architecture says about them, their picture and their JSON."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from supernets.moe_layout import ExpertLayer, MoELayout, bar
from supernets.space import DEPTH, EXPERTS, OPERATOR, TOP_K, Choice, SearchSpace
from tests.toy_moe import CONFIGS, toy_moe


def toy_config(**changes: Any) -> SimpleNamespace:
    fields = {"num_hidden_layers": 4, "num_experts": 16, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    return SimpleNamespace(**{**fields, **changes})


def toy_space() -> SearchSpace:
    choices = [Choice(axis=DEPTH, options=(3, 4))]
    for layer in range(4):
        choices.append(Choice(axis=EXPERTS, options=(4, 8, 16), layer=layer))
        choices.append(Choice(axis=OPERATOR, options=(1, 2), layer=layer, moot=(EXPERTS, 16)))
        choices.append(Choice(axis=TOP_K, options=(1, 2), layer=layer))
    return SearchSpace("moe", 4, (3, 1, 0, 2), tuple(choices), {OPERATOR: ("reap", "ream")})


def test_a_layout_follows_the_architecture() -> None:
    space = toy_space()
    layout = MoELayout.of_config(toy_config()).of(space.decode(space.smallest))
    assert [layer.index for layer in layout.layers] == [0, 1, 3]
    assert {(x.experts, x.top_k, x.width, x.operator) for x in layout.layers} == {(4, 1, 64, "reap")}
    assert layout.is_uniform
    assert MoELayout.from_json(layout.to_json()) == layout


def test_a_picture_has_a_line_for_every_layer() -> None:
    space = toy_space()
    full = MoELayout.of_config(toy_config())
    picture = full.of(space.decode(space.middle[:1] + (1, 1, 1, 2, 0, 1) + (0,) * 6)).picture(full).splitlines()
    assert picture == [
        "  0 ████████         8/16 top-2 ream",
        "  1 ████████████████ 16/16 top-2",
        "  2 ████             4/16 top-1 reap",
        "  3 ████             4/16 top-1 reap",
    ]
    shallow = full.of(space.decode(space.smallest)).picture(full).splitlines()
    assert shallow[2].split() == ["2", "dropped"]


@pytest.mark.parametrize(
    ("kept", "full", "drawn"), [(0, 3, ""), (1, 128, "▏"), (3, 3, "█" * 16), (1, 3, "█" * 5 + "▍")]
)
def test_bars_have_steps_of_an_eighth_and_one_width(kept: int, full: int, drawn: str) -> None:
    assert bar(kept, full) == drawn.ljust(16)


@pytest.mark.parametrize(
    ("changes", "sparse"),
    [
        ({"first_k_dense_replace": 2}, {2, 3}),
        ({"mlp_only_layers": [1], "decoder_sparse_step": 2}, {3}),
        ({"decoder_sparse_step": 1}, {0, 1, 2, 3}),
    ],
)
def test_dense_layers_are_left_out(changes: dict[str, Any], sparse: set[int]) -> None:
    assert MoELayout.of_config(toy_config(**changes)).indices == sparse


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_a_configuration_says_what_the_model_has(kind: str) -> None:
    from supernets.expert_bank import moe_layers

    model: Any = toy_moe(kind, num_hidden_layers=3)
    found = {(x.index, x.experts, x.top_k, x.width) for x in MoELayout.of_config(model.config).layers}
    assert found == {(x.index, x.count, x.top_k, x.bank().width) for x in moe_layers(model)}


def test_a_damaged_layout_is_refused() -> None:
    layer = ExpertLayer(index=0, experts=4, top_k=2, width=8)
    with pytest.raises(ValueError, match="not an expert layout"):
        MoELayout.from_json([{**MoELayout((layer,)).to_json()[0], "heads": 3}])
