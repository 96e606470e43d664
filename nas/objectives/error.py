"""Task error of the sub-network inside the supernet, without extracting it: one minus the task's metric."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from nas.objective import Bindings, BoundObjective, no_settings
from nas.quality import Quality, bound_quality
from studies.records import Objective
from supernets.task import UNLABELLED, Batch, Task


def build(settings: Mapping[str, str], bindings: Bindings) -> BoundObjective:
    """Measured on the binding's split, or on a seeded sample of it; the spread is its standard error."""
    no_settings("error", settings)
    task, unit = bindings.task, bindings.task.error_unit

    def keep(logits: Tensor, batch: Batch, _: int) -> Tensor:
        labels = logits.new_full((len(batch),), UNLABELLED).long() if batch.labels is None else batch.labels
        return task.outcomes(logits, labels)

    quality = Quality(
        objective=Objective(name="error", unit=unit, reference=1.0 if unit == "fraction" else None),
        keep=keep,
        judge=lambda outcomes, labels: (float(task.error(outcomes, labels)), task.standard_error(outcomes, labels)),
        noise=_noise(task, bindings.passes.examples),
    )
    return bound_quality(quality, bindings)


def _noise(task: Task, examples: int) -> float:
    """The standard error of a share of so many examples is largest at one half; of other metrics it is not known."""
    return math.sqrt(0.25 / examples) if task.settings.metric == "accuracy" else 0.0
