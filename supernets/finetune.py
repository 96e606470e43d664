"""Builds a supernet while fine-tuning it: one resumable loop for plain, distilled and weight-sharing training.

A step runs the networks of the recipe, one backward pass each, then one optimiser step. After a
share of the steps, which train the full network alone, units and layers are put in order of importance and become
elastic. All randomness is a function of (seed, step), so that a resumed run continues bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kernels.op_spec import Context
from studies.errors import ResourceError
from studies.records import content_hash
from supernets.cost_classes import Cost, CostClasses
from supernets.evaluation import Precision, autocast, evaluate, is_out_of_memory, resolve_precision
from supernets.importance import order_by_importance
from supernets.recipe import Candidates, Recipe, learning_rate_factor, step_seed
from supernets.space import Architecture, SearchSpace
from supernets.supernet import Supernet
from supernets.task import TRAIN, UNLABELLED, VALIDATION, Batch, Task
from supernets.training_state import TrainingState, load_state, save_state


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneSettings:
    """How a network or supernet is trained.

    Attributes:
        steps: optimiser steps.
        order_fraction: share of the steps that train the full network alone, before importance is measured; 0 where
            the weights already know the task, negative to never reorder.
        importance_batches: training batches on which importance is measured.
        freeze_embeddings: keep the embedding tables as pre-trained.
        precision: ``auto`` is bfloat16 autocast where the device has it.
        save_seconds: how often the training state is written.
        watched_examples: validation examples on which three sub-networks are watched; 0 for none.
    """

    steps: int
    batch_size: int = 32
    learning_rate: float = 2e-4
    weight_decay: float = 0.01
    warmup_fraction: float = 0.1
    max_gradient_norm: float = 1.0
    recipe: Recipe = field(default_factory=Recipe)
    order_fraction: float = 0.0
    importance_batches: int = 4
    freeze_embeddings: bool = True
    device: str = "cpu"
    precision: Precision = "auto"
    seed: int = 0
    save_seconds: float = 60.0
    watched_examples: int = 256

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(f"steps and batch size must be at least 1, got {self.steps} and {self.batch_size}")
        if not self.learning_rate > 0:
            raise ValueError(f"the learning rate must be positive, got {self.learning_rate}")
        if self.order_fraction >= 1:
            raise ValueError(f"order_fraction must be below 1, got {self.order_fraction}")

    @property
    def fingerprint(self) -> str:
        """Identity of everything that decides the trained weights."""
        ignored = {"save_seconds", "watched_examples"}
        return content_hash({k: v for k, v in asdict(self).items() if k not in ignored})

    @property
    def order_step(self) -> int:
        """Step before which importance is measured; -1 for never."""
        return -1 if self.order_fraction < 0 else int(self.steps * self.order_fraction)


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneProgress:
    """What is shown while training.

    Attributes:
        loss: mean over the steps since the last report.
        seconds: spent so far, earlier runs included.
        remaining_seconds: at the pace of this run.
        quality: metric of ``largest``, ``middle`` and ``smallest`` on the watched examples, where just measured.
    """

    step: int
    steps: int
    loss: float
    seconds: float
    remaining_seconds: float
    quality: dict[str, float]


OnProgress = Callable[[TuneProgress], None]


class Tuner:
    """Trains one supernet on one task.

    ``for progress in Tuner(...).run(): print(progress)`` is the whole plain loop.
    """

    def __init__(
        self,
        supernet: Supernet,
        task: Task,
        settings: TuneSettings,
        *,
        teacher_logits_NC: Tensor | None = None,
        state_file: Path | None = None,
        cost: Cost | None = None,
    ) -> None:
        """Prepare training, and resume from `state_file` if it exists.

        Args:
            teacher_logits_NC: the strong teacher's logits on the training split, needed where the recipe uses one.
            state_file: where the training state is kept; None trains without.
            cost: by which a recipe with candidates forms classes; default multiply-accumulates at the median length.

        Raises:
            ValueError: the recipe needs a teacher that is missing, or the state belongs to another run.
        """
        if settings.recipe.needs_teacher and teacher_logits_NC is None:
            raise ValueError("gamma > 0 distils from a strong teacher: give one, or set gamma to 0")
        if settings.recipe.needs_teacher is False and settings.recipe.alpha < 1 and settings.recipe.sampling == "full":
            raise ValueError("sampling full with alpha < 1 needs a strong teacher: give one, or set alpha to 1")
        self.supernet, self.task, self.settings = supernet, task, settings
        self.classes = CostClasses(cost or median_macs(supernet, task), settings.seed)
        self.teacher_logits_NC = teacher_logits_NC
        self.state_file = state_file
        self.precision = resolve_precision(settings.precision, settings.device)
        self.model = supernet.model.to(settings.device)
        self.parameters = trainable(self.model, settings.freeze_embeddings)
        self.optimizer = make_optimizer(self.parameters, settings)
        self.identity = content_hash([settings.fingerprint, task.fingerprint, supernet.hash])
        self.state = TrainingState(identity=self.identity)
        if state_file is not None and state_file.exists():
            self.state = load_state(state_file, supernet.model, self.optimizer, self.parameters, self.identity)
            if self.state.layer_order is not None:
                supernet.space = supernet.space.reordered(self.state.layer_order)

    def run(self) -> Iterator[TuneProgress]:
        """Train to the end, reporting about 20 times; the supernet is left in evaluation mode."""
        settings, start = self.settings, time.monotonic()
        spent, first = self.state.seconds, self.state.step
        report_every = max(1, settings.steps // 20)
        saved, losses = start, []
        for batch in self._batches(first):
            losses.append(self._guarded_step(batch))
            now = time.monotonic()
            self.state.seconds = spent + now - start
            done = self.state.step == settings.steps
            if done or self.state.step % report_every == 0:
                pace = (now - start) / (self.state.step - first)
                yield TuneProgress(
                    step=self.state.step,
                    steps=settings.steps,
                    loss=sum(losses) / len(losses),
                    seconds=self.state.seconds,
                    remaining_seconds=pace * (settings.steps - self.state.step),
                    quality=self._watch() if done or self.state.step % (5 * report_every) == 0 else {},
                )
                losses = []
            if self.state_file and (done or time.monotonic() - saved > settings.save_seconds):
                save_state(self.state_file, self.state, self.supernet.model, self.optimizer, self.parameters)
                saved = time.monotonic()
        self.model.eval()

    def _batches(self, first: int) -> Iterator[Batch]:
        size = self.settings.batch_size
        per_epoch = math.ceil(self.task.size(TRAIN) / size)
        step = first
        while step < self.settings.steps:
            epoch, position = divmod(step, per_epoch)
            epoch_batches = self.task.batches(TRAIN, size, seed=self.settings.seed * 1000 + epoch)
            for batch in islice(epoch_batches, position, position + self.settings.steps - step):
                yield batch
                step += 1

    def _guarded_step(self, batch: Batch) -> float:
        if self.state.step == self.settings.order_step:
            self._order()
        try:
            loss = self.train_step(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise ResourceError(
                f"out of memory with {len(batch)} examples a batch; try --batch-size {max(1, len(batch) // 2)}"
            ) from error
        return loss

    def train_step(self, batch: Batch) -> float:
        """One optimiser step; returns the summed loss.

        Raises:
            ValueError: the loss or its gradient is not finite; the weights are left as they were before the step.
        """
        settings, recipe, step = self.settings, self.settings.recipe, self.state.step
        torch.manual_seed(step_seed(settings.seed, step))
        self.model.train()
        teacher = None
        if recipe.needs_teacher:
            assert self.teacher_logits_NC is not None
            teacher = self.teacher_logits_NC[batch.indices].to(settings.device)
        batch, total, full_BC = batch.to(settings.device), 0.0, None
        if recipe.trains_full or not self._is_elastic:
            logits, hard = self._forward(batch)
            total += _backward(recipe.full_loss(hard, logits, teacher))
            full_BC = logits.detach()
        for candidates in self._drawn() if self._is_elastic else []:
            with self.supernet.active(self._best(candidates, batch)):
                logits, hard = self._forward(batch)
                total += _backward(recipe.subnet_loss(hard, logits, full_BC, teacher))
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), settings.max_gradient_norm))
        if not (math.isfinite(total) and math.isfinite(norm)):
            self.optimizer.zero_grad(set_to_none=True)
            raise ValueError(
                f"the loss is {total} and its gradient's norm {norm} at step {step}: lower the learning rate "
                f"(now {settings.learning_rate}) or use precision float32"
            )
        factor = learning_rate_factor(step, settings.steps, round(settings.steps * settings.warmup_fraction))
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.state.step += 1
        return total

    @property
    def _is_elastic(self) -> bool:
        return self.state.step >= self.settings.order_step

    def _drawn(self) -> list[Candidates]:
        """The sub-networks of this step."""
        settings, step = self.settings, self.state.step
        alone = max(settings.order_step, 0)
        progress = (step - alone) / (settings.steps - alone)
        return settings.recipe.sample(self.supernet.space, settings.seed, step, progress=progress, classes=self.classes)

    @torch.no_grad()
    def _best(self, candidates: Candidates, batch: Batch) -> Architecture:
        """The candidate with the lowest hard-label loss on the batch (BestUp of AttentiveNAS, arXiv 2011.09011)."""
        if len(candidates) == 1:
            return candidates[0]

        def loss(architecture: Architecture) -> float:
            with self.supernet.active(architecture):
                return float(self._forward(batch)[1])

        return min(candidates, key=loss)

    def _forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits [B, C] and hard-label loss; a batch without labels has loss 0."""
        with autocast(self.precision, self.settings.device):
            logits = self.task.logits(self.supernet, batch)
        hard = logits.new_zeros(()) if batch.labels is None else self.task.loss(logits, batch.labels)
        return logits, hard

    def _order(self) -> None:
        """Measure importance on training data and put units, optimiser moments and layers in that order."""
        settings = self.settings
        batches = list(
            islice(self.task.batches(TRAIN, settings.batch_size, seed=settings.seed), settings.importance_batches)
        )

        def loss(batch: Batch) -> Tensor:
            logits, hard = self._forward(batch.to(settings.device))
            if not settings.recipe.needs_teacher or self.teacher_logits_NC is None:
                return hard
            teacher = self.teacher_logits_NC[batch.indices].to(settings.device)
            return settings.recipe.full_loss(hard, logits, teacher)

        importance = order_by_importance(self.supernet, batches, loss, self.optimizer)
        self.state.layer_order = importance.layer_order

    def _watch(self) -> dict[str, float]:
        """Metric of the largest, middle and smallest network on some validation examples."""
        if not self._is_elastic:
            return {}
        watched_N = self._watched_examples()
        if not watched_N:
            return {}
        quality = {}
        self.model.eval()
        for name, architecture in watched(self.supernet.space).items():
            with self.supernet.active(architecture):
                result = evaluate(
                    self.supernet,
                    self.task,
                    VALIDATION,
                    device=self.settings.device,
                    precision=self.precision,
                    indices=watched_N,
                )
            quality[name] = 1 - result.error
        return quality

    def _watched_examples(self) -> list[int]:
        """The first validation examples that can be judged: where some have no label, those that have one."""
        size, most = self.task.size(VALIDATION), self.settings.watched_examples
        if not size or not self.task.summary().splits[VALIDATION].unlabelled:
            return list(range(min(most, size)))
        known: list[int] = []
        for batch in self.task.batches(VALIDATION, self.settings.batch_size):
            if batch.labels is not None:
                known += batch.indices[batch.labels != UNLABELLED].tolist()
        return sorted(known)[:most]


def tune(supernet: Supernet, task: Task, settings: TuneSettings, **options: Any) -> TrainingState:
    """Train to the end and return the final state; `options` as for `Tuner`, plus ``on_progress``."""
    on_progress: OnProgress | None = options.pop("on_progress", None)
    tuner = Tuner(supernet, task, settings, **options)
    for progress in tuner.run():
        if on_progress is not None:
            on_progress(progress)
    tuner.model.eval()
    return tuner.state


def watched(space: SearchSpace) -> dict[str, Architecture]:
    """The networks whose quality is shown while training; one alone where nothing is elastic."""
    names = {getattr(space, name): name for name in ("smallest", "middle", "largest")}
    return {name: space.decode(genotype) for genotype, name in reversed(names.items())}


def median_macs(supernet: Supernet, task: Task) -> Cost:
    """Multiply-accumulates of a network at the median length of the training data."""
    context = Context(sequences=task.length_quantiles(TRAIN, 1))
    return lambda architecture: float(supernet.count_macs(architecture, context))


def _backward(loss: Tensor) -> float:
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item()


def trainable(model: nn.Module, freeze_embeddings: bool) -> dict[str, nn.Parameter]:
    """Decide which parameters receive gradients, and return those by name."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not (freeze_embeddings and ".embeddings." in f".{name}"))
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def make_optimizer(parameters: dict[str, nn.Parameter], settings: TuneSettings) -> torch.optim.AdamW:
    """AdamW without weight decay on biases and norms; a mixture's biases are matrices, a row per expert, and decay."""
    decayed = [p for p in parameters.values() if p.dim() > 1]
    others = [p for p in parameters.values() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, foreach=True)
