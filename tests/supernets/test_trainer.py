"""InstaTune inside the Hugging Face Trainer: the same losses as the plain loop, and runs that learn and resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("accelerate")

from transformers import TrainerCallback, TrainingArguments

from supernets.evaluation import evaluate
from supernets.finetune import Tuner, TuneSettings
from supernets.recipe import Recipe
from supernets.supernet import Supernet
from supernets.task import TRAIN, VALIDATION, Batch
from supernets.trainer import INDEX, SPACE_FILE, InstaTuneTrainer
from tests.toy_mixture import KINDS, mixed
from tests.toy_task import ToyTask, tiny_model, tiny_supernet

OWN_TEACHER = Recipe(gamma=0.0)
NO_DROPOUT: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def rows(task: ToyTask, split: str = TRAIN) -> list[dict[str, Any]]:
    """A data set as the Trainer takes it, with the position of each example."""
    tokens_NT, labels_N = task.data[split]
    return [
        {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": int(label), INDEX: i}
        for i, (tokens, label) in enumerate(zip(tokens_NT, labels_N, strict=True))
    ]


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    fields: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 16,
        "learning_rate": 1e-3,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(**{**fields, **changes})


def teacher_logits() -> Tensor:
    return torch.randn(64, 2, generator=torch.Generator().manual_seed(0))


def trainer(supernet: Supernet, folder: Path, task: ToyTask | None = None, **options: Any) -> InstaTuneTrainer:
    changes = options.pop("changes", {})
    options = {"recipe": OWN_TEACHER, "train_dataset": rows(task or ToyTask()), "importance_batches": 2, **options}
    return InstaTuneTrainer(supernet, arguments(folder, **changes), **options)


def inputs_of(batch: Batch) -> dict[str, Any]:
    return {**batch.inputs, "labels": batch.labels, INDEX: batch.indices}


@pytest.mark.parametrize("recipe", [OWN_TEACHER, Recipe(gamma=1.0, subnets=2), Recipe(gamma=0.5, sampling="sandwich")])
def test_a_step_has_the_loss_of_the_plain_loop(recipe: Recipe, tmp_path: Path) -> None:
    task = ToyTask()
    batch = next(iter(task.batches(TRAIN, 16, seed=0)))
    settings = TuneSettings(steps=6, recipe=recipe, order_fraction=-1, precision="float32", seed=42)
    plain = Tuner(tiny_supernet(**NO_DROPOUT), task, settings, teacher_logits_NC=teacher_logits())
    inside = trainer(tiny_supernet(**NO_DROPOUT), tmp_path, recipe=recipe, teacher=teacher_logits())
    loss = inside.compute_loss(inside.supernet.model.train(), inputs_of(batch))
    assert float(loss.detach()) == pytest.approx(plain.train_step(batch), rel=1e-5)


def test_a_teacher_model_is_asked_for_its_logits(tmp_path: Path) -> None:
    teacher, batch = tiny_model(seed=4), next(iter(ToyTask().batches(TRAIN, 16)))
    with torch.no_grad():
        logits_NC = teacher(input_ids=ToyTask().data[TRAIN][0]).logits
    losses = []
    for given in (teacher.train(), logits_NC):
        inside = trainer(tiny_supernet(**NO_DROPOUT), tmp_path, recipe=Recipe(gamma=1.0), teacher=given)
        losses.append(float(inside.compute_loss(inside.supernet.model.train(), inputs_of(batch)).detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_evaluation_sees_the_hard_loss_of_the_active_network(tmp_path: Path) -> None:
    task, supernet = ToyTask(), tiny_supernet()
    inside = trainer(supernet, tmp_path, eval_dataset=rows(task, VALIDATION))
    full = inside.evaluate()["eval_loss"]
    with supernet.active(supernet.space.decode(supernet.space.smallest)):
        smallest = inside.evaluate()["eval_loss"]
    batch = next(iter(task.batches(VALIDATION, 32)))
    assert batch.labels is not None
    supernet.model.eval()
    with torch.no_grad():
        assert full == pytest.approx(float(task.loss(supernet(**batch.inputs).logits, batch.labels)), rel=1e-4)
    assert smallest != full


def test_it_learns_and_the_sub_networks_learn_too(tmp_path: Path) -> None:
    task, supernet = ToyTask(sizes=(256, 64, 32)), tiny_supernet()
    changes = {"max_steps": 60, "learning_rate": 3e-3, "per_device_train_batch_size": 32}
    trainer(supernet, tmp_path, task, order_step=10, changes=changes).train()
    supernet.model.eval()
    for genotype in (supernet.space.largest, supernet.space.smallest):
        with supernet.active(supernet.space.decode(genotype)):
            assert evaluate(supernet, task, VALIDATION).error < 0.1


def test_importance_is_measured_once_at_its_step(tmp_path: Path) -> None:
    """One step without a learning rate moves nothing but the order."""
    supernet = tiny_supernet(**NO_DROPOUT)
    names = {name: p.detach().clone() for name, p in supernet.model.named_parameters()}
    inside = trainer(supernet, tmp_path, order_step=2, changes={"max_steps": 4, "learning_rate": 0.0})
    inside.train()
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    moved = dict(supernet.model.named_parameters())[name]
    assert not torch.equal(moved, names[name])
    assert sorted(map(tuple, moved.tolist())) == sorted(map(tuple, names[name].tolist()))
    assert torch.equal(dict(supernet.model.named_parameters())["classifier.weight"], names["classifier.weight"])


def test_accumulated_micro_batches_give_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    found = []
    for size, times in ((16, 1), (8, 2)):
        supernet = tiny_supernet(**NO_DROPOUT)
        changes = {"max_steps": 1, "per_device_train_batch_size": size, "gradient_accumulation_steps": times}
        inside = trainer(supernet, tmp_path, order_step=-1, changes={**changes, "max_grad_norm": 0.0, "optim": "sgd"})
        inside.train()
        found.append(torch.cat([p.detach().flatten() for p in supernet.model.parameters()]))
    assert torch.allclose(found[0], found[1], atol=1e-7)
    start = torch.cat([p.detach().flatten() for p in tiny_model(**NO_DROPOUT).parameters()])
    assert not torch.allclose(found[0], start, atol=1e-5)


@pytest.mark.parametrize("make", [tiny_supernet, lambda: mixed(KINDS["neuron"])], ids=["plain", "mixture"])
@pytest.mark.parametrize("saved", [2, 3])
def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(
    saved: int, make: Callable[[], Supernet], tmp_path: Path
) -> None:
    """Resumed at the step that orders units and layers, and after it."""
    ends = []
    for resume in (False, True):
        supernet = make()
        changes = {"save_strategy": "steps", "save_steps": saved}
        inside = trainer(supernet, tmp_path, order_step=2, changes=changes)
        inside.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{saved}") if resume else None)
        ends.append((supernet.hash, supernet.space.layer_order))
    assert ends[0] == ends[1]
    assert ends[0][0] != make().hash


def test_the_best_weights_come_back_with_their_order(tmp_path: Path) -> None:
    """Of a checkpoint from before units and layers were ordered."""
    task, supernet = ToyTask(), tiny_supernet()
    unordered = supernet.space.layer_order
    changes = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    inside = trainer(
        supernet, tmp_path, task, order_step=3, eval_dataset=rows(task, VALIDATION), changes={**changes, **best}
    )
    orders = list[tuple[int, ...]]()

    class Watch(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            orders.append(supernet.space.layer_order)

    inside.add_callback(Watch())
    inside.train()
    assert inside.state.best_model_checkpoint == str(tmp_path / "checkpoint-2"), "the loss falls, and most is best here"
    assert orders[-1] != unordered
    assert supernet.space.layer_order == unordered


def test_a_checkpoint_without_its_space_is_refused(tmp_path: Path) -> None:
    trainer(tiny_supernet(), tmp_path, changes={"save_strategy": "steps", "save_steps": 3}).train()
    (tmp_path / "checkpoint-3" / SPACE_FILE).unlink()
    with pytest.raises(ValueError, match=r"search_space\.json is not readable .*: resume from another checkpoint"):
        trainer(tiny_supernet(), tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_a_missing_teacher_or_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gamma > 0 distils from a strong teacher"):
        trainer(tiny_supernet(), tmp_path, recipe=Recipe(gamma=1.0))
    with pytest.raises(ValueError, match="set remove_unused_columns to False"):
        trainer(tiny_supernet(), tmp_path, teacher=teacher_logits(), changes={"remove_unused_columns": True})
    unnumbered = [{k: v for k, v in row.items() if k != INDEX} for row in rows(ToyTask())]
    inside = trainer(
        tiny_supernet(), tmp_path, recipe=Recipe(gamma=1.0), teacher=teacher_logits(), train_dataset=unnumbered
    )
    with pytest.raises(ValueError, match="add column 'index' to the training set"):
        inside.train()
