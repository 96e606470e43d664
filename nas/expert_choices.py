"""Which experts the tokens of a split choose in every layer of a sub-network, observed inside the supernet.

Shapes: B texts of a batch, T tokens of each, k choices per token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nas.objective import Bindings
from studies.records import Genotype
from supernets.elastic_experts import ElasticExperts
from supernets.evaluation import autocast
from supernets.expert_bank import router_name
from supernets.space import Architecture


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerChoices:
    """What one layer chose for one batch of texts.

    Attributes:
        experts: of the layer.
        chosen_BTk: number of the expert that answers; -1 where a constant does. Merged experts may stand there twice.
    """

    experts: int
    chosen_BTk: Tensor


@torch.no_grad()
def expert_choices(bindings: Bindings, genotype: Genotype) -> Iterator[LayerChoices]:
    """By a pass of its own over the bindings' examples: all layers of a batch, then the next batch."""
    supernet = bindings.supernet
    architecture = supernet.space.decode(genotype)
    supernet.model.eval()
    batches = bindings.task.batches(bindings.split, bindings.batch_size, indices=bindings.passes.indices)
    layers = [supernet.experts[layer] for layer in architecture.by_index if layer in supernet.experts]
    with supernet.active(architecture), autocast(bindings.precision, bindings.device), ExitStack() as stack:
        seen = [stack.enter_context(_observed(block, architecture)) for block in layers]
        for batch in batches:
            supernet(**batch.to(bindings.device).inputs)
            for layer in seen:
                chosen_Nk = layer.chosen.pop()
                yield LayerChoices(experts=layer.experts, chosen_BTk=chosen_Nk.view(len(batch), -1, chosen_Nk.shape[1]))


@dataclass(frozen=True, slots=True)
class _Observed:
    """Choices [B * T, k] of the calls so far that nobody has taken yet."""

    experts: int
    chosen: list[Tensor]


@contextmanager
def _observed(block: ElasticExperts, architecture: Architecture) -> Iterator[_Observed]:
    choice = architecture.by_index[block.layer.index]
    expert_map = block.tensors(architecture).get("experts.expert_map")
    observed = _Observed(block.sizes(choice)["experts"], [])

    def see(_: object, __: object, output: Any) -> None:
        rows = output[-1]
        numbers = rows if expert_map is None else expert_map[rows]
        observed.chosen.append(numbers.masked_fill(numbers >= observed.experts, -1).cpu())

    small = block.block(choice)
    handle = getattr(small, router_name(small)).register_forward_hook(see)
    try:
        yield observed
    finally:
        handle.remove()
