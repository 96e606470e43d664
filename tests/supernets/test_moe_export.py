"""Checkpoints of mixture-of-experts networks in every layout, and what is refused instead of written wrongly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers
from torch import nn

from supernets.checkpoint import load_exported, load_language_model, load_supernet, save_supernet, write_network
from supernets.data.byte_tokenizer import byte_tokenizer
from supernets.elastic_experts import ElasticExperts, build_block
from supernets.expert_bank import moe_layers
from supernets.family import Layout, SpaceOptions
from supernets.reduction import CalibratedLayer, reduce_layer
from supernets.space import DEPTH, EXPERT_WIDTH, EXPERTS, KV_GROUPS, Architecture, Choice, SearchSpace
from supernets.supernet import Supernet
from tests.toy_families import toy_family_model
from tests.toy_moe import toy_batches, toy_moe
from tests.toy_reduced import (
    KINDS,
    OPERATORS,
    aligned,
    logits,
    logits_of,
    middle,
    reduced_supernet,
    with_operator,
)

BIASED = ("deepseek_v3", "gpt_oss")


# -- export ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_uniform_pruned_network_is_a_plain_checkpoint(kind: str, tmp_path: Path) -> None:
    supernet = reduced_supernet(kind)
    architecture = middle(supernet, "reap")
    network: Any = supernet.extract(architecture, "uniform")
    network.save_pretrained(tmp_path)  # in the original format, as other loaders want it
    assert "supernas_layers" not in json.loads((tmp_path / "config.json").read_text())
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert torch.equal(logits(aligned(stock)), logits_of(supernet, architecture))


@pytest.mark.parametrize("kind", BIASED)
def test_a_padded_network_is_a_plain_checkpoint_with_other_counts(kind: str, tmp_path: Path) -> None:
    supernet = reduced_supernet(kind)
    architecture = supernet.space.decode(supernet.space.middle)
    layers = list(with_operator(architecture, "reap").layers)
    fewest = min(choice.options[0] for choice in supernet.space.choices if choice.axis == EXPERTS)
    units = tuple((axis, fewest if axis == EXPERTS else size) for axis, size in layers[-1].units)
    layers[-1] = replace(layers[-1], units=units)
    architecture = Architecture(tuple(layers))
    network: Any = supernet.extract(architecture, "padded")
    network.save_pretrained(tmp_path)
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert torch.equal(logits(aligned(stock)), logits(network))
    torch.testing.assert_close(logits(network), logits_of(supernet, architecture), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_stock_classes_refuse_a_free_layout_rather_than_build_another_model(kind: str, tmp_path: Path) -> None:
    """Even with one count in all layers, where only the experts per token differ."""
    supernet = Supernet.wrap(toy_family_model(kind))
    space = supernet.space
    largest = space.decode(space.largest)
    last = largest.layers[-1]
    units = tuple((axis, 1 if axis == "top_k" else size) for axis, size in last.units)
    architecture = Architecture((*largest.layers[:-1], replace(last, units=units)))
    extracted: Any = supernet.extract(architecture)
    extracted.save_pretrained(tmp_path, save_original_format=False)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["per_layer_num_experts"][-1] == 8
    assert "per_layer_config" not in config  # which stock classes of this release accept and ignore
    with pytest.raises(RuntimeError, match="mismatch"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_stock_classes_refuse_merged_experts_of_which_one_is_missing(tmp_path: Path) -> None:
    """Their router has as many rows as one that keeps an expert more."""
    supernet = reduced_supernet("qwen3_moe")
    layers = []
    for layer in middle(supernet, "hc-smoe").layers:
        units = tuple((axis, 7 if axis == EXPERTS else size) for axis, size in layer.units)
        layers.append(replace(layer, units=units))
    network: Any = supernet.extract(Architecture(tuple(layers)))
    network.save_pretrained(tmp_path, save_original_format=False)
    with pytest.raises(RuntimeError, match="mismatch"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_an_exported_network_reloads_in_a_process_of_its_own(tmp_path: Path) -> None:
    supernet = reduced_supernet("qwen3_moe", axes=(DEPTH, KV_GROUPS, EXPERT_WIDTH))
    cast("Any", supernet.model).set_attn_implementation("sdpa")  # which another process takes by default
    inputs = toy_batches(batches=1)[0]
    for layout, operator in (("uniform", "reap"), ("free", "hc-smoe")):
        architecture = middle(supernet, operator)
        network = supernet.extract(architecture, cast("Layout", layout))
        write_network(
            network,
            tmp_path / layout,
            byte_tokenizer(),
            family=supernet.family,
            layout=cast("Layout", layout),
            card="",
            provenance={},
            check_inputs=inputs,
            files=supernet.side_files(architecture),
        )
        assert torch.equal(logits(aligned(load_exported(tmp_path / layout))), logits_of(supernet, architecture))
        lines = [json.loads(line) for line in (tmp_path / layout / "experts.jsonl").read_text().splitlines()]
        assert len(lines) == len(architecture.layers)
        assert all(sorted(line["ranking"]) == list(range(8)) for line in lines)
        assert {line["operator"] for line in lines} == {operator}
    assert [multiplied_by(tmp_path / layout) for layout in ("uniform", "free")] == ["grouped_mm"] * 2


def multiplied_by(folder: Path) -> str:
    """How a checkpoint's experts are computed where nobody asks for anything, in a process that knows no others."""
    code = """
import sys
from transformers import AutoModelForCausalLM
print(AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).config._experts_implementation)
"""
    environment = {**os.environ, "HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-c", code, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("kind", KINDS)
def test_generation_with_a_cache_agrees_with_full_passes(kind: str) -> None:
    supernet = reduced_supernet(kind, axes=(DEPTH,))
    network: Any = supernet.extract(middle(supernet, "mone"))
    prompt = torch.tensor([[3, 1, 4, 1, 5]])
    text = network.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, min_new_tokens=6, do_sample=False
    )
    greedy = logits(network, input_ids=text).argmax(-1)
    assert torch.equal(text[0, 5:], greedy[0, 4:-1])


@pytest.mark.parametrize("kind", ["qwen3_moe", "deepseek_v3"])
def test_a_supernet_with_statistics_is_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    supernet = reduced_supernet(kind)
    save_supernet(supernet, tmp_path / "supernet", byte_tokenizer(), {"task": "toy"})
    loaded, _, record = load_supernet(tmp_path / "supernet")
    assert record["task"] == "toy"
    assert loaded.hash == supernet.hash
    cast("Any", loaded.model).set_attn_implementation("eager")
    for operator in OPERATORS:
        architecture = middle(supernet, operator)
        assert torch.equal(logits_of(loaded, architecture), logits_of(supernet, architecture))


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    supernet = Supernet.wrap(toy_family_model("olmoe", tie_word_embeddings=True))
    cast("Any", supernet.model).set_attn_implementation("sdpa")
    architecture = supernet.space.decode(supernet.space.middle)
    network: Any = supernet.extract(architecture)
    assert network.lm_head.weight is network.model.embed_tokens.weight
    assert supernet.count_parameters(architecture) == sum(p.numel() for p in network.parameters())
    save_supernet(supernet, tmp_path / "supernet", byte_tokenizer(), {})
    loaded, _, _ = load_supernet(tmp_path / "supernet")
    assert torch.equal(logits_of(loaded, architecture), logits(network))


# -- bad input ------------------------------------------------------------------------------------------------------


def test_merged_experts_do_not_fit_a_stock_layout() -> None:
    supernet = reduced_supernet("mixtral")
    with pytest.raises(ValueError, match="experts merged by hc-smoe answer for several rows"):
        supernet.extract(middle(supernet, "hc-smoe"), "uniform")


def test_unequal_counts_do_not_fit_the_layout_uniform() -> None:
    supernet = reduced_supernet("mixtral")
    architecture = with_operator(supernet.space.decode(supernet.space.middle), "reap")
    full = supernet.space.decode(supernet.space.largest).layers[-1]
    mixed = Architecture((*architecture.layers[:-1], full))
    with pytest.raises(ValueError, match=r"one value of experts for all layers, got \[6, 8\]"):
        supernet.extract(mixed, "uniform")
    with pytest.raises(ValueError, match="router with a bias, which mixtral has not"):
        supernet.extract(mixed, "padded")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("qwen3_moe", (1, 8), "offers 1 experts, but the router of layer 1 needs at least 2"),
        ("deepseek_v3", (5, 8), "equally many in each of its 2 groups"),
        ("mixtral", (4, 9), "offers 9, but the model has 8"),
    ],
)
def test_impossible_counts_are_refused(kind: str, options: tuple[int, ...], message: str) -> None:
    space = SearchSpace("moe", 2, (0, 1), (Choice(axis=EXPERTS, options=options, layer=1),))
    with pytest.raises(ValueError, match=message):
        Supernet.wrap(toy_moe(kind), space)


def test_operators_that_need_statistics_say_so() -> None:
    with pytest.raises(ValueError, match="operator reap goes by routing statistics; calibrate the model first"):
        Supernet.wrap(toy_moe("mixtral"), options=SpaceOptions(operators=("weight_norm", "reap")))
    Supernet.wrap(toy_moe("mixtral"), options=SpaceOptions(operators=("weight_norm",)))


def test_axes_that_a_model_cannot_vary_are_refused() -> None:
    with pytest.raises(ValueError, match="olmoe cannot vary kv_groups"):
        Supernet.wrap(toy_moe("olmoe"), options=SpaceOptions(axes=(KV_GROUPS,)))
    with pytest.raises(ValueError, match="mixtral cannot vary breadth"):
        Supernet.wrap(toy_moe("mixtral"), options=SpaceOptions(axes=("breadth",)))


@pytest.mark.parametrize(("multiple", "expected"), [(1, (2, 3, 4, 5, 6, 7, 8)), (4, (4, 8)), (3, (3, 6, 8))])
def test_counts_keep_to_a_grain(multiple: int, expected: tuple[int, ...]) -> None:
    space = Supernet.wrap(toy_moe("mixtral"), options=SpaceOptions(expert_multiple=multiple)).space
    assert {choice.options for choice in space.choices if choice.axis == EXPERTS} == {expected}


def test_one_count_for_all_layers() -> None:
    supernet = Supernet.wrap(toy_moe("deepseek_v3", num_hidden_layers=3), options=SpaceOptions(uniform=True))
    assert [choice.name for choice in supernet.space.choices] == ["experts", "top_k"]
    for genotype in supernet.space.uniform():
        supernet.configured(supernet.space.decode(genotype), "uniform")


def test_what_does_not_come_through_the_block_is_left_alone() -> None:
    supernet = reduced_supernet("qwen2_moe")
    block = supernet.experts[1]
    assert isinstance(block, ElasticExperts)
    tensors = block.tensors(middle(supernet, "mone"))
    shared = cast("nn.Module", block.shared_expert).state_dict()
    assert all(torch.equal(tensors[f"shared_expert.{name}"], tensor) for name, tensor in shared.items())


def test_layers_that_share_their_experts_are_refused() -> None:
    model: Any = toy_moe("mixtral")
    first, second = (layer.mlp.experts for layer in model.model.layers)
    second.down_proj = first.down_proj
    with pytest.raises(ValueError, match="share their experts"):
        Supernet.wrap(model)


def test_a_router_that_is_not_finite_is_refused() -> None:
    model: Any = toy_moe("mixtral")
    model.model.layers[1].mlp.gate.weight.data[3, 2] = float("nan")
    with pytest.raises(ValueError, match="the router of layer 1 holds NaN or infinity; the checkpoint is damaged"):
        Supernet.wrap(model)


def test_quantised_and_incomplete_checkpoints_are_refused(tmp_path: Path) -> None:
    supernet = Supernet.wrap(toy_moe("mixtral"))
    folder = tmp_path / "supernet"
    save_supernet(supernet, folder, byte_tokenizer(), {})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_local_experts": 6}))
    with pytest.raises(ValueError, match="cannot load the weights"):
        load_language_model(str(folder))
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "mxfp4"}}))
    with pytest.raises(ValueError, match="are quantised, which cannot be cut or merged"):
        load_language_model(str(folder))
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ValueError, match=r"lacks \d+ weights, such as"):
        load_language_model(str(folder))


def test_counts_per_layer_that_stock_classes_ignore_are_refused(tmp_path: Path) -> None:
    """The trap is part of the test: the stock class builds the global count in every layer without a word."""
    model: Any = toy_moe("qwen3_moe")
    config = type(model.config)(**{**model.config.to_dict(), "per_layer_config": {"1": {"num_experts": 4}}})
    assert [layer.mlp.experts.num_experts for layer in type(model)(config).model.layers] == [8, 8]
    last = moe_layers(model)[-1]
    reduced = reduce_layer(CalibratedLayer.of(last, None), "weight-norm", 4)
    model.set_submodule(last.name, build_block(last, model.config, reduced, 2))
    model.save_pretrained(tmp_path, save_original_format=False)
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="cannot load the weights"):
        load_language_model(str(tmp_path))
