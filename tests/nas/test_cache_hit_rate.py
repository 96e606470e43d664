"""The cache that sees ahead, against one that loads and evicts one expert after another."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nas.expert_choices import expert_choices
from nas.objective import bind
from nas.objectives.cache_hit_rate import cache_hits
from tests.toy_bindings import tiny_bindings
from tests.toy_experts import expert_bindings

EXPERTS = 6


def slow_hits(text: list[list[int]], capacity: int, window: int) -> int:
    """Of one text."""
    last_use: dict[int, int] = {}
    hits = 0
    for now, choices in enumerate(text):
        needed = {expert for expert in choices if expert >= 0}
        for expert in sorted(needed):
            if expert in last_use:
                hits += 1
                continue
            if len(last_use) == capacity:
                ahead = text[now + 1 : now + 1 + window]
                uses = {other: sum(other in token for token in ahead) for other in last_use if other not in needed}
                del last_use[min(uses, key=lambda other: (uses[other], last_use[other], other))]
            last_use[expert] = now
        last_use |= dict.fromkeys(needed, now)
    return hits


def traces(seed: int, texts: int = 3, tokens: int = 20, k: int = 2) -> torch.Tensor:
    """Random choices, some of them of constants, that repeat more often than by chance."""
    draws = torch.Generator().manual_seed(seed)
    fresh = torch.randint(-1, EXPERTS, (texts, tokens, k), generator=draws)
    repeats = torch.rand(texts, tokens, 1, generator=draws) < 0.3
    return torch.where(repeats, fresh.roll(1, dims=1), fresh)


@given(st.integers(0, 10_000), st.integers(2, EXPERTS + 1), st.integers(1, 25), st.integers(1, 2))
def test_it_counts_what_a_slow_cache_counts(seed: int, capacity: int, window: int, k: int) -> None:
    chosen = traces(seed, k=k)
    uses = sum(len(set(token) - {-1}) for text in chosen.tolist() for token in text)
    wanted = sum(slow_hits(text, capacity, window) for text in chosen.tolist())
    assert cache_hits(chosen, EXPERTS, capacity, window) == (wanted, uses)


@given(st.integers(0, 10_000), st.integers(1, 25))
def test_a_larger_cache_is_no_worse_and_one_for_all_misses_only_once(seed: int, window: int) -> None:
    chosen = traces(seed)
    hits = [cache_hits(chosen, EXPERTS, capacity, window)[0] for capacity in range(2, EXPERTS + 2)]
    assert hits == sorted(hits)
    uses = cache_hits(chosen, EXPERTS, EXPERTS, window)[1]
    first_uses = sum(len(set(text.flatten().tolist()) - {-1}) for text in chosen)
    assert hits[-2:] == [uses - first_uses] * 2


def test_known_traces() -> None:
    def hits(*tokens: int, capacity: int = 2, window: int = 4) -> int:
        return cache_hits(torch.tensor(tokens).view(1, -1, 1), 4, capacity, window)[0]

    assert hits(0, 0, 0, 0) == 3
    assert hits(0, 1, 2, 3) == 0
    assert hits(0, 1, 2, 0) == 1, "it sees that 0 comes again and evicts 1"
    assert hits(0, 1, 2, 3, 3, 3, 0, window=1) == 2, "too far ahead to see: 0 was used longest ago"
    assert hits(0, 1, 2, 1, window=1) == 1
    assert hits(-1, -1, -1) == 0


def test_the_objective_counts_over_all_layers_and_batches() -> None:
    bindings = expert_bindings(batch_size=5)
    for genotype in (bindings.supernet.space.smallest, bindings.supernet.space.largest):
        layers = list(expert_choices(bindings, genotype))
        for text, factor, window in (("", 2.0, 16), (":factor=1.5,window=3", 1.5, 3)):
            counts = [
                cache_hits(one.chosen_BTk, one.experts, round(factor * one.chosen_BTk.shape[2]), window)
                for one in layers
            ]
            value = bind(f"cache-hit-rate{text}", bindings).evaluate(genotype)
            assert value.number == pytest.approx(sum(hits for hits, _ in counts) / sum(uses for _, uses in counts))
            assert 0 < value.number < 1


def test_settings_are_checked_and_dense_networks_always_hit() -> None:
    plain = tiny_bindings()
    assert bind("cache-hit-rate", plain).evaluate(plain.supernet.space.smallest).number == 1.0
    for text in ("window=0", "window=many"):
        with pytest.raises(ValueError, match="number of tokens, 1 or more"):
            bind(f"cache-hit-rate:{text}", plain)
    for text in ("factor=0.5", "factor=inf", "factor=nan", "factor=two"):
        with pytest.raises(ValueError, match=r"experts per token, 1 or more, got \w"):
            bind(f"cache-hit-rate:{text}", plain)
