"""What a repair is: a few steps that heal a model whose experts were reduced, on unlabelled text of the task.

A variant in `supernets/repairs` is one repair; its `REPAIR` is an instance whose `name` is the file's name.

Shapes: B batch, L sequence, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from studies.discovery import VariantFolder
from supernets.calibration import Batch
from supernets.expert_bank import moe_layers

REPAIRS = VariantFolder(package="supernets.repairs", attribute="REPAIR", kind="repair")


@dataclass(frozen=True, kw_only=True, slots=True)
class RepairSettings:
    """How much to do.

    Attributes:
        steps: optimiser steps, one batch each; the batches are taken in turn.
        learning_rate: at the first step; falls to 0 in a straight line.
        temperature: divides the logits that are compared.
    """

    steps: int = 60
    learning_rate: float = 1e-3
    temperature: float = 1.0


class Repair(ABC):
    """One way to heal. Stateless and deterministic; it leaves the teacher as it was."""

    name: ClassVar[str]
    defaults: ClassVar[RepairSettings] = RepairSettings()

    @abstractmethod
    def parameters(self, student: nn.Module) -> Mapping[str, nn.Parameter]:
        """What it may change, by dotted name."""

    @abstractmethod
    def repair(
        self,
        student: nn.Module,
        teacher: nn.Module,
        batches: Sequence[Batch],
        settings: RepairSettings | None = None,
    ) -> tuple[float, ...]:
        """Change the student in place; the losses along the way.

        Raises:
            ValueError: there are no batches, or a loss is not finite.
        """


class GradientRepair(Repair):
    """Descends a loss with AdamW, everything but `parameters` frozen."""

    @abstractmethod
    def loss(self, student: nn.Module, teacher: nn.Module, batch: Batch, settings: RepairSettings) -> Tensor:
        """What is to fall, a scalar."""

    def repair(
        self,
        student: nn.Module,
        teacher: nn.Module,
        batches: Sequence[Batch],
        settings: RepairSettings | None = None,
    ) -> tuple[float, ...]:
        """One loss per step, taken before the step."""
        settings = settings or self.defaults
        with thawed(student, self.parameters(student)):
            return descend(
                list(self.parameters(student).values()),
                batches,
                lambda batch: self.loss(student, teacher, batch, settings),
                settings,
            )


def repair_named(name: str) -> Repair:
    """The repair of a name; ValueError names the known ones."""
    return cast("Repair", REPAIRS.load(name))


def descend(
    parameters: Sequence[nn.Parameter], batches: Sequence[Batch], loss: Any, settings: RepairSettings
) -> tuple[float, ...]:
    """AdamW without decay of weights over batches in turn; the loss before each step."""
    require_text(batches)
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    losses = []
    for step, batch in enumerate(islice(cycle(batches), settings.steps)):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * (1 - step / settings.steps)
        value = loss(batch)
        losses.append(float(value.detach()))
        if not bool(value.isfinite()):
            raise ValueError(f"the loss became {losses[-1]} at step {step}; choose a smaller learning rate")
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return tuple(losses)


def require_text(batches: Sequence[Batch]) -> None:
    """ValueError if there is none."""
    if not batches:
        raise ValueError("a repair needs at least one batch of text")


@contextmanager
def thawed(model: nn.Module, trainable: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Evaluation mode with gradients for some parameters only; both are undone at the end."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    for parameter in before:
        parameter.requires_grad_(False)
    for parameter in trainable.values():
        parameter.requires_grad_(True)
    try:
        with evaluating(model), torch.enable_grad():
            yield
    finally:
        for parameter, wanted in before.items():
            parameter.requires_grad_(wanted)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, undone at the end."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def divergence(student: nn.Module, teacher: nn.Module, batch: Batch, temperature: float) -> Tensor:
    """``τ² KL(teacher ‖ student)`` of the next token, nats, mean over the next tokens that are no padding."""
    with torch.no_grad():
        teacher_BLV = logits_of(teacher, batch)
    student_log_BLV = (logits_of(student, batch).float() / temperature).log_softmax(-1)
    teacher_log_BLV = (teacher_BLV.float() / temperature).log_softmax(-1)
    each_BL = (teacher_log_BLV.exp() * (teacher_log_BLV - student_log_BLV)).sum(-1)
    mask_BL = batch["attention_mask"].to(each_BL) if "attention_mask" in batch else torch.ones_like(each_BL)
    return temperature**2 * (each_BL[:, :-1] * mask_BL[:, 1:]).sum() / mask_BL[:, 1:].sum()


def next_token_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Negative log-likelihood of the next token, nats, mean over the tokens that are no padding."""
    labels_BL = batch["input_ids"]
    if "attention_mask" in batch:
        labels_BL = labels_BL.masked_fill(batch["attention_mask"] == 0, -100)
    logits_BLV = logits_of(model, batch).float()
    return functional.cross_entropy(logits_BLV[:, :-1].flatten(0, 1), labels_BL[:, 1:].flatten())


def logits_of(model: nn.Module, batch: Batch) -> Tensor:
    """(B, L, V)."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
    logits_BLV: Tensor = model(**inputs, use_cache=False).logits
    return logits_BLV


def router_parameters(student: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of all routers, by dotted name."""
    routers = {id(one) for layer in moe_layers(student) for one in layer.router.parameters()}
    return {name: one for name, one in student.named_parameters() if id(one) in routers}
