"""What every file in `supernets/families` promises, for every model type it declares."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kernels.op_spec import Context
from supernets.elastic import inverse
from supernets.family import Family
from supernets.space import FFN_WIDTH, HEADS, Architecture, LayerChoice, SearchSpace
from supernets.supernet import FAMILIES, Supernet, family_for
from tests.toy_task import VOCABULARY, tiny_inputs, tiny_model, tiny_space, tiny_supernet

MODEL_TYPES = sorted(t for name in FAMILIES.names() for t in cast("Family", FAMILIES.load(name)).model_types)
pytestmark = pytest.mark.parametrize("model_type", MODEL_TYPES)


def logits(network: Any, inputs: dict[str, Tensor] | None = None) -> Tensor:
    with torch.no_grad():
        output: Tensor = network(**(inputs or tiny_inputs())).logits
    return output


def some_architectures(space: SearchSpace, count: int = 5) -> list[Architecture]:
    """Smallest, middle and a few random ones; the space drops layers from the middle."""
    rng = random.Random(1)
    return [space.decode(g) for g in (space.smallest, space.middle, *(space.sample(rng) for _ in range(count)))]


def shuffled_supernet(model_type: str, **config: Any) -> Supernet:
    """A supernet whose units and layers are in a random order of importance."""
    supernet = tiny_supernet(model_type, **config)
    supernet.reorder(random_orders(supernet))
    supernet.space = supernet.space.reordered((2, 0, 1))
    return supernet


def random_orders(supernet: Supernet) -> dict[tuple[str, int], list[int]]:
    rng = random.Random(5)
    return {(group.axis, group.layer): rng.sample(range(group.units), group.units) for group in supernet.groups}


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal_states(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# -- the largest network --------------------------------------------------------------------------------------------


def test_the_largest_network_is_the_original_bit_for_bit(model_type: str) -> None:
    original = logits(tiny_model(model_type))
    supernet = tiny_supernet(model_type)
    assert torch.equal(logits(supernet), original)
    with supernet.active(supernet.space.decode(supernet.space.largest)):
        assert torch.equal(logits(supernet), original)


def test_reordering_keeps_the_function_and_its_inverse_the_bits(model_type: str) -> None:
    supernet = tiny_supernet(model_type)
    before, weights = logits(supernet), state_of(supernet.model)
    orders = random_orders(supernet)
    supernet.reorder(orders)
    assert not equal_states(state_of(supernet.model), weights)
    after = logits(supernet)
    assert (after - before).abs().max() <= 1e-6
    assert torch.equal(after.argmax(-1), before.argmax(-1))
    supernet.reorder({key: inverse(order) for key, order in orders.items()})
    assert equal_states(state_of(supernet.model), weights)


def test_wrapping_copies_nothing_and_unwrapping_restores_the_tree(model_type: str) -> None:
    model = tiny_model(model_type)
    tree = [(name, type(module)) for name, module in model.named_modules()]
    pointers = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    names = list(model.state_dict())
    supernet = Supernet.wrap(model, tiny_space())
    assert list(model.state_dict()) == names
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == pointers
    unwrapped = supernet.unwrap()
    assert unwrapped is model
    assert [(name, type(module)) for name, module in model.named_modules()] == tree
    assert list(model.state_dict()) == names
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == pointers
    assert torch.equal(logits(model), logits(tiny_model(model_type)))


# -- sub-networks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_active_equals_extracted_equals_reloaded(model_type: str, attention: str, tmp_path: Path) -> None:
    supernet = shuffled_supernet(model_type, attn_implementation=attention)
    outputs = []
    for number, architecture in enumerate(some_architectures(supernet.space)):
        with supernet.active(architecture):
            outputs.append(logits(supernet))
        extracted = supernet.extract(architecture)
        assert torch.equal(logits(extracted), outputs[-1])
        folder = tmp_path / str(number)
        cast("Any", extracted).save_pretrained(folder)
        reloaded = cast("Any", type(extracted)).from_pretrained(folder, attn_implementation=attention)
        assert torch.equal(logits(reloaded.eval()), outputs[-1])
    assert len({tuple(output.flatten().tolist()) for output in outputs}) == len(outputs)


def test_bfloat16_weights_are_sliced_and_extracted_alike(model_type: str) -> None:
    supernet = shuffled_supernet(model_type)
    supernet.model.to(torch.bfloat16)
    for architecture in some_architectures(supernet.space):
        extracted = supernet.extract(architecture)
        assert {p.dtype for p in extracted.parameters()} == {torch.bfloat16}
        with supernet.active(architecture):
            assert torch.equal(logits(extracted), logits(supernet))


def test_an_extracted_network_is_contiguous_and_shares_nothing(model_type: str) -> None:
    supernet = shuffled_supernet(model_type)
    before = state_of(supernet.model)
    extracted = supernet.extract(supernet.space.decode(supernet.space.middle))
    for parameter in extracted.parameters():
        assert parameter.is_contiguous()
        assert parameter.requires_grad
        parameter.data.fill_(3.0)
    assert equal_states(state_of(supernet.model), before)


def test_a_dropped_layer_is_skipped(model_type: str) -> None:
    """The oracle is the stock class with the kept layers only."""
    supernet = tiny_supernet(model_type)
    kept = Architecture(tuple(LayerChoice(index=i, units=((FFN_WIDTH, 64), (HEADS, 4))) for i in (0, 2)))
    oracle: Any = tiny_model(model_type)
    encoder = getattr(oracle, oracle.base_model_prefix).encoder
    encoder.layer = nn.ModuleList([encoder.layer[0], encoder.layer[2]])
    with supernet.active(kept):
        assert torch.equal(logits(supernet), logits(oracle))


def test_removed_heads_and_neurons_are_those_set_to_zero(model_type: str) -> None:
    """The oracle zeroes what consumes the removed units; it adds in another order, hence the tolerance."""
    supernet = tiny_supernet(model_type)
    architecture = Architecture(tuple(LayerChoice(index=i, units=((FFN_WIDTH, 32), (HEADS, 1))) for i in range(3)))
    oracle: Any = tiny_model(model_type)
    for layer in getattr(oracle, oracle.base_model_prefix).encoder.layer:
        layer.attention.output.dense.weight.data[:, 8:] = 0
        layer.output.dense.weight.data[:, 32:] = 0
    with supernet.active(architecture):
        assert (logits(supernet) - logits(oracle)).abs().max() < 1e-5


def test_gradients_of_a_slice_reach_only_the_slice(model_type: str) -> None:
    supernet = shuffled_supernet(model_type)
    architecture = supernet.space.decode(supernet.space.middle)
    with supernet.active(architecture):
        supernet(**tiny_inputs()).logits.sum().backward()
    reached = 0
    for group in supernet.groups:
        for member in group.members:
            gradient = supernet.model.get_parameter(member.parameter).grad
            kept = group.kept(architecture)
            if kept == 0:
                assert gradient is None
                continue
            assert gradient is not None
            outside = member.positions(range(kept, group.units))
            assert not gradient.index_select(member.dim, torch.tensor(outside, dtype=torch.long)).any()
            reached += int(gradient.abs().sum() > 0)
    assert reached > 10


def test_the_active_architecture_and_mode_survive_exceptions(model_type: str) -> None:
    supernet = tiny_supernet(model_type)
    space = supernet.space
    before = logits(supernet)
    with supernet.active(space.decode(space.smallest)):
        smallest = logits(supernet)
        with pytest.raises(IndexError), supernet.active(space.decode(space.middle)):
            supernet(input_ids=torch.tensor([[VOCABULARY]]))
        assert torch.equal(logits(supernet), smallest)
    assert not torch.equal(smallest, before)
    assert torch.equal(logits(supernet), before)
    assert not supernet.model.training


# -- costs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("projected", [False, True])
def test_counted_parameters_and_flops_are_those_of_the_extracted_network(model_type: str, projected: bool) -> None:
    """ELECTRA may have embeddings narrower than its layers; the others ignore that field."""
    config = {"embedding_size": 16 if projected else 32} if model_type == "electra" else {}
    supernet = shuffled_supernet(model_type, **config)
    inputs = {"input_ids": tiny_inputs()["input_ids"]}
    batch, length = inputs["input_ids"].shape
    context = Context(batch=batch, sequences=(length,))
    for architecture in some_architectures(supernet.space):
        extracted = supernet.extract(architecture)
        assert supernet.count_parameters(architecture) == sum(p.numel() for p in extracted.parameters())
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            logits(extracted, inputs)
        assert sum(spec.flops for spec in supernet.ops(architecture, context)) == counter.get_total_flops()
        assert 2 * supernet.count_macs(architecture, context) == counter.get_total_flops()


def test_macs_over_several_lengths_are_their_mean(model_type: str) -> None:
    supernet = tiny_supernet(model_type)
    architecture = supernet.space.decode(supernet.space.middle)
    macs = [
        supernet.count_macs(architecture, Context(batch=2, sequences=lengths)) for lengths in ((8,), (24,), (8, 24))
    ]
    assert macs[2] == (macs[0] + macs[1]) / 2


def test_memory_grows_with_every_option(model_type: str) -> None:
    supernet = tiny_supernet(model_type)
    space = supernet.space
    used = [supernet.memory_bytes(space.decode(g), Context()) for g in (space.smallest, space.middle, space.largest)]
    assert used == sorted(set(used))
    halved = supernet.memory_bytes(space.decode(space.largest), Context(dtype="bfloat16"))
    assert 2 * halved == used[-1]


# -- layouts --------------------------------------------------------------------------------------------------------


def test_a_uniform_layout_loads_with_the_stock_class(model_type: str, tmp_path: Path) -> None:
    supernet = shuffled_supernet(model_type)
    layers = tuple(LayerChoice(index=i, units=((FFN_WIDTH, 32), (HEADS, 4))) for i in (0, 2))
    architecture = Architecture(layers)
    extracted: Any = supernet.extract(architecture, "uniform")
    assert type(extracted).__module__.startswith("transformers.")
    extracted.save_pretrained(tmp_path)
    reloaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert type(reloaded) is type(tiny_model(model_type))
    with supernet.active(architecture):
        assert torch.equal(logits(reloaded), logits(supernet))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([(32, 2), (32, 4)], "layout uniform needs all 4 heads in every layer"),
        ([(16, 4), (32, 4)], r"one feed-forward width for all layers, got \[16, 32\]"),
    ],
)
def test_a_uniform_layout_is_refused_where_it_cannot_say_it(
    model_type: str, sizes: list[tuple[int, int]], message: str
) -> None:
    supernet = tiny_supernet(model_type)
    layers = tuple(LayerChoice(index=i, units=((FFN_WIDTH, w), (HEADS, h))) for i, (w, h) in enumerate(sizes))
    with pytest.raises(ValueError, match=message):
        supernet.extract(Architecture(layers), "uniform")


# -- spaces ---------------------------------------------------------------------------------------------------------


def test_the_default_space_is_legal_throughout(model_type: str) -> None:
    model: Any = tiny_model(model_type)
    supernet = Supernet.wrap(model)
    assert supernet.space.family == family_for(model_type).name
    rng = random.Random(3)
    for _ in range(10):
        architecture = supernet.space.decode(supernet.space.sample(rng))
        assert all((layer.kept(FFN_WIDTH) or 0) % 16 == 0 for layer in architecture.layers)
        assert logits(supernet.extract(architecture)).isfinite().all()
    assert torch.equal(logits(supernet.extract(supernet.space.decode(supernet.space.largest))), logits(supernet))
