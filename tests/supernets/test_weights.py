"""The views that elastic modules keep between forward passes never go stale."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from supernets.space import Architecture
from supernets.supernet import Supernet
from supernets.weights import ElasticLayers, ElasticLinear, SlicedWeights, Slot
from tests.toy_task import tiny_inputs, tiny_model, tiny_space, tiny_supernet


@torch.no_grad()
def active_logits(supernet: Supernet, architecture: Architecture) -> Tensor:
    with supernet.active(architecture):
        logits: Tensor = supernet(**tiny_inputs()).logits
    return logits


def optimiser_step(supernet: Supernet) -> None:
    optimizer = torch.optim.SGD(supernet.model.parameters(), lr=0.1)
    supernet(**tiny_inputs()).logits.sum().backward()
    optimizer.step()


def assign_another_state(supernet: Supernet) -> None:
    supernet.model.load_state_dict(tiny_model(seed=9).state_dict(), assign=True)


def assign_other_biases(supernet: Supernet) -> None:
    biases = {name: t for name, t in tiny_model(seed=9).state_dict().items() if name.endswith(".bias")}
    supernet.model.load_state_dict(biases, strict=False, assign=True)


def copy_another_state(supernet: Supernet) -> None:
    supernet.model.load_state_dict(tiny_model(seed=9).state_dict())


def to_double(supernet: Supernet) -> None:
    supernet.model.double()


def reorder(supernet: Supernet) -> None:
    supernet.reorder({(g.axis, g.layer): list(reversed(range(g.units))) for g in supernet.groups})


@pytest.mark.parametrize(
    "change", [optimiser_step, assign_another_state, assign_other_biases, copy_another_state, to_double, reorder]
)
def test_no_change_of_the_weights_leaves_stale_views(change: Callable[[Supernet], None]) -> None:
    supernet = tiny_supernet()
    architecture = supernet.space.decode(supernet.space.smallest)
    before = active_logits(supernet, architecture)
    change(supernet)
    after = active_logits(supernet, architecture)
    with torch.no_grad():
        assert torch.equal(after, supernet.extract(architecture)(**tiny_inputs()).logits)
    assert not torch.equal(after, before)


def test_switching_to_and_fro_gives_the_same_bits() -> None:
    supernet = tiny_supernet()
    small, middle = (supernet.space.decode(g) for g in (supernet.space.smallest, supernet.space.middle))
    first, other = active_logits(supernet, small), active_logits(supernet, middle)
    assert torch.equal(active_logits(supernet, small), first)
    assert torch.equal(active_logits(supernet, middle), other)
    assert not torch.equal(first, other)


def test_views_kept_without_gradients_do_not_stop_gradients() -> None:
    supernet = tiny_supernet()
    architecture = supernet.space.decode(supernet.space.smallest)
    expected = active_logits(supernet, architecture)
    with supernet.active(architecture):
        logits = supernet(**tiny_inputs()).logits
    assert torch.equal(logits, expected)
    logits.sum().backward()
    weights = [m.weight for m in supernet.model.modules() if isinstance(m, ElasticLinear)]
    assert sum(weight.grad is not None for weight in weights) == 6


class DoubledWeights(SlicedWeights):
    """A source that computes its answer instead of looking it up."""

    def weights(
        self, slot: Slot, weight_OI: Tensor, bias_O: Tensor | None, architecture: Architecture
    ) -> tuple[Tensor, Tensor | None]:
        weight, bias = super().weights(slot, weight_OI, bias_O, architecture)
        return 2 * weight, bias


def test_active_and_extract_ask_the_same_source() -> None:
    doubled = Supernet(tiny_model(), tiny_space(), source=DoubledWeights())
    architecture = doubled.space.decode(doubled.space.middle)
    before = active_logits(doubled, architecture)
    assert not torch.equal(before, active_logits(tiny_supernet(), architecture))
    for change in (optimiser_step, to_double):
        change(doubled)
        logits = active_logits(doubled, architecture)
        with torch.no_grad():
            assert torch.equal(doubled.extract(architecture)(**tiny_inputs()).logits, logits)
        assert not torch.equal(logits, before)


@pytest.mark.parametrize("training", [True, False])
def test_wrapping_and_unwrapping_keep_the_mode(training: bool) -> None:
    model = tiny_model().train(training)
    supernet = Supernet.wrap(model, tiny_space())
    assert {module.training for module in model.modules()} == {training}
    elastic = [m for m in model.modules() if isinstance(m, ElasticLinear | ElasticLayers)]
    model.train(not training)
    assert {module.training for module in elastic} == {not training}
    supernet.unwrap()
    assert {module.training for module in model.modules()} == {not training}


def test_a_layer_without_bias_is_sliced_and_restored() -> None:
    model = tiny_model()
    dense = model.get_submodule("bert.encoder.layer.0.output.dense")
    assert isinstance(dense, nn.Linear)
    dense.register_parameter("bias", None)
    supernet = Supernet.wrap(model, tiny_space())
    assert active_logits(supernet, supernet.space.decode(supernet.space.smallest)).isfinite().all()
    restored = supernet.unwrap().get_submodule("bert.encoder.layer.0.output.dense")
    assert type(restored) is nn.Linear
    assert restored.bias is None
