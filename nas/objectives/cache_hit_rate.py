"""How often a chosen expert lies in fast memory already, where only some of a layer's experts fit there.

Segment cache best hit rate (SCH, "Not All Models Suit Expert Offloading", arXiv 2505.16056): a cache of ρ·k experts per
layer sees m tokens ahead. Where a token needs room, it evicts, of the experts that this token does not use, the one
that the next m tokens choose least, and of equals the one that was used longest ago. Every text begins with an empty
cache, and its first loads are misses; the authors' code takes them for hits until the cache is full.

Shapes: B texts of a batch, T tokens of each, k choices per token, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas.expert_choices import expert_choices
from nas.objective import Bindings, BoundObjective, only_settings, sorted_settings
from nas.quality import quality_value, reusable
from studies.records import Genotype, Objective, Value

WINDOW, FACTOR = 16, 2.0


def build(settings: Mapping[str, str], bindings: Bindings) -> BoundObjective:
    """Measured inside the supernet by a pass of its own; settings: window, factor. 1 for a network without experts."""
    only_settings("cache-hit-rate", settings, "factor", "window")
    window, factor = _window(settings), _factor(settings)
    objective = Objective(
        name="cache-hit-rate", unit="fraction", goal="max", settings=sorted_settings(settings), reference=0.0
    )

    def evaluate(genotype: Genotype) -> Value:
        hits = uses = 0
        for layer in expert_choices(bindings, genotype) if bindings.supernet.experts else ():
            capacity = max(layer.chosen_BTk.shape[2], round(factor * layer.chosen_BTk.shape[2]))
            found = cache_hits(layer.chosen_BTk, layer.experts, capacity, window)
            hits, uses = hits + found[0], uses + found[1]
        return quality_value(objective, bindings, hits / uses if uses else 1.0)

    return BoundObjective(objective=objective, exact=False, evaluate=evaluate, reuse=reusable(bindings))


def cache_hits(chosen_BTk: Tensor, experts: int, capacity: int, window: int) -> tuple[int, int]:
    """How many uses of an expert by a token found it in the cache, and how many there were.

    Args:
        chosen_BTk: experts by number; negative choices stand for none, and an expert that stands twice is one use.
        experts: E.
        capacity: of the cache, at least k experts.
        window: how many tokens ahead the cache sees.
    """
    marks_BTE = torch.zeros(*chosen_BTk.shape[:2], experts + 1, dtype=torch.bool).scatter_(2, chosen_BTk + 1, True)
    used_TBE = marks_BTE[..., 1:].transpose(0, 1).numpy()
    rank_TBE = _ranks(used_TBE, window)
    cached_BE = np.zeros(used_TBE.shape[1:], dtype=bool)
    dropped, hits = max(0, experts - capacity), 0
    for used_BE, rank_BE in zip(used_TBE, rank_TBE, strict=True):
        hits += int(np.count_nonzero(used_BE & cached_BE))
        present_BE = np.where(used_BE | cached_BE, rank_BE, -1)
        least_B1 = np.partition(present_BE, dropped, axis=1)[:, dropped, None]
        cached_BE = (present_BE >= least_B1) & (present_BE >= 0)
    return hits, int(np.count_nonzero(used_TBE))


def _ranks(used_TBE: NDArray[np.bool_], window: int) -> NDArray[np.int64]:
    """What to keep when a token has been served: the higher, the better; different for different experts.

    First those it uses, then by uses in the next tokens, then by the last use, then by number.
    """
    tokens, _, experts = used_TBE.shape
    before = np.concatenate([np.zeros_like(used_TBE[:1], dtype=np.int64), used_TBE.cumsum(0)])
    first = np.arange(1, tokens + 1)
    ahead_TBE = before[np.minimum(first + window, tokens)] - before[first]
    last_TBE = np.maximum.accumulate(np.where(used_TBE, first[:, None, None], 0), axis=0)
    ahead_TBE[used_TBE] = tokens  # more than anything else can have
    ranks_TBE: NDArray[np.int64] = (ahead_TBE * (tokens + 1) + last_TBE) * experts + np.arange(experts)
    return ranks_TBE


def _window(settings: Mapping[str, str]) -> int:
    text = settings.get("window", str(WINDOW))
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"window of cache-hit-rate is a number of tokens, 1 or more, got {text}")
    return int(text)


def _factor(settings: Mapping[str, str]) -> float:
    text = settings.get("factor", str(FACTOR))
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not 1 <= factor < math.inf:
        raise ValueError(f"factor of cache-hit-rate is the cache's size in experts per token, 1 or more, got {text}")
    return factor
