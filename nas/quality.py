"""Qualities as objectives: what is kept of a forward pass, and how all that is judged.

Shapes: B examples of a batch, N of a split, P predictions per example, C classes or tokens to predict.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from nas.objective import Bindings, BoundObjective, EvaluationFailed, Identity
from nas.passes import Keep
from studies.records import Genotype, Objective, Value
from supernets.task import UNLABELLED

Judge = Callable[[Tensor, Tensor], tuple[float, float]]
"""From what was kept of a split, [N, ...], and its labels to a number and its standard error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """One quality of a sub-network on the data of a task.

    Attributes:
        noise: see `BoundObjective.noise`.
    """

    objective: Objective
    keep: Keep
    judge: Judge
    noise: float = 0.0


def bound_quality(quality: Quality, bindings: Bindings) -> BoundObjective:
    """Measured inside the supernet, without extracting; the spread is the standard error over the examples."""
    objective, passes = quality.objective, bindings.passes
    passes.want(objective.key, quality.keep)

    def evaluate(genotype: Genotype) -> Value:
        kept, labels = passes.kept(objective.key, genotype)
        if not torch.isfinite(kept).all():
            raise EvaluationFailed("the network's outputs are not finite")
        number, spread = quality.judge(kept, labels)
        return quality_value(objective, bindings, number, spread)

    return BoundObjective(
        objective=objective, exact=False, evaluate=evaluate, reuse=reusable(bindings), noise=quality.noise
    )


def quality_value(objective: Objective, bindings: Bindings, number: float, spread: float | None = None) -> Value:
    """A number that was measured inside the supernet on the bindings' examples.

    Raises:
        EvaluationFailed: it is not finite.
    """
    if not math.isfinite(number):
        raise EvaluationFailed(f"the {objective.name} on {bindings.split} is {number}")
    return Value(
        objective=objective.key,
        number=number,
        provenance="supernet",
        spread=known_spread(spread),
        n=bindings.passes.examples,
        **asdict(_identity(bindings)),
        data_fraction=bindings.passes.examples / bindings.task.size(bindings.split),
        seed=bindings.seed,
    )


def known_spread(spread: float | None) -> float | None:
    """A standard error as it is stored: one labelled example alone gives none that is finite."""
    return spread if spread is not None and math.isfinite(spread) else None


def reusable(bindings: Bindings) -> Identity | None:
    """What a stored quality must agree on to be taken over; None where qualities stand on a sample."""
    return _identity(bindings) if bindings.passes.indices is None else None


def _identity(bindings: Bindings) -> Identity:
    return Identity(
        weights_hash=bindings.weights_hash,
        data_hash=bindings.data_hash,
        context=f"{torch.device(bindings.device).type},{bindings.precision}",
    )


def require_logits(name: str, bindings: Bindings) -> None:
    """Refuse a quality of logits for a task that answers with something else, with a ValueError."""
    task = bindings.task
    if not task.trains_head:
        raise ValueError(f"{name} needs the logits of a head, which {task.settings.kind} has not: search for error")


def predictions(logits: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits [B, P, C] and what they should predict, [B, P]: the class of an example, or the next tokens of a text.

    `UNLABELLED` stands for what is not known.
    """
    if logits.dim() == 3:
        assert labels is not None, "text is its own label"
        return logits[:, :-1], labels[:, 1:]
    known = torch.full((len(logits),), UNLABELLED, device=logits.device) if labels is None else labels
    return logits[:, None], known[:, None]


def mean_per_prediction(rows_N2: Tensor, _: Tensor) -> tuple[float, float]:
    """A `Judge` of rows (sum over an example's predictions, how many they are): their mean and its standard error.

    The error is that of a ratio of two means over the examples, to first order.
    """
    sums_N, counts_N = rows_N2.unbind(1)
    total, examples = float(counts_N.sum()), len(rows_N2)
    if not total:
        raise EvaluationFailed("the split has nothing that is to be predicted")
    mean = float(sums_N.sum()) / total
    if examples < 2:
        return mean, 0.0
    residual = float((sums_N - mean * counts_N).square().sum())
    return mean, math.sqrt(residual * examples / (examples - 1)) / total
