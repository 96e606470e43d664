"""What every kind of mixture promises: layer-wise or neuron-wise, full or low rank, whatever modules are mixed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kernels.op_spec import Context
from supernets.elastic import inverse
from supernets.finetune import Tuner, make_optimizer
from supernets.mixture import Mixture
from supernets.recipe import Recipe
from supernets.space import FFN_WIDTH, HEADS, Architecture, LayerChoice
from supernets.supernet import Supernet
from supernets.weights import SlicedWeights, Slot
from tests.toy_mixture import (
    EXPERTS,
    KINDS,
    SETTINGS,
    a_mixed_module,
    active_logits,
    architectures,
    gradients,
    is_mixed,
    logits,
    loss_of,
    mixed,
    scrambled,
    source_of,
    units_left_alone,
)
from tests.toy_task import ToyTask, tiny_inputs, tiny_model, tiny_supernet


@pytest.fixture(params=list(KINDS))
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return KINDS[request.param]


@pytest.fixture
def fresh(options: dict[str, Any]) -> Supernet:
    return mixed(options)


@pytest.fixture
def trained(fresh: Supernet) -> Supernet:
    return scrambled(fresh)


# -- the start ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["bert", "electra"])
@pytest.mark.parametrize("training", [False, True])
def test_every_network_starts_with_the_bits_of_the_plain_supernet(
    options: dict[str, Any], model_type: str, training: bool
) -> None:
    plain, mixture = tiny_supernet(model_type), mixed(options, model_type)
    for supernet in (plain, mixture):
        supernet.model.train(training)
    for architecture in (None, *architectures(plain)):
        torch.manual_seed(0)
        expected = active_logits(plain, architecture)
        torch.manual_seed(0)
        assert torch.equal(active_logits(mixture, architecture), expected)


def test_making_it_is_a_function_of_the_seed_alone(options: dict[str, Any]) -> None:
    state = torch.get_rng_state()
    first, again, other = (mixed({**options, "seed": seed}) for seed in (0, 0, 1))
    assert first.hash == again.hash != other.hash
    torch.manual_seed(0)
    assert mixed(options).hash == first.hash
    torch.set_rng_state(state)


# -- the weights ----------------------------------------------------------------------------------------------------


def test_weights_are_the_softmax_mean_of_the_experts(trained: Supernet, options: dict[str, Any]) -> None:
    """The paper's own form in float64: every expert as a full matrix, mixed first and sliced afterwards."""
    mixture, plain = source_of(trained), SlicedWeights()
    for architecture in architectures(trained):
        for name, linear in trained.elastic.items():
            found = mixture.weights(linear.slot, linear.weight, linear.bias, architecture)
            if is_mixed(trained, name):
                experts_MOI, experts_MO = experts_of(mixture, name, linear.weight, linear.bias)
                beta_MO = coefficients_of(mixture, name, architecture, options)
                weight = (beta_MO[..., None] * experts_MOI).sum(0)
                expected = plain.weights(linear.slot, weight, (beta_MO * experts_MO).sum(0), architecture)
                assert found[1] is not None
                assert expected[1] is not None
                torch.testing.assert_close(found[0].double(), expected[0], atol=1e-6, rtol=1e-5)
                torch.testing.assert_close(found[1].double(), expected[1], atol=1e-6, rtol=1e-5)
            else:
                assert torch.equal(found[0], plain.weights(linear.slot, linear.weight, None, architecture)[0])


def experts_of(mixture: Mixture, name: str, weight_OI: Tensor, bias_O: Tensor) -> tuple[Tensor, Tensor]:
    """All M experts, of which the model's parameters are the mean and the deltas the differences from the last."""
    own = {n: p.double() for n, p in mixture.deltas[name.replace(".", "/")].named_parameters()}
    delta_EOI = own["delta_EOI"] if "delta_EOI" in own else own["up_EOR"] @ own["down_ERI"]
    results = []
    for mean, delta in ((weight_OI.double(), delta_EOI), (bias_O.double(), own["bias_EO"])):
        last = mean - delta.sum(0) / EXPERTS
        results.append(torch.stack([*(last + one for one in delta), last]))
    return results[0], results[1]


def coefficients_of(mixture: Mixture, name: str, architecture: Architecture, options: dict[str, Any]) -> Tensor:
    """Softmax over experts [M, O], or [M, 1] where the layer shares it; written out as loops over outputs."""
    axis = "heads" if ".attention." in name else "ffn_width"
    layer = name.split(".layer.")[1].split(".")[0]
    owner = f"{axis}/{layer}" if options["kind"] == "layer" else name.replace(".", "/")
    own = {n: p.double() for n, p in mixture.routers[owner].named_parameters()}
    features_F = torch.tensor(mixture.encoding.vector(architecture), dtype=torch.float64)
    hidden_H = (own["hidden_HF"] @ features_F + own["hidden_H"]).clamp(min=0)
    rows = [
        torch.softmax(weight_MH @ hidden_H + bias_M, dim=0)
        for weight_MH, bias_M in zip(own["logit_OMH"], own["logit_OM"], strict=True)
    ]
    return torch.stack(rows, dim=1)


def test_active_equals_extracted_equals_reloaded(trained: Supernet, tmp_path: Path) -> None:
    plain = tiny_supernet()
    for number, architecture in enumerate(architectures(trained)):
        active = active_logits(trained, architecture)
        extracted: Any = trained.extract(architecture)
        assert torch.equal(logits(extracted), active)
        assert not torch.equal(active, active_logits(plain, architecture))
        assert list(extracted.state_dict()) == list(plain.extract(architecture).state_dict())
        extracted.save_pretrained(tmp_path / str(number))
        reloaded = type(extracted).from_pretrained(tmp_path / str(number)).eval()
        assert torch.equal(logits(reloaded), active)
    assert torch.equal(active_logits(trained, None), active_logits(trained, architectures(trained)[1]))


def test_networks_count_what_plain_ones_count(trained: Supernet) -> None:
    plain, context = tiny_supernet(), Context(batch=2, sequences=(8,))
    for architecture in architectures(trained):
        counted = trained.count_parameters(architecture)
        assert counted == sum(p.numel() for p in trained.extract(architecture).parameters())
        assert counted == plain.count_parameters(architecture)
        assert trained.ops(architecture, context) == plain.ops(architecture, context)


def test_a_uniform_layout_is_as_good(trained: Supernet) -> None:
    layers = tuple(LayerChoice(index=i, units=((FFN_WIDTH, 32), (HEADS, 4))) for i in (0, 2))
    extracted = trained.extract(Architecture(layers), "uniform")
    assert torch.equal(logits(extracted), active_logits(trained, Architecture(layers)))
    assert type(extracted) is type(tiny_model())


# -- training -------------------------------------------------------------------------------------------------------


def test_gradients_reach_the_router_and_all_experts(fresh: Supernet) -> None:
    mixture = source_of(fresh)
    optimizer = torch.optim.SGD(fresh.model.parameters(), lr=0.01)
    (architecture,) = architectures(fresh)[1:2]
    for step in range(2):
        loss_of(fresh, architecture).backward()  # type: ignore[no-untyped-call]
        for name, parameter in mixture.named_parameters():
            moves_later = ("routers" in name or "down_" in name) and step == 0
            assert parameter.grad is not None
            each = parameter.grad.flatten(1) if "deltas" in name else parameter.grad.flatten()[None]
            assert bool(each.any(dim=1).all()) is not moves_later, f"{name} in step {step}"
        optimizer.step()
        optimizer.zero_grad()


def test_experts_separate_in_training(fresh: Supernet) -> None:
    tuner = Tuner(fresh, ToyTask(), replace(SETTINGS, steps=8))
    list(tuner.run())
    for deltas in source_of(fresh).deltas.values():
        first, second = dict(deltas.named_parameters())["bias_EO"]
        assert min(first.norm(), second.norm()) > 0
        assert torch.cosine_similarity(first, second, dim=0) < 0.99
    small, large = architectures(fresh)[:2]
    linear = a_mixed_module(fresh, small.layers[0].index)
    rows = [source_of(fresh).weights(linear.slot, linear.weight, linear.bias, a)[0] for a in (small, large)]
    assert not torch.equal(rows[0], rows[1][: rows[0].shape[0], : rows[0].shape[1]])


def test_a_slice_leaves_the_rest_of_the_experts_alone(trained: Supernet) -> None:
    architecture = architectures(trained)[0]
    loss_of(trained, architecture).backward()  # type: ignore[no-untyped-call]
    assert units_left_alone(trained, architecture) > 100


def test_accumulated_gradients_are_those_of_the_sum(trained: Supernet) -> None:
    networks = architectures(trained)[:3]
    for architecture in networks:
        for seed in (0, 1):
            loss_of(trained, architecture, seed).backward()  # type: ignore[no-untyped-call]
    accumulated = gradients(trained)
    torch.stack([loss_of(trained, a, seed) for a in networks for seed in (0, 1)]).sum().backward()  # type: ignore[no-untyped-call]
    for name, gradient in gradients(trained).items():
        torch.testing.assert_close(accumulated[name], gradient, atol=1e-4, rtol=1e-4)


def test_checkpointed_activations_give_the_same_gradients(options: dict[str, Any]) -> None:
    supernet = scrambled(mixed({**options, "dropout": 0.3}))
    supernet.model.train()
    networks, found = architectures(supernet)[:2], []
    wraps: list[Any] = [lambda forward: forward(), partial(checkpoint, use_reentrant=False)]
    for wrap in wraps:
        torch.manual_seed(0)
        for architecture in networks:
            with supernet.active(architecture):
                wrap(lambda: supernet(**tiny_inputs()).logits).square().sum().backward()
        found.append(gradients(supernet))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_weights_are_generated_once_per_network_and_step(fresh: Supernet, monkeypatch: pytest.MonkeyPatch) -> None:
    mixture = source_of(fresh)
    asked: list[tuple[str, Architecture]] = []
    blend = mixture._blend

    def counted(slot: Slot, weight: Tensor, bias: Tensor | None, network: Architecture) -> tuple[Tensor, Tensor | None]:
        asked.append((slot.name, network))
        return blend(slot, weight, bias, network)

    monkeypatch.setattr(mixture, "_blend", counted)
    recipe = Recipe(gamma=0.0, sampling="smallest")
    tuner = Tuner(fresh, ToyTask(), replace(SETTINGS, order_fraction=-1.0, recipe=recipe))
    tuner.train_step(next(ToyTask().batches("train", 8)))
    assert len(asked) == len(set(asked))
    assert {network for _, network in asked} == {fresh.seam.largest, fresh.space.decode(fresh.space.smallest)}


def test_router_dropout_acts_in_training_only(options: dict[str, Any]) -> None:
    supernet = scrambled(mixed({**options, "dropout": 0.5}))
    for module in supernet.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    architecture = architectures(supernet)[0]
    assert torch.equal(active_logits(supernet, architecture), active_logits(scrambled(mixed(options)), architecture))
    supernet.model.train()
    assert not torch.equal(active_logits(supernet, architecture), active_logits(supernet, architecture))


def test_autocast_leaves_the_weights_alone(trained: Supernet) -> None:
    architecture = architectures(trained)[2]
    linear = a_mixed_module(trained)
    ask = partial(source_of(trained).weights, linear.slot, linear.weight, linear.bias, architecture)
    outside = ask()[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ask()[0]
        low = active_logits(trained, architecture)
        assert torch.equal(logits(trained.extract(architecture)), low)
    assert torch.equal(inside, outside)
    assert low.dtype is torch.bfloat16
    torch.testing.assert_close(low.float(), active_logits(trained, architecture), atol=0.1, rtol=0.1)


def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(options: dict[str, Any], tmp_path: Path) -> None:
    """Interrupted before and after the step that orders units and layers."""
    configured = replace(SETTINGS, order_fraction=0.5, save_seconds=0.0)
    straight = mixed(options)
    list(Tuner(straight, ToyTask(), configured).run())
    for steps in (2, 5):
        tuner = Tuner(mixed(options), ToyTask(), configured, state_file=tmp_path / "state")
        for progress in tuner.run():
            if progress.step == steps:
                break
    resumed = mixed(options)
    list(Tuner(resumed, ToyTask(), configured, state_file=tmp_path / "state").run())
    assert resumed.hash == straight.hash
    assert source_of(resumed).encoding == source_of(straight).encoding


# -- order ----------------------------------------------------------------------------------------------------------


def test_reordering_permutes_the_experts_too(trained: Supernet) -> None:
    before, identity = active_logits(trained, None), trained.hash
    rng = random.Random(5)
    orders = {(group.axis, group.layer): rng.sample(range(group.units), group.units) for group in trained.groups}
    optimizer = make_optimizer(dict(trained.model.named_parameters()), SETTINGS)
    loss_of(trained).backward()  # type: ignore[no-untyped-call]
    expected = gradients(trained)
    optimizer.zero_grad()
    trained.reorder(orders, companions=[expected])
    assert (active_logits(trained, None) - before).abs().max() < 1e-5
    loss_of(trained).backward()  # type: ignore[no-untyped-call]
    for name, gradient in gradients(trained).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-3, rtol=1e-3)
    trained.reorder({key: inverse(order) for key, order in orders.items()})
    assert trained.hash == identity


# -- mistakes -------------------------------------------------------------------------------------------------------


def test_extracting_in_training_mode_is_refused(trained: Supernet) -> None:
    trained.model.train()
    with pytest.raises(ValueError, match=r"in training mode: call eval\(\) on its model, then extract"):
        trained.extract(architectures(trained)[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, o: Mixture.over(s, **o), "a mixture already: mix a supernet once"),
        (lambda s, o: s.unwrap(), "weights for every architecture and no plain model: extract one"),
        (lambda s, o: Mixture.over(Supernet.fixed(tiny_model()), **o), "has no elastic .* to mix"),
    ],
)
def test_what_cannot_be_mixed(
    fresh: Supernet, options: dict[str, Any], call: Callable[[Supernet, dict[str, Any]], object], message: str
) -> None:
    before = fresh.hash
    with pytest.raises(ValueError, match=message):
        call(fresh, options)
    assert fresh.hash == before
