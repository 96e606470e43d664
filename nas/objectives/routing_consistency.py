"""How long experts stay in use once they are: what matters where they are fetched from slow memory when needed.

Segment routing best performance (SRP, "Not All Models Suit Expert Offloading", arXiv 2505.16056): for every expert and
every segment of m tokens, f of which chose it, predict that all m choose it exactly if f is at least some α. SRP is the
largest F1 score, ``2 Σ_{f≥α} f / (m #{f≥α} + Σ f)``, that any α reaches; sums run over experts, segments and layers.

Shapes: B texts of a batch, T tokens of each, k choices per token, E experts, P segments, m tokens of a segment.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nas.expert_choices import expert_choices
from nas.objective import Bindings, BoundObjective, only_settings, sorted_settings
from nas.quality import quality_value, reusable
from studies.records import Genotype, Objective, Value

SEGMENT = 16


def build(settings: Mapping[str, str], bindings: Bindings) -> BoundObjective:
    """Measured inside the supernet by a pass of its own; setting: segment. 1 for a network without experts."""
    segment = _segment(settings)
    objective = Objective(
        name="routing-consistency", unit="fraction", goal="max", settings=sorted_settings(settings), reference=0.0
    )

    def evaluate(genotype: Genotype) -> Value:
        total = torch.zeros(segment + 1, dtype=torch.long)
        for layer in expert_choices(bindings, genotype) if bindings.supernet.experts else ():
            total += segment_counts(layer.chosen_BTk, segment)
        return quality_value(objective, bindings, best_f1(total))

    return BoundObjective(objective=objective, exact=False, evaluate=evaluate, reuse=reusable(bindings))


def best_f1(segments_f: Tensor) -> float:
    """SRP from how many (expert, segment) pairs have f = 0 … m tokens that chose the expert; 1 if none has any."""
    f = torch.arange(len(segments_f), dtype=torch.float64)
    chosen_f = f * segments_f.double()
    if not float(chosen_f.sum()):
        return 1.0
    caught_f = chosen_f.flip(0).cumsum(0).flip(0)
    predicted_f = segments_f.double().flip(0).cumsum(0).flip(0)
    scores_f = 2 * caught_f / (f[-1] * predicted_f + chosen_f.sum())
    return float(scores_f[1:].max())


def segment_counts(chosen_BTk: Tensor, segment: int) -> Tensor:
    """[m + 1]: how many (expert, segment) pairs have f = 0 … m, over all segments of consecutive tokens.

    Negative choices stand for no expert. Texts shorter than a segment are one segment, stretched to its length.
    """
    experts = int(chosen_BTk.max()) + 2
    hits_BTE = torch.zeros(*chosen_BTk.shape[:2], experts).scatter_(2, chosen_BTk + 1, 1.0)[..., 1:]
    length = min(segment, hits_BTE.shape[1])
    f_BPE = hits_BTE.unfold(1, length, 1).sum(-1) * segment / length
    return torch.bincount(f_BPE.round().long().flatten(), minlength=segment + 1)


def _segment(settings: Mapping[str, str]) -> int:
    only_settings("routing-consistency", settings, "segment")
    text = settings.get("segment", str(SEGMENT))
    if not text.isdecimal() or int(text) < 2:
        raise ValueError(f"segment of routing-consistency is a number of tokens, 2 or more, got {text}")
    return int(text)
