"""Quantised routing: histograms obey their bounds, choices obey the histogram, and a class recognises itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.moe_layer import draw_choices
from kernels.routing_profile import (
    IMBALANCES,
    RoutingProfile,
    expected_profile,
    histogram,
    on_grid,
    positions,
    profile_of,
)


@st.composite
def routings(draw: st.DrawFn) -> tuple[int, int, int, RoutingProfile]:
    experts = draw(st.integers(1, 40))
    top_k, tokens = draw(st.integers(1, min(experts, 8))), draw(st.integers(1, 64))
    busy = on_grid(draw(st.integers(1, experts)), tokens, top_k, experts)
    return tokens, top_k, experts, RoutingProfile(busy=busy, imbalance=draw(st.sampled_from(IMBALANCES)))


@given(routings())
def test_histogram_keeps_its_bounds_and_sum(routing: tuple[int, int, int, RoutingProfile]) -> None:
    tokens, top_k, _, profile = routing
    counts = histogram(tokens, top_k, profile)
    assert len(counts) == profile.busy
    assert sum(counts) == tokens * top_k
    assert 1 <= min(counts) <= max(counts) <= tokens
    assert list(counts) == sorted(counts, reverse=True)


@given(routings())
def test_drawn_choices_are_distinct_and_have_the_histogram(routing: tuple[int, int, int, RoutingProfile]) -> None:
    tokens, top_k, experts, profile = routing
    chosen = draw_choices(tokens, top_k, experts, profile).tolist()
    assert all(len(set(token)) == top_k for token in chosen)
    flat = [expert for token in chosen for expert in token]
    found = [flat.count(expert) for expert in positions(profile.busy, experts)]
    assert tuple(found) == histogram(tokens, top_k, profile)


@given(routings())
def test_a_class_recognises_its_own_histogram(routing: tuple[int, int, int, RoutingProfile]) -> None:
    tokens, top_k, experts, profile = routing
    counts = [*histogram(tokens, top_k, profile), *[0] * (experts - profile.busy)]
    found = profile_of(counts, top_k)
    assert found.busy == profile.busy
    assert histogram(tokens, top_k, found) == histogram(tokens, top_k, profile)


@given(routings())
def test_keys_can_be_read_back(routing: tuple[int, int, int, RoutingProfile]) -> None:
    assert RoutingProfile.parse(routing[3].key) == routing[3]


@pytest.mark.parametrize(
    ("counts", "key"),
    [
        ([16, 16, 16, 16], "e4,even"),
        ([15, 17, 16, 16], "e4,even"),
        ([22, 16, 14, 12], "e4,mild"),
        ([31, 16, 10, 7], "e4,skewed"),
        ([64, 0, 0, 0], "e1,even"),
        ([32, 32, 0, 0], "e2,even"),
    ],
)
def test_profiles_of_histograms(counts: list[int], key: str) -> None:
    assert profile_of(counts, 1).key == key


@pytest.mark.parametrize(
    ("tokens", "top_k", "experts", "busy"), [(1, 2, 16, 2), (256, 2, 8, 8), (16, 8, 64, 56), (4, 1, 60, 4)]
)
def test_a_router_without_preferences(tokens: int, top_k: int, experts: int, busy: int) -> None:
    profile = expected_profile(tokens, top_k, experts)
    assert profile == RoutingProfile(busy=busy)


def test_grid_is_coarse_but_holds_both_ends() -> None:
    assert sorted({on_grid(busy, 512, 8, 60) for busy in range(1, 61)}) == [
        8,
        10,
        12,
        14,
        16,
        20,
        24,
        28,
        32,
        40,
        48,
        56,
        60,
    ]
    assert {on_grid(busy, 1, 2, 8) for busy in range(1, 9)} == {2}
