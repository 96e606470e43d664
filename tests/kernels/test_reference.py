"""Reference operations against explicit float64 formulas written with loops over heads."""

import math

import pytest
import torch
from torch import Tensor, nn

from kernels.op_cost import attention_block, embedding, feed_forward, linear, model
from kernels.op_spec import Context, OpSpec
from kernels.reference import LAYER_NORM_EPS, build, build_input, build_module

CONTEXT = Context(batch=2, sequences=(5,))
SPECS = [
    attention_block(24, 3, 4, CONTEXT),
    feed_forward(24, 40, CONTEXT),
    embedding(24, 50, CONTEXT),
    linear(24, 3, 6, CONTEXT),
]


def norm(x: Tensor, layer: nn.Module) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred**2).mean(-1, keepdim=True)
    return centred / (variance + LAYER_NORM_EPS).sqrt() * layer.get_parameter("weight") + layer.get_parameter("bias")


def affine(x: Tensor, layer: nn.Module) -> Tensor:
    return x @ layer.get_parameter("weight").T + layer.get_parameter("bias")


def attention(x: Tensor, block: nn.Module, heads: int, head_dim: int) -> Tensor:
    q, k, v = (affine(x, block.get_submodule(name)) for name in ("query", "key", "value"))
    mixed = []
    for head in range(heads):
        part = slice(head * head_dim, (head + 1) * head_dim)
        scores = q[..., part] @ k[..., part].transpose(-1, -2) / math.sqrt(head_dim)
        exponents = (scores - scores.amax(-1, keepdim=True)).exp()
        mixed.append(exponents / exponents.sum(-1, keepdim=True) @ v[..., part])
    return x + affine(torch.cat(mixed, -1), block.get_submodule("output"))


def explicit(spec: OpSpec, module: nn.Module, x: Tensor) -> Tensor:
    part = module.get_submodule
    match spec.kind:
        case "attention_block":
            return norm(attention(x, module, spec.size["heads"], spec.size["head_dim"]), part("norm"))
        case "feed_forward":
            inner = affine(x, part("up"))
            inner = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2
            return norm(x + affine(inner, part("down")), part("norm"))
        case "embedding":
            tables = (module.get_parameter(f"{name}.weight") for name in ("word", "position", "token_type"))
            word, position, kind = tables
            return norm(word[x] + position + kind[0], part("norm"))
    return affine(x, module)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
@torch.no_grad()
def test_equals_the_explicit_formula(spec: OpSpec) -> None:
    module, x = build_module(spec).double(), build_input(spec)
    for parameter in module.parameters():
        parameter.add_(0.1)
    x = x.double() if x.is_floating_point() else x
    torch.testing.assert_close(module(x), explicit(spec, module, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_build_runs_the_module_without_gradients(spec: OpSpec) -> None:
    output = build(spec, seed=3)()
    assert output.is_inference()
    assert torch.equal(output, build_module(spec, seed=3)(build_input(spec, seed=3)))
    assert not torch.equal(output, build(spec, seed=4)())


def test_building_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    build(SPECS[0])
    assert torch.equal(torch.rand(3), expected)


def test_dtype_of_the_context_is_used() -> None:
    spec = feed_forward(16, 16, Context(sequences=(4,), dtype="bfloat16"))
    assert build(spec)().dtype == torch.bfloat16


def test_a_whole_model_has_no_reference() -> None:
    with pytest.raises(ValueError, match="no reference operation of kind 'model'"):
        build(model("abc", CONTEXT))
