"""Negative log likelihood of what the task's data say: nats per token of a text, or per example of a classification."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from nas.objective import Bindings, BoundObjective, no_settings
from nas.quality import Quality, bound_quality, mean_per_prediction, predictions, require_logits
from studies.records import Objective
from supernets.task import UNLABELLED, Batch


def build(settings: Mapping[str, str], bindings: Bindings) -> BoundObjective:
    """Measured inside the supernet; the reference is what guessing evenly costs. Its exponential is the perplexity."""
    no_settings("nll", settings)
    require_logits("nll", bindings)
    config = bindings.supernet.config
    guesses = bindings.task.num_labels or int(config.vocab_size)
    quality = Quality(
        objective=Objective(name="nll", unit="nats", reference=math.log(guesses)),
        keep=_losses,
        judge=mean_per_prediction,
    )
    return bound_quality(quality, bindings)


def _losses(logits: Tensor, batch: Batch, _: int) -> Tensor:
    """[B, 2] float64: summed loss of an example, and over how many predictions."""
    logits_BPC, known_BP = predictions(logits, batch.labels)
    losses_BP = functional.cross_entropy(
        logits_BPC.transpose(1, 2), known_BP, ignore_index=UNLABELLED, reduction="none"
    )
    return torch.stack([losses_BP.double().sum(1), (known_BP != UNLABELLED).sum(1).double()], dim=1)
