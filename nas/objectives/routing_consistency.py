"""How long experts stay in use once they are: what matters where they are fetched from slow memory when needed.

Segment routing best performance (SRP, "Not All Models Suit Expert Offloading", arXiv 2505.16056): for every expert and
every segment of m tokens, f of which chose it, predict that all m choose it exactly if f is at least some α. SRP is the
largest F1 score, ``2 Σ_{f≥α} f / (m #{f≥α} + Σ f)``, that any α reaches; sums run over experts, segments and layers.

Shapes: B texts of a batch, T tokens of each, k choices per token, E experts, P segments, m tokens of a segment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from nas.objective import Bindings, BoundObjective, sorted_settings
from nas.quality import quality_value, reusable
from studies.records import Genotype, Objective, Value
from supernets.elastic_experts import ElasticExperts
from supernets.evaluation import autocast
from supernets.expert_bank import router_name
from supernets.space import Architecture

SEGMENT = 16


def build(settings: Mapping[str, str], bindings: Bindings) -> BoundObjective:
    """Measured inside the supernet by a pass of its own; setting: segment. 1 for a network without experts."""
    segment = _segment(settings)
    objective = Objective(
        name="routing-consistency", unit="fraction", goal="max", settings=sorted_settings(settings), reference=0.0
    )

    def evaluate(genotype: Genotype) -> Value:
        number = best_f1(_histogram(bindings, genotype, segment)) if bindings.supernet.experts else 1.0
        return quality_value(objective, bindings, number)

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
    if unknown := sorted(set(settings) - {"segment"}):
        raise ValueError(f"objective routing-consistency knows the setting segment, not {', '.join(unknown)}")
    text = settings.get("segment", str(SEGMENT))
    if not text.isdecimal() or int(text) < 2:
        raise ValueError(f"segment of routing-consistency is a number of tokens, 2 or more, got {text}")
    return int(text)


@torch.no_grad()
def _histogram(bindings: Bindings, genotype: Genotype, segment: int) -> Tensor:
    supernet = bindings.supernet
    architecture = supernet.space.decode(genotype)
    supernet.model.eval()
    total = torch.zeros(segment + 1, dtype=torch.long)
    batches = bindings.task.batches(bindings.split, bindings.batch_size, indices=bindings.passes.indices)
    layers = [supernet.experts[layer] for layer in architecture.by_index if layer in supernet.experts]
    with supernet.active(architecture), autocast(bindings.precision, bindings.device), ExitStack() as stack:
        seen = [stack.enter_context(_choices(block, architecture)) for block in layers]
        for batch in batches:
            supernet(**batch.to(bindings.device).inputs)
            for chosen in seen:
                total += segment_counts(chosen.pop().view(len(batch), -1, chosen.k), segment)
    return total


class _Chosen(list[Tensor]):
    """Choices [B * T, k] of the calls so far that nobody has taken yet."""

    k = 0


@contextmanager
def _choices(block: ElasticExperts, architecture: Architecture) -> Iterator[_Chosen]:
    """What the router of one layer chooses, by number of the expert that answers; -1 where a constant does."""
    chosen, choice = _Chosen(), architecture.by_index[block.layer.index]
    expert_map = block.tensors(architecture).get("experts.expert_map")
    experts = block.sizes(choice)["experts"]

    def see(_: object, __: object, output: Any) -> None:
        rows = output[-1]
        numbers = rows if expert_map is None else expert_map[rows]
        chosen.append(numbers.masked_fill(numbers >= experts, -1).cpu())
        chosen.k = rows.shape[-1]

    small = block.block(choice)
    handle = getattr(small, router_name(small)).register_forward_hook(see)
    try:
        yield chosen
    finally:
        handle.remove()
