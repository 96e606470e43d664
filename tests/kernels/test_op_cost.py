"""FLOPs against torch's own counter, bytes against the parameters and tensors of the reference modules."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kernels.op_cost import attention_block, custom, embedding, feed_forward, linear, model
from kernels.op_spec import Context, OpSpec
from kernels.reference import build_input, build_module

CONTEXT = Context(batch=3, sequences=(7,))

DENSE = [
    attention_block(32, 2, 16, CONTEXT),
    attention_block(48, 5, 8, Context(batch=1, sequences=(16,), dtype="bfloat16")),
    feed_forward(32, 48, CONTEXT),
    linear(32, 3, 5, CONTEXT),
]


@pytest.mark.parametrize("spec", DENSE, ids=lambda spec: spec.key)
def test_flops_are_what_torch_counts(spec: OpSpec) -> None:
    module, x = build_module(spec), build_input(spec)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
        module(x)
    assert spec.flops == counter.get_total_flops()


@pytest.mark.parametrize("spec", DENSE, ids=lambda spec: spec.key)
def test_bytes_are_parameters_and_both_ends(spec: OpSpec) -> None:
    module, x = build_module(spec), build_input(spec)
    tensors = [*module.parameters(), x, module(x)]
    assert spec.bytes == sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_embedding_touches_one_row_per_token_and_table() -> None:
    spec = embedding(32, 1000, CONTEXT)
    rows, norm, output = 3 * 21 * 32, 2 * 32, 21 * 32
    assert (spec.flops, spec.bytes) == (0, 4 * (rows + norm + output))
    assert spec.bytes == embedding(32, 2000, CONTEXT).bytes


def test_keys_name_every_size_in_a_fixed_order() -> None:
    assert (
        attention_block(32, 2, 16, CONTEXT).key
        == "attention_block[head_dim=16,heads=2,hidden=32]@b3,s7,t1,float32#stock"
    )
    assert feed_forward(32, 48, CONTEXT).key == "feed_forward[hidden=32,width=48]@b3,s7,t1,float32#stock"
    assert embedding(32, 99, CONTEXT).key == "embedding[hidden=32,vocab=99]@b3,s7,t1,float32#stock"
    assert linear(32, 3, 5, CONTEXT).key == "linear[in=32,out=3,rows=5]@b3,s7,t1,float32#stock"
    assert model("abc", CONTEXT).key == "model[]@b3,s7,t1,float32#stock#abc"


def test_an_operation_of_ones_own_is_known_by_its_name_and_sizes() -> None:
    spec = custom("net.conv", {"out": 8, "in": 3}, CONTEXT, macs=5, elements=7)
    assert spec.key == "custom[in=3,out=8]@b3,s7,t1,float32#net.conv"
    assert (spec.flops, spec.bytes) == (10, 28)
    assert custom("net.ends", {}, CONTEXT).key == "custom[]@b3,s7,t1,float32#net.ends"
    with pytest.raises(ValueError, match="no reference operation of kind 'custom'"):
        build_module(spec)


def test_several_lengths_need_a_spec_each() -> None:
    with pytest.raises(AssertionError, match="one spec per sequence length"):
        linear(32, 3, 5, Context(sequences=(7, 9)))
