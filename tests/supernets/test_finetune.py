"""Training: its gradients, its resumption after a kill, its refusals, and that it learns."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from studies.errors import ResourceError
from supernets.finetune import TuneProgress, Tuner, TuneSettings, tune
from supernets.recipe import Recipe, distilled, plain_recipe
from supernets.space import SearchSpace
from supernets.supernet import Supernet
from supernets.task import TRAIN, Batch
from supernets.training_state import TrainingState
from tests.toy_task import ToyTask, tiny_supernet

OWN_TEACHER = Recipe(gamma=0.0)
NO_DROPOUT: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def settings(**changes: Any) -> TuneSettings:
    fields: dict[str, Any] = {
        "steps": 8,
        "batch_size": 16,
        "learning_rate": 1e-3,
        "order_fraction": 0.5,
        "importance_batches": 2,
        "recipe": OWN_TEACHER,
        "save_seconds": 0.0,
        "watched_examples": 0,
        "precision": "float32",
    }
    return TuneSettings(**{**fields, **changes})


def teacher_logits(seed: int = 0) -> Tensor:
    return torch.randn(64, 2, generator=torch.Generator().manual_seed(seed))


class Killed(Tuner):
    """Dies at the beginning of a step."""

    last_step = -1

    def train_step(self, batch: Batch) -> float:
        if self.state.step == self.last_step:
            raise KeyboardInterrupt
        return super().train_step(batch)


def run_until(step: int, supernet: Supernet, **options: Any) -> None:
    tuner = Killed(supernet, ToyTask(), options.pop("settings", settings()), **options)
    tuner.last_step = step
    with pytest.raises(KeyboardInterrupt):
        list(tuner.run())


def weights(supernet: Supernet) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in supernet.model.state_dict().items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


# -- one step -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe",
    [
        OWN_TEACHER,
        Recipe(gamma=1.0, subnets=2),
        Recipe(gamma=0.5, sampling="sandwich"),
        Recipe(sampling="single-path", subnets=2),
        Recipe(sampling="sandwich", alpha=1.0, subnet_alpha=0.0, gamma=0.0, divergence="alpha"),
        plain_recipe(),
    ],
)
def test_a_step_sums_the_losses_and_gradients_of_its_networks(recipe: Recipe) -> None:
    """The oracle is one backward pass through the sum of the losses, with the supernet's logits detached."""
    task, teacher = ToyTask(), teacher_logits()
    supernet = tiny_supernet(**NO_DROPOUT)
    batch = next(iter(task.batches(TRAIN, 16, seed=0)))
    assert batch.labels is not None
    supernet.model.train()
    strong = teacher[batch.indices]
    logits, total = supernet(**batch.inputs).logits, torch.zeros(())
    if recipe.trains_full:
        total = recipe.full_loss(task.loss(logits, batch.labels), logits, strong)
    for (architecture,) in recipe.sample(supernet.space, 0, 0):
        with supernet.active(architecture):
            sub = supernet(**batch.inputs).logits
        total = total + recipe.subnet_loss(task.loss(sub, batch.labels), sub, logits.detach(), strong)
    total.backward()  # type: ignore[no-untyped-call]
    expected = {n: p.grad.clone() for n, p in supernet.model.named_parameters() if p.grad is not None}

    other = tiny_supernet(**NO_DROPOUT)
    tuner = Tuner(
        other, task, settings(recipe=recipe, order_fraction=-1, max_gradient_norm=1e9), teacher_logits_NC=teacher
    )
    found: dict[str, Tensor] = {}
    tuner.optimizer.register_step_pre_hook(
        lambda *_: found.update({n: p.grad.clone() for n, p in tuner.parameters.items() if p.grad is not None})
    )
    assert tuner.train_step(batch) == pytest.approx(float(total.detach()), rel=1e-5)
    assert found.keys() == {name for name in expected if ".embeddings." not in name}
    for name, gradient in found.items():
        assert torch.allclose(gradient, expected[name], rtol=1e-4, atol=1e-6), name


def test_of_several_candidates_the_one_with_the_lowest_loss_is_trained() -> None:
    supernet, trained = tiny_supernet(**NO_DROPOUT), []
    recipe = Recipe(gamma=0.0, candidates=4)
    tuner = Tuner(supernet, ToyTask(), settings(steps=4, recipe=recipe, order_fraction=-1), cost=lambda _: 1.0)
    (candidates,) = tuner._drawn()
    batch = next(iter(ToyTask().batches(TRAIN, 16, seed=0)))
    assert batch.labels is not None
    losses = {}
    with torch.no_grad():
        for architecture in candidates:
            with supernet.active(architecture):
                losses[architecture] = float(ToyTask().loss(supernet(**batch.inputs).logits, batch.labels))
    supernet.model.register_forward_hook(
        lambda *_: trained.append(supernet.seam.architecture) if torch.is_grad_enabled() else None
    )
    tuner.train_step(batch)
    assert len(losses) == 4
    assert trained == [None, min(losses, key=losses.__getitem__)]


def test_before_the_order_step_the_full_network_trains_alone() -> None:
    elastic, full = tiny_supernet(), tiny_supernet()
    run_until(4, elastic, settings=settings(steps=10, recipe=Recipe(alpha=1.0)))
    run_until(4, full, settings=settings(steps=10, recipe=plain_recipe(), order_fraction=-1))
    assert equal(weights(elastic), weights(full))
    run_until(6, elastic := tiny_supernet(), settings=settings(steps=10, recipe=Recipe(alpha=1.0)))
    run_until(6, full := tiny_supernet(), settings=settings(steps=10, recipe=plain_recipe(), order_fraction=-1))
    assert not equal(weights(elastic), weights(full))


def test_gradients_are_clipped_and_rates_follow_the_schedule() -> None:
    tuner = Tuner(tiny_supernet(), ToyTask(), settings(steps=4, warmup_fraction=0.5, max_gradient_norm=0.1))
    norms, rates = [], []

    def watch(*_: object) -> None:
        gradients = [p.grad.norm() for p in tuner.parameters.values() if p.grad is not None]
        norms.append(float(torch.stack(gradients).norm()))
        rates.append(tuner.optimizer.param_groups[0]["lr"])

    tuner.optimizer.register_step_pre_hook(watch)
    list(tuner.run())
    assert all(norm <= 0.1 * 1.001 for norm in norms)
    assert rates == pytest.approx([0.5e-3, 1e-3, 1e-3, 0.5e-3])


@pytest.mark.parametrize("frozen", [True, False])
def test_embeddings_are_frozen_or_not(frozen: bool) -> None:
    supernet = tiny_supernet()
    before = weights(supernet)
    tune(supernet, ToyTask(), settings(steps=2, freeze_embeddings=frozen))
    after = weights(supernet)
    embeddings = [name for name in before if name.endswith("word_embeddings.weight")]
    assert equal({n: before[n] for n in embeddings}, after) == frozen
    assert not equal({n: before[n] for n in before if "classifier" in n}, after)


# -- whole runs -----------------------------------------------------------------------------------------------------


def test_it_learns_and_the_sub_networks_learn_too() -> None:
    supernet, reports = tiny_supernet(), list[TuneProgress]()
    state = tune(
        supernet,
        ToyTask(sizes=(256, 64, 32)),
        settings(steps=60, batch_size=32, learning_rate=3e-3, freeze_embeddings=False, watched_examples=64),
        on_progress=reports.append,
    )
    assert isinstance(state, TrainingState)
    assert state.step == 60
    assert sorted(state.layer_order or ()) == [0, 1, 2]
    assert supernet.space.layer_order == state.layer_order
    assert reports[-1].loss < 0.2 * reports[0].loss
    quality = reports[-1].quality
    assert quality.keys() == {"largest", "middle", "smallest"}
    assert min(quality.values()) > 0.9
    assert [report.step for report in reports] == list(range(3, 61, 3))
    assert reports[-1].remaining_seconds == 0
    assert not supernet.model.training


def test_the_same_seed_gives_the_same_bits_and_another_one_others() -> None:
    runs = []
    for seed in (3, 3, 4):
        supernet = tiny_supernet()
        tune(supernet, ToyTask(), settings(seed=seed, steps=4))
        runs.append(weights(supernet))
    assert equal(runs[0], runs[1])
    assert not equal(runs[0], runs[2])


def test_a_distilled_full_network_needs_no_labels() -> None:
    class Unlabelled(ToyTask):
        def batches(self, *args: Any, **options: Any) -> Any:
            for batch in super().batches(*args, **options):
                yield Batch(inputs=batch.inputs, labels=None, indices=batch.indices)

    supernet = tiny_supernet()
    before = weights(supernet)
    recipe = distilled(Recipe())
    tune(supernet, Unlabelled(), settings(recipe=recipe, steps=2), teacher_logits_NC=teacher_logits())
    assert not equal(before, weights(supernet))


# -- kill and resume ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[dict[str, Tensor], tuple[int, ...] | None]:
    supernet = tiny_supernet()
    state = tune(supernet, ToyTask(), settings())
    return weights(supernet), state.layer_order


@pytest.mark.parametrize("steps", [(2,), (4,), (5,), (1, 3, 4, 7)])
def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(
    steps: tuple[int, ...], tmp_path: Path, uninterrupted: tuple[dict[str, Tensor], tuple[int, ...] | None]
) -> None:
    """Killed before, at and after the step that orders units and layers (step 4, also the end of an epoch)."""
    file = tmp_path / "state.safetensors"
    for step in steps:
        run_until(step, tiny_supernet(), state_file=file)
    supernet = tiny_supernet()
    tuner = Tuner(supernet, ToyTask(), settings(), state_file=file)
    assert tuner.state.step == steps[-1]
    list(tuner.run())
    assert equal(weights(supernet), uninterrupted[0])
    assert tuner.state.layer_order == supernet.space.layer_order == uninterrupted[1]
    assert not list(tmp_path.glob("*.partial"))


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    first = tiny_supernet()
    done = tune(first, ToyTask(), settings(steps=3), state_file=file)
    again = tiny_supernet()
    tuner = Tuner(again, ToyTask(), settings(steps=3), state_file=file)
    assert not list(tuner.run())
    assert (tuner.state.step, tuner.state.layer_order) == (3, done.layer_order)
    assert again.hash == first.hash


def narrower_supernet() -> Supernet:
    supernet = tiny_supernet()
    supernet.space = SearchSpace("bert", 3, (0, 1, 2), supernet.space.choices[:-1])
    return supernet


@pytest.mark.parametrize(
    ("supernet", "task", "changed"),
    [
        (tiny_supernet(), ToyTask(), {"learning_rate": 2e-3}),
        (tiny_supernet(), ToyTask(seed=1), {}),
        (narrower_supernet(), ToyTask(), {}),
    ],
    ids=["settings", "task", "space"],
)
def test_the_state_of_another_run_is_refused(
    supernet: Supernet, task: ToyTask, changed: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "state.safetensors"
    run_until(1, tiny_supernet(), state_file=file)
    before = weights(supernet)
    with pytest.raises(ValueError, match="belongs to a run with other settings, data or space"):
        Tuner(supernet, task, settings(**changed), state_file=file)
    assert equal(before, weights(supernet))


@pytest.mark.parametrize("harmless", [{"save_seconds": 9.0}, {"watched_examples": 7}])
def test_settings_that_decide_no_weight_may_change(harmless: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    run_until(1, tiny_supernet(), state_file=file)
    assert Tuner(tiny_supernet(), ToyTask(), settings(**harmless), state_file=file).state.step == 1


def test_an_unreadable_state_is_refused_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    run_until(1, tiny_supernet(), state_file=file)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"is not a readable training state .* delete it to start again"):
        Tuner(tiny_supernet(), ToyTask(), settings(), state_file=file)
    assert file.stat().st_size == 1000
    save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="belongs to a run with other settings"):
        Tuner(tiny_supernet(), ToyTask(), settings(), state_file=file)


# -- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe(gamma=1.0), "gamma > 0 distils from a strong teacher"),
        (Recipe(gamma=0.0, sampling="full"), "sampling full with alpha < 1 needs a strong teacher"),
    ],
)
def test_a_missing_teacher_is_named(recipe: Recipe, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tuner(tiny_supernet(), ToyTask(), settings(recipe=recipe))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"steps": 0}, "steps and batch size must be at least 1"),
        ({"batch_size": 0}, "steps and batch size must be at least 1"),
        ({"learning_rate": math.nan}, "learning rate must be positive"),
        ({"order_fraction": 1.0}, "order_fraction must be below 1"),
    ],
)
def test_impossible_settings_are_refused(field: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**field)


def test_a_loss_that_is_not_a_number_names_the_step_and_leaves_the_saved_state(tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    run_until(2, tiny_supernet(), state_file=file)
    saved = file.read_bytes()
    supernet = tiny_supernet()
    tuner = Tuner(supernet, ToyTask(), settings(), state_file=file)
    supernet.model.get_parameter("classifier.bias").data.fill_(math.nan)
    with pytest.raises(
        ValueError, match="the loss is nan and its gradient's norm nan at step 2: lower the learning rate"
    ):
        list(tuner.run())
    assert file.read_bytes() == saved


def test_a_gradient_that_is_not_finite_changes_no_weight(tmp_path: Path) -> None:
    supernet = tiny_supernet()
    tuner = Tuner(supernet, ToyTask(), settings())
    bias: Any = supernet.model.get_parameter("classifier.bias")
    bias.register_hook(lambda gradient: gradient * math.inf)
    before = weights(supernet)
    with pytest.raises(ValueError, match=r"and its gradient's norm (inf|nan) at step 0: lower the learning rate"):
        list(tuner.run())
    assert equal(before, weights(supernet))


def test_running_out_of_memory_names_a_batch_that_may_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    task = ToyTask()
    monkeypatch.setattr(task, "loss", exhausted)
    with pytest.raises(ResourceError, match="out of memory with 16 examples a batch; try --batch-size 8"):
        tune(tiny_supernet(), task, settings(order_fraction=-1))


def test_other_errors_keep_their_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Tensor:
        raise RuntimeError("shape mismatch")

    task = ToyTask()
    monkeypatch.setattr(task, "loss", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        tune(tiny_supernet(), task, settings(order_fraction=-1))
