"""Builds a supernet inside the Hugging Face `Trainer`, with the losses, sub-networks and ordering of the plain loop.

Needs the extra ``trainer`` (accelerate). One process and one device: the ranks of a distributed run would each measure
their own order of importance.

Shapes: B batch, N training examples, C classes.
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from supernets.importance import order_by_importance
from supernets.recipe import Candidates, Recipe
from supernets.space import SearchSpace
from supernets.supernet import Supernet

INDEX = "index"
"""Input column with an example's position in the training set, by which recorded teacher logits are found."""

SPACE_FILE = "search_space.json"
"""The search space, with the layer order once measured, in every checkpoint the trainer writes."""


class InstaTuneTrainer(Trainer):
    """A `Trainer` whose steps train the full network and the recipe's sub-networks, in one backward pass.

    Every argument of `Trainer` but `model` works as usual; evaluation and prediction see the full network, unless they
    run inside ``supernet.active(...)``. A resumed run goes on with the order of units and layers it had.
    """

    loss_is_scaled_for_ga = False

    def __init__(
        self,
        supernet: Supernet,
        args: TrainingArguments,
        *,
        recipe: Recipe | None = None,
        teacher: Tensor | nn.Module | None = None,
        order_step: int = 0,
        importance_batches: int = 8,
        **options: Any,
    ) -> None:
        """Prepare training.

        Args:
            teacher: the strong teacher's logits [N, C] on the training set, whose rows then carry their position in
                column ``index`` (set ``remove_unused_columns=False``), or the teacher itself.
            order_step: optimiser step before which importance is measured; up to there the full network trains alone.
                Negative means never reorder.
            importance_batches: training batches on which importance is measured.

        Raises:
            ValueError: the recipe needs a teacher that is missing or chooses among candidates, recorded logits could
                not be looked up, or the run is distributed.
        """
        self.recipe = recipe or Recipe()
        if self.recipe.needs_teacher and teacher is None:
            raise ValueError("gamma > 0 distils from a strong teacher: give one, or set gamma to 0")
        if self.recipe.candidates > 1:
            raise ValueError("the Trainer has no losses to choose candidates by: set candidates to 1, or use the Tuner")
        if isinstance(teacher, Tensor) and args.remove_unused_columns:
            raise ValueError(f"recorded teacher logits need the column {INDEX!r}: set remove_unused_columns to False")
        if args.world_size > 1 or args.n_gpu > 1:
            raise ValueError(f"one device at a time, got {max(args.world_size, args.n_gpu)}: start a single process")
        self.supernet, self.teacher = supernet, teacher
        self.order_step, self.importance_batches = order_step, importance_batches
        self._ordered = order_step < 0
        super().__init__(supernet.model, args, **options)
        if isinstance(teacher, nn.Module):
            self.teacher = teacher.to(args.device).eval()

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **options: Any) -> Tensor:
        """Forward and backward of one batch, after ordering by importance where it is due."""
        if self.state.global_step == self.order_step and not self._ordered:
            self._order(model)
        return super().training_step(model, inputs, *args, **options)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Sum of the losses of the full network and the step's sub-networks; in evaluation the hard loss alone."""
        indices = inputs.pop(INDEX, None)
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        teacher_BC, full_BC, losses = self._teacher_logits(inputs, indices), None, []
        is_elastic = self.state.global_step >= self.order_step
        if self.recipe.trains_full or not is_elastic:
            outputs = model(**inputs)
            losses.append(self.recipe.full_loss(self._hard_loss(outputs), outputs.logits, teacher_BC))
            full_BC = outputs.logits.detach()
        for (architecture,) in self._drawn() if is_elastic else []:
            with self.supernet.active(architecture):
                outputs = model(**inputs)
            losses.append(self.recipe.subnet_loss(self._hard_loss(outputs), outputs.logits, full_BC, teacher_BC))
        loss = torch.stack(losses).sum()
        return (loss, outputs) if return_outputs else loss

    def _drawn(self) -> list[Candidates]:
        """The sub-networks of this step."""
        step, alone = self.state.global_step, max(self.order_step, 0)
        progress = (step - alone) / max(1, self.state.max_steps - alone)
        return self.recipe.sample(self.supernet.space, self.args.seed, step, progress=max(0.0, min(progress, 1.0)))

    def _hard_loss(self, outputs: Any) -> Tensor:
        """The model's own loss on the labels; 0 for unlabelled text."""
        loss: Tensor = outputs.logits.new_zeros(()) if outputs.loss is None else outputs.loss
        return loss

    @torch.no_grad()
    def _teacher_logits(self, inputs: dict[str, Any], indices: Tensor | None) -> Tensor | None:
        if not self.recipe.needs_teacher:
            return None
        if isinstance(self.teacher, nn.Module):
            unlabelled = {name: value for name, value in inputs.items() if name != "labels"}
            logits: Tensor = self.teacher(**unlabelled).logits
            return logits
        if indices is None:
            raise ValueError(f"recorded teacher logits are found by position: add column {INDEX!r} to the training set")
        assert self.teacher is not None
        return self.teacher[indices.to(self.teacher.device)].to(self.args.device)

    def _order(self, model: nn.Module) -> None:
        """Measure importance on the first batches of a fresh pass over the training data; random states are kept."""

        def loss(inputs: dict[str, Any]) -> Tensor:
            tensors = dict(self._prepare_inputs(inputs))
            indices = tensors.pop(INDEX, None)
            outputs = model(**tensors)
            teacher_BC = self._teacher_logits(tensors, indices)
            return self.recipe.full_loss(self._hard_loss(outputs), outputs.logits, teacher_BC)

        with torch.random.fork_rng(devices=[]):
            batches = list(islice(self.get_train_dataloader(), self.importance_batches))
        assert self.optimizer is not None
        order_by_importance(self.supernet, batches, loss, self.optimizer)
        self._ordered = True

    # -- checkpoints --------------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        folder = Path(output_dir or self.args.output_dir or ".")
        (folder / SPACE_FILE).write_text(json.dumps(self.supernet.space.to_json(), indent=2) + "\n")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_space(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.state.best_model_checkpoint is not None:
            self._load_space(self.state.best_model_checkpoint)

    def _load_space(self, folder: str) -> None:
        """The layer order in which the weights of a checkpoint are."""
        path = Path(folder) / SPACE_FILE
        try:
            self.supernet.space = SearchSpace.from_json(json.loads(path.read_text()))
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not readable ({error}): resume from another checkpoint") from error
