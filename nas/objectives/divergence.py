"""How differently the sub-network predicts from the full model: total variation distance, mean over predictions.

It is one minus the overlap ``Σ_v min(p_v, q_v)`` by which EvoESAP (arXiv 2603.06003) ranks reduced experts. It needs no
labels, and sees what the likelihood of a single right answer does not.

Shapes: B examples of a batch, P predictions per example, C classes or tokens to predict.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nas.objective import Bindings, BoundObjective, no_settings
from nas.quality import Quality, bound_quality, mean_per_prediction, predictions, require_logits
from studies.records import Objective
from supernets.supernet import Supernet
from supernets.task import UNLABELLED, Batch

CACHED_BYTES = 2**29
"""Of the full model's probabilities at most so much is kept; what is beyond is computed again for every network."""


def build(settings: Mapping[str, str], bindings: Bindings) -> BoundObjective:
    """Measured inside the supernet; 0 for the full model, 1 where predictions have nothing in common."""
    no_settings("divergence", settings)
    require_logits("divergence", bindings)
    full = _FullModel(bindings.supernet)

    def keep(logits: Tensor, batch: Batch, number: int) -> Tensor:
        logits_BPC, known_BP = predictions(logits, batch.labels)
        counted_BP = known_BP != UNLABELLED if logits.dim() == 3 else torch.ones_like(known_BP, dtype=torch.bool)
        distances_BP = (logits_BPC.softmax(-1) - full.probabilities(batch, number)).abs().sum(-1) / 2
        sums_B = distances_BP.masked_fill(~counted_BP, 0.0).double().sum(1)
        return torch.stack([sums_B, counted_BP.sum(1).double()], dim=1)

    objective = Objective(name="divergence", unit="fraction", reference=1.0)
    return bound_quality(Quality(objective=objective, keep=keep, judge=mean_per_prediction), bindings)


class _FullModel:
    """What the largest network predicts for every batch, the first ones remembered."""

    def __init__(self, supernet: Supernet) -> None:
        self._supernet = supernet
        self._kept: dict[int, Tensor] = {}

    def probabilities(self, batch: Batch, number: int) -> Tensor:
        """[B, P, C] of the batch with this number, which is always the same one."""
        if number in self._kept:
            return self._kept[number]
        with self._supernet.active(None):
            logits_BPC, _ = predictions(self._supernet(**batch.inputs).logits.float(), batch.labels)
        probabilities_BPC = logits_BPC.softmax(-1)
        if probabilities_BPC.nbytes + sum(one.nbytes for one in self._kept.values()) <= CACHED_BYTES:
            self._kept[number] = probabilities_BPC
        return probabilities_BPC
