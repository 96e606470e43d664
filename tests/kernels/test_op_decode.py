"""Attention with a cache, norms and blends: counts against loops in float64, references against those loops."""

import math

import pytest
import torch
from torch import Tensor

from kernels.op_cost import attention, attention_block, blend, norm
from kernels.op_spec import Context, OpSpec
from kernels.reference import Attention, Blend, build, build_input, build_module

PROMPT = Context(batch=2, sequences=(5,))

ATTENTIONS = [
    attention(4, 2, 8, PROMPT),
    attention(4, 4, 8, PROMPT, causal=False),
    attention(6, 1, 4, PROMPT.generating(prompt=5, step=3)),
    attention(2, 1, 4, Context(sequences=(3,), cached=4)),
    attention(2, 2, 4, Context(sequences=(3,), cached=4), causal=False),
]


def attended(module: Attention, x_BSI: Tensor) -> tuple[Tensor, int]:
    """The slow way in float64, with every multiply-accumulate counted."""
    batch, new, _ = x_BSI.shape
    heads, groups, dim = module.heads, module.groups, module.head_dim
    x, cache = x_BSI.double(), module.cached_BCGL.double()
    out, macs = torch.zeros(batch, new, heads * dim, dtype=torch.float64), 0
    for b in range(batch):
        for h in range(heads):
            g = h // (heads // groups)
            key = heads * dim + g * dim
            value = key + groups * dim
            keys = torch.cat([cache[b, :, g, :dim], x[b, :, key : key + dim]])
            values = torch.cat([cache[b, :, g, dim:], x[b, :, value : value + dim]])
            for s in range(new):
                seen = cache.shape[1] + (s + 1 if module.causal else new)
                scores = keys[:seen] @ x[b, s, h * dim : (h + 1) * dim] / math.sqrt(dim)
                out[b, s, h * dim : (h + 1) * dim] = torch.softmax(scores, 0) @ values[:seen]
                macs += 2 * seen * dim
    return out, macs


@pytest.mark.parametrize("spec", ATTENTIONS, ids=lambda spec: spec.key)
def test_attention_is_what_the_loop_computes_and_counts(spec: OpSpec) -> None:
    module, x_BSI = build_module(spec), build_input(spec)
    assert isinstance(module, Attention)
    expected, macs = attended(module, x_BSI)
    torch.testing.assert_close(module(x_BSI).double(), expected, atol=1e-5, rtol=1e-5)
    assert spec.flops == 2 * macs
    tensors = (*module.buffers(), x_BSI, expected)
    assert spec.bytes == 4 * sum(tensor.numel() for tensor in tensors)


@pytest.mark.parametrize("spec", [norm(16, PROMPT), norm(16, PROMPT, parameters=1)], ids=lambda spec: spec.key)
def test_norm_touches_its_parameters_and_both_ends(spec: OpSpec) -> None:
    module, x = build_module(spec), build_input(spec)
    assert spec.bytes == 4 * sum(t.numel() for t in (*module.parameters(), x, module(x)))
    assert spec.flops == 0


def test_blend_is_the_weighted_sum_in_float64() -> None:
    spec = blend(6, 5, 3, PROMPT)
    module, coefficients = build_module(spec), build_input(spec)
    assert isinstance(module, Blend)
    expected, macs = torch.zeros(5, 6, dtype=torch.float64), 0
    for coefficient, weight in zip(coefficients.double(), module.weights_MYX.double(), strict=True):
        expected += coefficient * weight
        macs += weight.numel()
    torch.testing.assert_close(module(coefficients).double(), expected, atol=1e-6, rtol=1e-6)
    assert spec.flops == 2 * macs
    assert spec.bytes == 4 * sum(t.numel() for t in (module.weights_MYX, coefficients, expected))


def test_a_generation_costs_its_steps() -> None:
    """Reading 5 tokens and generating 3 more see the same pairs as reading all 8 at once."""
    at_once = attention(4, 2, 8, Context(sequences=(8,)))
    steps = [attention(4, 2, 8, Context().generating(prompt=5, step=step)) for step in (1, 2, 3)]
    assert at_once.flops == attention(4, 2, 8, Context(sequences=(5,))).flops + sum(step.flops for step in steps)


def test_what_is_cached_is_part_of_the_key() -> None:
    assert Context().generating(prompt=128, step=1).key == "b1,s1,k128,t1,float32"
    assert Context(cached=7).at(3) == Context(sequences=(3,), cached=7)
    assert attention(4, 2, 8, PROMPT).key == "attention[causal=1,groups=2,head_dim=8,heads=4]@b2,s5,t1,float32#stock"
    with pytest.raises(ValueError, match="counted from 0, got -1"):
        Context(cached=-1)
    with pytest.raises(ValueError, match="counted from 1, got 0 and 1"):
        Context().generating(prompt=0, step=1)
    with pytest.raises(AssertionError, match="no cache"):
        attention_block(32, 2, 16, Context(cached=4))
    with pytest.raises(AssertionError, match="evenly"):
        attention(3, 2, 8, PROMPT)


@pytest.mark.parametrize("spec", [*ATTENTIONS[:1], norm(16, PROMPT), blend(6, 5, 3, PROMPT)], ids=lambda s: s.kind)
def test_references_are_ready_to_be_timed(spec: OpSpec) -> None:
    assert torch.isfinite(build(spec)()).all()
