"""What every file in `supernets/recipes` promises: legal networks, losses that fall, runs that resume."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor

from supernets.finetune import Tuner, TuneSettings
from supernets.recipe import RECIPES, Recipe, load_recipe
from supernets.task import TRAIN
from tests.toy_task import ToyTask, tiny_supernet

NAMES = RECIPES.names()
STEPS = 24


@pytest.fixture(params=NAMES)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return load_recipe(request.param)


def teacher_logits() -> Tensor:
    """A teacher that is right and sure of it."""
    labels_N = ToyTask().data[TRAIN][1]
    return 4.0 * torch.nn.functional.one_hot(labels_N, 2).float()


def tuner(recipe: Recipe, state_file: Path | None = None) -> Tuner:
    settings = TuneSettings(
        steps=STEPS, batch_size=16, learning_rate=5e-3, recipe=recipe, precision="float32", save_seconds=0.0,
        freeze_embeddings=False, watched_examples=0,
    )  # fmt: skip
    return Tuner(tiny_supernet(), ToyTask(), settings, teacher_logits_NC=teacher_logits(), state_file=state_file)


def test_a_recipe_survives_json(recipe: Recipe) -> None:
    again = Recipe(**json.loads(json.dumps(asdict(recipe))))
    assert again == recipe
    assert hash(again) == hash(recipe)


def test_every_network_is_in_the_space_and_a_function_of_seed_and_step(recipe: Recipe) -> None:
    run = tuner(recipe)
    space = run.supernet.space
    for step in range(10):
        drawn = recipe.sample(space, 3, step, progress=step / 10, classes=run.classes)
        assert drawn == recipe.sample(space, 3, step, progress=step / 10, classes=run.classes)
        assert all(1 <= len(candidates) <= recipe.candidates for candidates in drawn)
        for candidates in drawn:
            for architecture in candidates:
                assert space.decode(space.encode(architecture)) == architecture


def test_training_teaches_sub_networks(recipe: Recipe) -> None:
    """The middle network's loss falls, whoever taught it."""
    task, run = ToyTask(), tuner(recipe)
    middle = run.supernet.space.decode(run.supernet.space.middle)

    def loss() -> float:
        with torch.no_grad(), run.supernet.active(middle):
            run.model.eval()
            batches = list(task.batches(TRAIN, 64))
            return sum(
                float(task.loss(run.supernet(**b.inputs).logits, b.labels)) for b in batches if b.labels is not None
            )

    before = loss()
    list(run.run())
    assert loss() < before


def test_a_stopped_run_goes_on_bit_by_bit(recipe: Recipe, tmp_path: Path) -> None:
    whole = tuner(recipe)
    list(whole.run())
    stopped = tuner(recipe, tmp_path / "state.safetensors")
    for progress in stopped.run():
        if progress.step == STEPS // 2:
            break
    resumed = tuner(recipe, tmp_path / "state.safetensors")
    assert 0 < resumed.state.step <= STEPS // 2
    list(resumed.run())
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_an_unknown_recipe_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown recipe 'club'; known are .*sandwich-distilled.*supernets/recipes/"):
        load_recipe("club")
