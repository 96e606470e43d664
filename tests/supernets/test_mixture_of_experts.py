"""Mixtures of supernets over mixture-of-experts models: fused experts and attention blended by the architecture."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from supernets.checkpoint import load_supernet, save_supernet
from supernets.elastic import inverse
from supernets.mixture import Mixture
from supernets.space import Architecture
from supernets.supernet import Supernet
from supernets.weights import SlicedWeights, Slot
from tests.toy_families import toy_family_model, toy_family_supernet
from tests.toy_mixture import architectures, scrambled, source_of, units_left_alone
from tests.toy_moe import toy_batches
from tests.toy_reduced import logits, logits_of, reduced_supernet, reloaded
from tests.toy_task import LAYERS, tiny_tokenizer

BLENDED = 3
CHOICES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral, by layer": ("mixtral", {"kind": "layer", "modules": ("experts",)}),
    "qwen3, by expert": ("qwen3_moe", {"kind": "neuron", "modules": ("experts",)}),
    "qwen3, low rank": ("qwen3_moe", {"kind": "layer", "modules": ("experts",), "rank": 3}),
    "mixtral, with attention": ("mixtral", {"kind": "neuron", "modules": ("experts", "attention"), "rank": 2}),
    "qwen3, attention alone": ("qwen3_moe", {"kind": "layer", "modules": ("attention",)}),
    "side by side, biased": ("gpt_oss", {"kind": "layer", "modules": ("experts",)}),
    "side by side, biased, low rank": ("gpt_oss", {"kind": "neuron", "modules": ("experts",), "rank": 3}),
    "groups of experts": ("deepseek_v3", {"kind": "neuron", "modules": ("experts",)}),
}


@pytest.fixture(params=list(CHOICES))
def choice(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def fresh(choice: str) -> Supernet:
    kind, options = CHOICES[choice]
    supernet = toy_family_supernet(kind)
    Mixture.over(supernet, experts=BLENDED, hidden=16, **options)
    return supernet


@pytest.fixture
def trained(fresh: Supernet) -> Supernet:
    return scrambled(fresh)


def loss_of(supernet: Supernet, architecture: Architecture | None = None) -> Tensor:
    with supernet.active(architecture):
        loss: Tensor = supernet(**toy_batches(batches=1)[0]).logits.square().mean()
    return loss


def narrow(supernet: Supernet) -> Architecture:
    """All layers, each as small as can be."""
    depth, *_ = supernet.space.largest
    return supernet.space.decode((depth, *supernet.space.smallest[1:]))


def fused_of(supernet: Supernet) -> list[tuple[Slot, Tensor, Tensor | None]]:
    return [weight for block in supernet.experts.values() for weight in block.fused()]


# -- weights --------------------------------------------------------------------------------------------------------


def test_every_network_starts_with_the_bits_of_the_plain_supernet(fresh: Supernet, choice: str) -> None:
    kind, _ = CHOICES[choice]
    plain, model = toy_family_supernet(kind), toy_family_model(kind)
    for architecture in architectures(plain):
        assert torch.equal(logits_of(fresh, architecture), logits_of(plain, architecture))
    with fresh.active(None):
        assert torch.equal(logits(fresh), logits(model))


def test_fused_weights_are_the_softmax_mean_of_the_experts(trained: Supernet) -> None:
    """In float64, one fused matrix after the other: mixed first, as full matrices, and sliced afterwards."""
    mixture, plain = source_of(trained), SlicedWeights()
    for architecture in architectures(trained):
        for slot, weight, bias in fused_of(trained):
            found = mixture.weights(slot, weight, bias, architecture)
            if slot.name.replace(".", "/") not in mixture.deltas:
                expected = (weight, bias)
            else:
                expected = slow_mean(mixture, slot, weight, bias, architecture)
            for ours, theirs in zip(found, plain.weights(slot, *expected, architecture), strict=True):
                if ours is not None and theirs is not None:
                    torch.testing.assert_close(ours.double(), theirs.double(), atol=1e-6, rtol=1e-5)


def slow_mean(
    mixture: Mixture, slot: Slot, weight: Tensor, bias: Tensor | None, architecture: Architecture
) -> tuple[Tensor, Tensor | None]:
    key = slot.name.replace(".", "/")
    own = {name: p.detach().double() for name, p in mixture.deltas[key].named_parameters()}
    group = slot.weight_cuts[0].group
    owner = key if mixture.settings.kind == "neuron" else f"{group.axis}/{group.layer}"
    router = {name: p.detach().double() for name, p in mixture.routers[owner].named_parameters()}
    features_F = torch.tensor(mixture.encoding.vector(architecture), dtype=torch.float64)
    hidden_H = (router["hidden_HF"] @ features_F + router["hidden_H"]).clamp(min=0)
    weights, biases = [], []
    for expert in range(len(weight)):
        row = expert if mixture.settings.kind == "neuron" else 0
        beta_M = torch.softmax(router["logit_OMH"][row] @ hidden_H + router["logit_OM"][row], dim=0)
        if "delta_EOI" in own:
            deltas = [own["delta_EOI"][i, expert] for i in range(BLENDED - 1)]
        else:
            deltas = [own["up_EOR"][i, expert] @ own["down_ERI"][i, expert] for i in range(BLENDED - 1)]
        weights.append(blended(weight[expert].double(), deltas, beta_M))
        if bias is not None:
            biases.append(blended(bias[expert].double(), [own["bias_EO"][i, expert] for i in (0, 1)], beta_M))
    return torch.stack(weights), torch.stack(biases) if biases else None


def blended(mean: Tensor, deltas: list[Tensor], beta_M: Tensor) -> Tensor:
    """The paper's form: all M experts, of which the parameter is the mean, weighed by a softmax."""
    last = mean - sum(deltas, torch.zeros_like(mean)) / BLENDED
    experts = [*(last + delta for delta in deltas), last]
    return sum((beta * expert for beta, expert in zip(beta_M, experts, strict=True)), torch.zeros_like(mean))


def test_active_equals_extracted_equals_reloaded(trained: Supernet, choice: str, tmp_path: Path) -> None:
    plain = toy_family_supernet(CHOICES[choice][0])
    for number, architecture in enumerate(architectures(trained, 2)):
        active = logits_of(trained, architecture)
        extracted: Any = trained.extract(architecture)
        assert torch.equal(logits(extracted), active)
        assert torch.equal(logits(reloaded(extracted, tmp_path / str(number))), active)
        mixed = any(f"/{layer.index}/" in name for layer in architecture.layers for name in source_of(trained).deltas)
        assert torch.equal(active, logits_of(plain, architecture)) is not mixed
        assert list(extracted.state_dict()) == list(plain.extract(architecture).state_dict())
        assert trained.count_parameters(architecture) == sum(p.numel() for p in extracted.parameters())
    assert torch.equal(logits_of(trained, architectures(trained)[1]), logits(trained))


def test_a_change_of_the_experts_is_noticed(trained: Supernet) -> None:
    architecture = narrow(trained)
    before = logits_of(trained, architecture)
    assert torch.equal(logits_of(trained, architecture), before)
    with torch.no_grad():
        for deltas in source_of(trained).deltas.values():
            for parameter in deltas.parameters():
                parameter.mul_(1.5)
    after = logits_of(trained, architecture)
    assert not torch.equal(after, before)
    assert torch.equal(logits(trained.extract(architecture)), after)


def test_a_mixture_survives_saving(tmp_path: Path) -> None:
    supernet = toy_family_supernet("qwen3_moe")
    Mixture.over(supernet, modules=("experts", "attention"), rank=2)
    scrambled(supernet)
    save_supernet(supernet, tmp_path / "supernet", tiny_tokenizer(tmp_path), {})
    again, _, _ = load_supernet(tmp_path / "supernet")
    assert again.hash == supernet.hash
    for architecture in architectures(supernet, 1):
        torch.testing.assert_close(logits_of(again, architecture), logits_of(supernet, architecture))


# -- training -------------------------------------------------------------------------------------------------------


def test_training_moves_every_delta_and_router(fresh: Supernet) -> None:
    """Routers follow once the deltas have left zero."""
    mixture = source_of(fresh)
    before = {name: parameter.detach().clone() for name, parameter in mixture.named_parameters()}
    optimizer = torch.optim.SGD(fresh.model.parameters(), lr=0.1)
    fresh.model.train()
    for architecture in (None, narrow(fresh), None):
        loss_of(fresh, architecture).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    stayed = [name for name, p in mixture.named_parameters() if torch.equal(p, before[name])]
    assert not stayed


def test_a_slice_leaves_the_rest_of_the_experts_alone(trained: Supernet) -> None:
    architecture = narrow(trained)
    loss_of(trained, architecture).backward()  # type: ignore[no-untyped-call]
    assert units_left_alone(trained, architecture) > 10


def test_reordering_permutes_the_experts_too(trained: Supernet) -> None:
    before, identity = logits_of(trained, architectures(trained)[1]), trained.hash
    rng = random.Random(5)
    orders = {(group.axis, group.layer): rng.sample(range(group.units), group.units) for group in trained.groups}
    trained.reorder(orders)
    assert trained.hash != identity
    torch.testing.assert_close(logits_of(trained, architectures(trained)[1]), before, atol=1e-4, rtol=1e-4)
    trained.reorder({key: inverse(order) for key, order in orders.items()})
    assert trained.hash == identity


# -- limits ---------------------------------------------------------------------------------------------------------


def test_it_adds_what_the_formula_says() -> None:
    """Of Mixtral's 8 experts of 16 inner units, 24 wide: one delta of both weights, one router for each layer."""
    supernet = toy_family_supernet("mixtral")
    mixture = Mixture.over(supernet, modules=("experts",), hidden=8)
    router = 8 * (len(mixture.encoding) + 1) + 2 * (8 + 1)
    assert mixture.added_parameters == LAYERS * (8 * (3 * 16 * 24) + router)


def test_experts_that_operators_reduce_are_refused() -> None:
    supernet = reduced_supernet("mixtral")
    with pytest.raises(ValueError, match=r"an operator reduces cannot be mixed.*without operators, or mix attention"):
        Mixture.over(supernet, modules=("experts",))
    assert supernet.trained_source is None


def test_reduced_experts_stand_beside_mixed_attention() -> None:
    supernet = reduced_supernet("mixtral")
    Mixture.over(supernet, modules=("attention",))
    scrambled(supernet)
    for architecture in architectures(supernet):
        assert torch.equal(logits(supernet.extract(architecture)), logits_of(supernet, architecture))


def test_what_could_be_mixed_instead_is_named() -> None:
    with pytest.raises(ValueError, match="no elastic ffn to mix; it has attention and experts"):
        Mixture.over(toy_family_supernet("mixtral"))
    with pytest.raises(ValueError, match="no elastic experts to mix; it has ffn and attention"):
        Mixture.over(toy_family_supernet("bert"), modules=("experts",))


def test_a_rank_beyond_the_experts_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rank 17 exceeds the 16 of .*experts\.down_proj; choose"):
        Mixture.over(toy_family_supernet("mixtral"), modules=("experts",), rank=17)
