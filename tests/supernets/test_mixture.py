"""A mixture's settings, its encoding of architectures, what it adds in memory, and its files."""

from __future__ import annotations

import json
import random
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from supernets.architecture_encoding import ArchitectureEncoding
from supernets.checkpoint import load_classifier, load_supernet, save_supernet
from supernets.estimate import estimate
from supernets.finetune import TuneSettings
from supernets.mixture import Mixture, MixtureSettings
from supernets.mixture_file import MIXTURE_FILE, load_mixture
from supernets.space import DEPTH, FFN_WIDTH, HEADS, Architecture, Choice, LayerChoice, SearchSpace
from supernets.supernet import Supernet
from tests.toy_task import LAYERS, ToyTask, tiny_inputs, tiny_model, tiny_space, tiny_supernet, tiny_tokenizer

HIDDEN_SIZE, WIDTH = 32, 64
FEATURES = LAYERS * 3


# -- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "token"}, "of kind layer or neuron, got 'token'"),
        ({"experts": 1}, "at least 2 experts, got 1; one is the plain supernet"),
        ({"rank": 0}, "rank of a mixture is at least 1, got 0"),
        ({"rank": 33}, r"rank 33 exceeds the 32 of bert\.encoder\.layer\.0\.intermediate\.dense; choose a smaller one"),
        ({"modules": ()}, r"one or several of ffn, attention, experts, each once, got \(\)"),
        ({"modules": ("ffn", "norm")}, r"got \('ffn', 'norm'\)"),
        ({"modules": ("ffn", "ffn")}, r"each once, got \('ffn', 'ffn'\)"),
        ({"hidden": 0}, r"hidden is at least 1 and dropout in \[0, 1\), got 0 and 0.0"),
        ({"dropout": 1.0}, "got 64 and 1.0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    supernet = tiny_supernet()
    before = supernet.hash
    with pytest.raises(ValueError, match=message):
        Mixture.over(supernet, **settings)
    assert supernet.hash == before
    assert supernet.trained_source is None


def test_settings_survive_json() -> None:
    settings = MixtureSettings(kind="neuron", experts=4, rank=2, modules=("attention",), hidden=8, dropout=0.1)
    assert MixtureSettings(**json.loads(json.dumps(asdict(settings)))) == settings


# -- what routers read ----------------------------------------------------------------------------------------------


def test_every_architecture_has_a_vector_of_its_own() -> None:
    space = tiny_space()
    encoding, rng = ArchitectureEncoding.of(space), random.Random(0)
    networks = {space.decode(space.sample(rng)) for _ in range(200)}
    vectors = {encoding.vector(architecture) for architecture in networks}
    assert len(vectors) == len(networks) > 100
    assert all(len(vector) == len(encoding) == FEATURES for vector in vectors)
    assert all(-1 <= value <= 1 for vector in vectors for value in vector)


def test_sizes_are_scaled_by_the_space_and_masked_where_dropped() -> None:
    encoding = ArchitectureEncoding.of(tiny_space())
    kept = LayerChoice(index=1, units=((FFN_WIDTH, 32), (HEADS, 1)))
    whole = LayerChoice(index=2, units=())
    ffn = 2 * (32 - 16) / (64 - 16) - 1
    assert encoding.vector(Architecture((kept, whole))) == (-1, 0, 0, 1, ffn, -1, 1, 1, 1)
    assert ArchitectureEncoding.of(tiny_space(order=(2, 0, 1))) == encoding
    assert ArchitectureEncoding.from_json(json.loads(json.dumps(encoding.to_json()))) == encoding


def test_axes_without_a_choice_say_nothing() -> None:
    choices = (Choice(axis=DEPTH, options=(1, 2)), Choice(axis=FFN_WIDTH, options=(64,)))
    space = SearchSpace("bert", 2, (0, 1), choices)
    vectors = [ArchitectureEncoding.of(space).vector(space.decode(g)) for g in (space.smallest, space.largest)]
    assert vectors == [(1, 0, -1, 0), (1, 0, 1, 0)]


# -- memory ---------------------------------------------------------------------------------------------------------


def router_size(experts: int, hidden: int, outputs: int) -> int:
    return hidden * (FEATURES + 1) + outputs * experts * (hidden + 1)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"experts": 2}, LAYERS * (2 * WIDTH * HIDDEN_SIZE + WIDTH + HIDDEN_SIZE + router_size(2, 64, 1))),
        ({"experts": 4}, LAYERS * (3 * (2 * WIDTH * HIDDEN_SIZE + WIDTH + HIDDEN_SIZE) + router_size(4, 64, 1))),
        (
            {"experts": 3, "rank": 5, "hidden": 8},
            LAYERS * (2 * (2 * 5 * (WIDTH + HIDDEN_SIZE) + WIDTH + HIDDEN_SIZE) + router_size(3, 8, 1)),
        ),
        (
            {"kind": "neuron", "hidden": 8},
            LAYERS * (2 * WIDTH * HIDDEN_SIZE + WIDTH + HIDDEN_SIZE)
            + LAYERS * (router_size(2, 8, WIDTH) + router_size(2, 8, HIDDEN_SIZE)),
        ),
        (
            {"modules": ("attention",)},
            LAYERS * (4 * (HIDDEN_SIZE * HIDDEN_SIZE + HIDDEN_SIZE) + router_size(2, 64, 1)),
        ),
    ],
)
def test_it_adds_what_the_formula_says(settings: dict[str, Any], expected: int) -> None:
    plain, supernet = tiny_supernet(), tiny_supernet()
    mixture = Mixture.over(supernet, **settings)
    assert mixture.added_parameters == expected
    sizes = [sum(p.numel() for p in one.model.parameters()) for one in (supernet, plain)]
    assert sizes[0] - sizes[1] == expected


def test_the_estimate_states_its_memory_before_training() -> None:
    """Weights, gradient and two moments of what is added, and the weights that are generated for the full network."""
    plain, supernet = tiny_supernet(), tiny_supernet()
    mixture = Mixture.over(supernet)
    settings = TuneSettings(steps=2, batch_size=8, order_fraction=-1.0, precision="float32")
    more = estimate(supernet, ToyTask(), settings).memory_bytes - estimate(plain, ToyTask(), settings).memory_bytes
    generated = LAYERS * 2 * WIDTH * HIDDEN_SIZE
    small = 4 * LAYERS * 2 * 100
    assert (
        16 * mixture.added_parameters + 4 * generated <= more <= 16 * mixture.added_parameters + 4 * generated + small
    )


# -- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a mixture whose parameters are not what they were at first."""
    supernet = tiny_supernet(id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1})
    supernet.space = supernet.space.reordered((2, 0, 1))
    mixture = Mixture.over(supernet, kind="neuron", experts=3, rank=2, modules=("attention", "ffn"), dropout=0.1)
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter.add_(0.1)
    save_supernet(supernet, tmp_path / "supernet", tiny_tokenizer(tmp_path), {"hash_then": supernet.hash})
    return tmp_path / "supernet"


def test_a_mixture_survives_saving(folder: Path) -> None:
    supernet, _, record = load_supernet(folder)
    assert supernet.hash == record["hash"] == record["hash_then"]
    mixture = supernet.trained_source
    assert isinstance(mixture, Mixture)
    assert mixture.settings == MixtureSettings(
        kind="neuron", experts=3, rank=2, modules=("attention", "ffn"), dropout=0.1
    )
    assert not mixture.training
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(tiny_model().state_dict())
    architecture = supernet.space.decode(supernet.space.middle)
    with supernet.active(architecture), torch.no_grad():
        logits = supernet(**tiny_inputs()).logits
        assert torch.equal(supernet.extract(architecture)(**tiny_inputs()).logits, logits)


def rewrite(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **metadata: str) -> Path:
    path = folder / MIXTURE_FILE
    with safe_open(path, framework="pt") as file:
        old_metadata, old = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(old if tensors is None else tensors, path, metadata={**old_metadata, **metadata})
    return path


def test_routers_of_another_space_are_refused_with_both_fingerprints(folder: Path) -> None:
    other = tiny_supernet()
    ours, theirs = other.space.fingerprint, tiny_space(order=(2, 0, 1)).fingerprint
    with pytest.raises(ValueError, match=f"read architectures of the space {theirs}, but this .* is {ours}; use them"):
        load_mixture(folder / MIXTURE_FILE, other)
    assert other.trained_source is None


def test_a_mixture_of_a_model_of_another_size_is_refused(folder: Path) -> None:
    narrower = Supernet.wrap(tiny_model(hidden_size=16), tiny_space(order=(2, 0, 1)))
    with pytest.raises(ValueError, match="is not one of this model: size mismatch"):
        load_mixture(folder / MIXTURE_FILE, narrower)
    assert narrower.trained_source is None


@pytest.mark.parametrize("settings", ["{", "[]", '{"modules": ["ffn"], "depth": 3}'])
def test_damaged_settings_are_refused(folder: Path, settings: str) -> None:
    rewrite(folder, settings=settings)
    with pytest.raises(ValueError, match=r"mixture\.safetensors is not a readable mixture .*make the supernet again"):
        load_supernet(folder)


def test_a_truncated_file_is_refused(folder: Path) -> None:
    path = folder / MIXTURE_FILE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"mixture\.safetensors is not a readable mixture"):
        load_supernet(folder)


def test_other_experts_are_noticed(folder: Path) -> None:
    with safe_open(folder / MIXTURE_FILE, framework="pt") as file:
        tensors = {name: file.get_tensor(name) + 1 for name in file.keys()}  # noqa: SIM118 - not a mapping
    rewrite(folder, tensors)
    with pytest.raises(ValueError, match="are not the ones its record describes"):
        load_supernet(folder)


def test_the_folder_is_no_model_to_start_from(folder: Path) -> None:
    with pytest.raises(ValueError, match=f"{re.escape(str(folder))} is a mixture of supernets.*exported from it"):
        load_classifier(str(folder), ("no", "yes"))
