"""The routing plan against a literal loop over experts and choices."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.routing_plan import routing_plan


@st.composite
def choices(draw: st.DrawFn) -> tuple[list[list[int]], int]:
    experts = draw(st.integers(1, 9))
    top_k = draw(st.integers(1, min(experts, 3)))
    tokens = draw(st.lists(st.permutations(range(experts)), max_size=12))
    return [list(token[:top_k]) for token in tokens], experts


@given(choices(), st.integers(1, 5))
def test_equals_a_literal_loop(drawn: tuple[list[list[int]], int], block: int) -> None:
    chosen, experts = drawn
    flat = [expert for token in chosen for expert in token]
    chosen_Tk = torch.tensor(chosen, dtype=torch.int64).reshape(len(chosen), -1 if chosen else 1)
    plan = routing_plan(chosen_Tk, experts, block)

    rows = {expert: [c for c, e in enumerate(flat) if e == expert] for expert in range(experts)}
    assert plan.order.tolist() == [choice for expert in range(experts) for choice in rows[expert]]
    offsets = [sum(len(rows[e]) for e in range(end)) for end in range(experts + 1)]
    assert plan.offsets.tolist() == offsets
    tiles = [(e, start) for e in range(experts) for start in range(offsets[e], offsets[e + 1], block)]
    unused = len(plan.tile_expert) - len(tiles)
    assert unused >= 0
    found = list(zip(plan.tile_expert.tolist(), plan.tile_start.tolist(), strict=True))
    assert found == tiles + [(-1, len(flat))] * unused


def test_no_tokens_make_no_tiles() -> None:
    plan = routing_plan(torch.empty(0, 2, dtype=torch.int64), 4, 16)
    assert plan.offsets.tolist() == [0] * 5
    assert plan.tile_expert.numel() == plan.order.numel() == 0


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_every_tensor_is_int32(dtype: torch.dtype) -> None:
    plan = routing_plan(torch.tensor([[1], [0]], dtype=dtype), 2, 16)
    assert {t.dtype for t in (plan.offsets, plan.order, plan.tile_expert, plan.tile_start)} == {torch.int32}
    assert (plan.block, plan.top_k) == (16, 1)
