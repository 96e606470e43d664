"""The estimate of a training run: what it counts, and that it leaves no trace."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from kernels.op_spec import Context
from studies.errors import ResourceError
from supernets import estimate as estimating
from supernets.estimate import Estimate, estimate
from supernets.finetune import TuneSettings, trainable
from supernets.recipe import Recipe, plain_recipe
from tests.toy_task import ToyTask, tiny_supernet

SETTINGS = TuneSettings(steps=10, batch_size=8, order_fraction=-1.0)
RUN = Estimate(steps=10, step_passes=1.5, step_seconds=2.0, fixed_seconds=5.0, memory_bytes=100)


@pytest.mark.parametrize("training", [True, False])
def test_it_leaves_no_trace(training: bool) -> None:
    supernet, task = tiny_supernet(), ToyTask()
    supernet.model.train(training)
    first = next(supernet.model.parameters()).requires_grad_(False)
    weights, randomness = supernet.hash, torch.get_rng_state()
    estimate(supernet, task, SETTINGS)
    assert supernet.hash == weights
    assert torch.equal(torch.get_rng_state(), randomness)
    assert supernet.model.training is training
    assert not first.requires_grad
    assert all(parameter.grad is None for parameter in supernet.model.parameters())


def test_memory_is_weights_moments_and_kept_activations() -> None:
    supernet, task = tiny_supernet(), ToyTask()
    found = estimate(supernet, task, SETTINGS)
    total = sum(p.numel() for p in supernet.model.parameters())
    trained = sum(p.numel() for p in trainable(supernet.model, True).values())
    assert trained < total
    activations = found.memory_bytes - 4 * total - 12 * trained
    layer_outputs = supernet.space.num_layers * 8 * 8 * 32 * 4
    assert layer_outputs < activations < 40 * layer_outputs
    doubled = estimate(supernet, task, replace(SETTINGS, batch_size=16))
    assert 1.8 * activations < doubled.memory_bytes - 4 * total - 12 * trained < 2.1 * activations
    thawed = estimate(supernet, task, replace(SETTINGS, freeze_embeddings=False))
    assert thawed.memory_bytes > found.memory_bytes + 12 * (total - trained) - 1


def test_an_update_may_need_more_than_the_activations() -> None:
    """Few short sentences: activations are small beside the second moments' square roots."""
    supernet, task = tiny_supernet(intermediate_size=4096), ToyTask()
    found = estimate(supernet, task, replace(SETTINGS, batch_size=1))
    total = sum(p.numel() for p in supernet.model.parameters())
    assert found.memory_bytes == 4 * total + 16 * sum(p.numel() for p in trainable(supernet.model, True).values())


def test_time_scales_with_the_networks_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimating, "_timings", lambda *_: (3.0, 1.0, 0.5))
    supernet, task = tiny_supernet(), ToyTask()
    space = supernet.space

    def found(recipe: Recipe, order_fraction: float = -1.0) -> Estimate:
        return estimate(supernet, task, replace(SETTINGS, recipe=recipe, order_fraction=order_fraction))

    def step_seconds(recipe: Recipe, order_fraction: float = -1.0) -> float:
        return found(recipe, order_fraction).step_seconds

    context = Context(batch=8, sequences=(8,))
    share = supernet.count_macs(space.decode(space.smallest), context) / supernet.count_macs(
        space.decode(space.largest), context
    )
    assert step_seconds(plain_recipe()) == 3.5
    assert step_seconds(Recipe(sampling="smallest")) == pytest.approx(3 * (1 + share) + 0.5)
    assert step_seconds(Recipe(sampling="smallest"), 0.25) == pytest.approx(3 * (1 + 0.75 * share) + 0.5)
    assert 3 * (1 + 2 * share) < step_seconds(Recipe(subnets=2)) < 9.5
    single = Recipe(sampling="single-path")
    assert step_seconds(single) == pytest.approx(step_seconds(Recipe()) - 3)
    assert found(Recipe(sampling="smallest"), 0.25).step_passes == pytest.approx(1 + 0.75 * share)
    tried = found(Recipe(candidates=3))  # three forward passes cost what one pass there and back does
    assert tried.step_passes - 1 == pytest.approx(2 * (tried.step_seconds - 3.5) / 6, rel=1e-6)


def test_what_comes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three layers: importance tries three networks of two layers, then two of one."""
    monkeypatch.setattr(estimating, "_timings", lambda *_: (3.0, 1.0, 0.5))
    task, batch = ToyTask(), 8

    def fixed_seconds(**changes: Any) -> float:
        settings = replace(SETTINGS, **{"watched_examples": 0, "recipe": Recipe(gamma=0.0), **changes})
        return estimate(tiny_supernet(), task, settings).fixed_seconds

    judging = task.size("validation") / batch
    assert fixed_seconds() == pytest.approx(judging)
    ordering = 2 * (3 + (3 * 2 + 2 * 1) / 3)
    assert fixed_seconds(order_fraction=0.0, importance_batches=2) == pytest.approx(judging + ordering)
    teaching = (task.size("train") + task.size("validation")) / batch
    assert fixed_seconds(recipe=Recipe()) == pytest.approx(judging + teaching)
    watching = estimating.WATCHES * 16 / batch
    assert judging + watching < fixed_seconds(watched_examples=16) < judging + 3 * watching


def test_arithmetic() -> None:
    assert RUN.seconds == 25
    assert RUN.lasting(3).seconds == 11
    assert RUN.steps_within(25.0) == 10
    both = RUN + Estimate(steps=10, step_passes=1.0, step_seconds=1.0, fixed_seconds=0.0, memory_bytes=300)
    assert (both.seconds, both.memory_bytes) == (35, 300)
    assert (RUN.steps_costing(30.0), both.steps_costing(30.0), RUN.steps_costing(1.0)) == (20, 12, 1)
    with pytest.raises(ValueError, match=r"a time budget of 6 s is too short: one step takes 7 s"):
        RUN.steps_within(6.0)


def test_out_of_memory_names_a_smaller_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(estimating, "_activation_bytes", full)
    with pytest.raises(ResourceError, match="with 8 examples a batch; try --batch-size 4"):
        estimate(tiny_supernet(), ToyTask(), SETTINGS)
