"""Local routing consistency against the definition, one segment and one expert at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nas.expert_choices import expert_choices
from nas.objective import bind
from nas.objectives.routing_consistency import best_f1, segment_counts
from tests.toy_bindings import tiny_bindings
from tests.toy_experts import expert_bindings


def slow_srp(chosen_BTk: torch.Tensor, segment: int) -> float:
    """F1 of every threshold over all pairs of expert and segment."""
    pairs = []
    for text in chosen_BTk.tolist():
        for first in range(len(text) - segment + 1):
            tokens = [set(choices) - {-1} for choices in text[first : first + segment]]
            pairs += [sum(expert in token for token in tokens) for expert in range(8)]
    best = 0.0
    for threshold in range(1, segment + 1):
        caught = sum(f for f in pairs if f >= threshold)
        predicted = segment * sum(f >= threshold for f in pairs)
        if predicted + sum(pairs):
            best = max(best, 2 * caught / (predicted + sum(pairs)))
    return best if any(pairs) else 1.0


@given(st.integers(0, 1000), st.integers(2, 6))
def test_it_is_the_best_f1_of_any_threshold(seed: int, segment: int) -> None:
    chosen = torch.randint(-1, 8, (2, 7, 2), generator=torch.Generator().manual_seed(seed))
    assert best_f1(segment_counts(chosen, segment)) == pytest.approx(slow_srp(chosen, segment))


def test_always_the_same_experts_is_perfect_and_changing_ones_are_not() -> None:
    same = torch.tensor([[[0, 3]] * 12])
    changing = torch.arange(12).remainder(4)[None, :, None]
    assert best_f1(segment_counts(same, 4)) == 1.0
    assert best_f1(segment_counts(changing, 4)) == pytest.approx(0.4), "all four: 2 * 1 / (4 + 1)"


def test_the_objective_counts_over_all_layers_and_batches() -> None:
    bindings = expert_bindings(batch_size=5)
    for genotype in (bindings.supernet.space.smallest, bindings.supernet.space.largest):
        total = torch.zeros(5, dtype=torch.long)
        for layer in expert_choices(bindings, genotype):
            total += segment_counts(layer.chosen_BTk, 4)
        assert bind("routing-consistency:segment=4", bindings).evaluate(genotype).number == best_f1(total)


def test_settings_are_checked_and_dense_networks_are_perfect() -> None:
    plain = tiny_bindings()
    assert bind("routing-consistency", plain).evaluate(plain.supernet.space.smallest).number == 1.0
    for text in ("segment=1", "segment=many"):
        with pytest.raises(ValueError, match="2 or more"):
            bind(f"routing-consistency:{text}", plain)
