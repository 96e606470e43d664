"""Task error of the sub-network inside the supernet, without extracting it: one minus the task's metric."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from random import Random

import torch

from nas.objective import Bindings, BoundObjective, EvaluationFailed, Identity, no_settings
from studies.records import Genotype, Objective, Value
from supernets.evaluation import predict_logits
from supernets.task import Task


def build(settings: Mapping[str, str], bindings: Bindings) -> BoundObjective:
    """Measured on the binding's split, or on a seeded sample of it; the spread is its standard error."""
    no_settings("error", settings)
    objective = Objective(name="error", unit="fraction", reference=1.0)
    supernet, task, split = bindings.supernet, bindings.task, bindings.split
    indices = _sample(task.size(split), bindings.examples, bindings.seed)
    identity = Identity(
        weights_hash=bindings.weights_hash,
        data_hash=task.data_hash(split),
        context=f"{torch.device(bindings.device).type},{bindings.precision}",
    )

    def evaluate(genotype: Genotype) -> Value:
        supernet.model.eval()
        with supernet.active(supernet.space.decode(genotype)):
            logits, labels = predict_logits(
                supernet,
                task,
                split,
                batch_size=bindings.batch_size,
                device=bindings.device,
                precision=bindings.precision,
                indices=indices,
            )
        if not torch.isfinite(logits).all():
            raise EvaluationFailed("the network's outputs are not finite")
        error = float(task.error(logits, labels))
        if not math.isfinite(error):
            raise EvaluationFailed(f"the error on {split} is {error}")
        return Value(
            objective=objective.key,
            number=error,
            provenance="supernet",
            spread=task.standard_error(logits, labels),
            n=len(labels),
            **asdict(identity),
            data_fraction=len(labels) / task.size(split),
            seed=bindings.seed,
        )

    return BoundObjective(
        objective=objective,
        exact=False,
        evaluate=evaluate,
        reuse=identity if indices is None else None,
        noise=_noise(task, task.size(split) if indices is None else len(indices)),
    )


def _noise(task: Task, examples: int) -> float:
    """The standard error of a share of so many examples is largest at one half; of other metrics it is not known."""
    return math.sqrt(0.25 / examples) if task.settings.metric == "accuracy" else 0.0


def _sample(size: int, examples: int | None, seed: int) -> list[int] | None:
    """Sorted positions of a seeded sample; None for the whole split."""
    if examples is None or examples >= size:
        return None
    if examples < 1:
        raise ValueError(f"a quality needs at least 1 example, got {examples}")
    return sorted(Random(seed).sample(range(size), examples))
