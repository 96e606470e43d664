"""Logits and quality of a network on a split, the same way for supernets, extracted networks and teachers.

Shapes: N examples of a split, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from kernels.device import load_backend
from supernets.task import UNLABELLED, Batch, Task

Precision = Literal["auto", "float32", "bfloat16"]
BATCH_SIZE = 64
LOGITS_BYTES = 2**28
"""Of one forward pass over text; probabilities need as much again."""
Network = Callable[..., Any]
"""A supernet, a model, or anything else that the task asks for logits."""


def fitting_batch_size(task: Task, config: Any) -> int:
    """Examples per forward pass whose logits, one set per token for text, fit into `LOGITS_BYTES`."""
    if task.num_labels:
        return BATCH_SIZE
    longest = max(task.length_quantiles(task.splits[0]))
    return max(1, min(BATCH_SIZE, LOGITS_BYTES // (4 * longest * int(config.vocab_size))))


def resolve_precision(precision: Precision, device: str) -> Literal["float32", "bfloat16"]:
    """`auto` means bfloat16 autocast exactly where the device has instructions for it."""
    if precision != "auto":
        return precision
    return "bfloat16" if "bfloat16" in load_backend(torch.device(device).type).dtypes() else "float32"


def autocast(precision: Literal["float32", "bfloat16"], device: str) -> AbstractContextManager[Any]:
    """bfloat16 autocast, or nothing."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)


def predict_logits(
    network: Network,
    task: Task,
    split: str,
    *,
    batch_size: int = 64,
    device: str = "cpu",
    precision: Literal["float32", "bfloat16"] = "float32",
    indices: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """A task's answers, such as float32 logits [N, C], and labels [N] of a split (of `indices`, if given), in order."""
    batches = task.batches(split, batch_size, indices=indices)
    return _predict(network, task, batches, lambda logits, _: logits, device, precision)


def predict_outcomes(
    network: Network,
    task: Task,
    split: str,
    *,
    batch_size: int = 64,
    device: str = "cpu",
    precision: Literal["float32", "bfloat16"] = "float32",
    indices: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """What the task's metrics need (`Task.outcomes`) and labels of a split, in the order of the examples."""
    batches = task.batches(split, batch_size, indices=indices)
    return _predict(network, task, batches, task.outcomes, device, precision)


@torch.no_grad()
def _predict(
    network: Network,
    task: Task,
    batches: Iterable[Batch],
    keep: Callable[[Tensor, Tensor], Tensor],
    device: str,
    precision: Literal["float32", "bfloat16"],
) -> tuple[Tensor, Tensor]:
    positions, kept, labels = [], [], []
    with autocast(precision, device):
        for batch in batches:
            on_device = batch.to(device)
            logits, labels_B = task.answers(network, on_device)
            if labels_B is None:
                labels_B = torch.full((len(batch),), UNLABELLED, device=logits.device)
            kept.append(keep(logits.float(), labels_B).cpu())
            positions.append(batch.indices)
            labels.append(labels_B.cpu())
    order = torch.cat(positions).argsort()
    return torch.cat(kept)[order], torch.cat(labels)[order]


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """How good a network is on a split: one minus the metric, its standard error, every metric."""

    error: float
    standard_error: float
    metrics: dict[str, float]
    examples: int


def evaluate(
    network: Network,
    task: Task,
    split: str,
    *,
    batch_size: int = 64,
    device: str = "cpu",
    precision: Literal["float32", "bfloat16"] = "float32",
    indices: Sequence[int] | None = None,
) -> Quality:
    """Quality of a network in evaluation mode on a split."""
    outcomes, labels = predict_outcomes(
        network, task, split, batch_size=batch_size, device=device, precision=precision, indices=indices
    )
    return Quality(
        error=task.error(outcomes, labels),
        standard_error=task.standard_error(outcomes, labels),
        metrics=task.metrics(outcomes, labels),
        examples=len(labels),
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch has a type for this on accelerators, and only a message on the CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
