"""What every file in `supernets/families` promises, for every model type it declares."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kernels import op_cost
from kernels.op_spec import Context, OpSpec
from studies.records import Genotype
from supernets.elastic import inverse
from supernets.family import Family
from supernets.space import Architecture, SearchSpace
from supernets.supernet import FAMILIES, Supernet, family_for
from tests.toy_families import toy_family_model, toy_family_space, toy_family_supernet
from tests.toy_task import VOCABULARY, tiny_inputs

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
    supernet = toy_family_supernet(model_type, **config)
    supernet.reorder(random_orders(supernet))
    supernet.space = supernet.space.reordered((2, 0, 1))
    return supernet


def random_orders(supernet: Supernet) -> dict[tuple[str, int], list[int]]:
    rng = random.Random(5)
    return {(group.axis, group.layer): rng.sample(range(group.units), group.units) for group in supernet.groups}


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def reloaded(network_class: Any, folder: Path, attention: str) -> Any:
    """A saved network; copied, since as loaded its weights may lie unaligned, which rounds differently."""
    network = network_class.from_pretrained(folder, attn_implementation=attention)
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone()
    return network.eval()


def equal_states(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# -- the largest network --------------------------------------------------------------------------------------------


def test_the_largest_network_is_the_original_bit_for_bit(model_type: str) -> None:
    original = logits(toy_family_model(model_type))
    supernet = toy_family_supernet(model_type)
    assert torch.equal(logits(supernet), original)
    with supernet.active(supernet.space.decode(supernet.space.largest)):
        assert torch.equal(logits(supernet), original)


def test_reordering_keeps_the_function_and_its_inverse_the_bits(model_type: str) -> None:
    supernet = toy_family_supernet(model_type)
    before, weights = logits(supernet), state_of(supernet.model)
    orders = random_orders(supernet)
    supernet.reorder(orders)
    assert not equal_states(state_of(supernet.model), weights)
    after = logits(supernet)
    assert (after - before).abs().max() <= 2e-6 * max(1.0, float(before.abs().max()))
    assert torch.equal(after.argmax(-1), before.argmax(-1))
    supernet.reorder({key: inverse(order) for key, order in orders.items()})
    assert equal_states(state_of(supernet.model), weights)


def test_wrapping_copies_nothing_and_unwrapping_restores_the_tree(model_type: str) -> None:
    model = toy_family_model(model_type)
    tree = [(name, type(module)) for name, module in model.named_modules()]
    pointers = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    names = list(model.state_dict())
    supernet = Supernet.wrap(model, toy_family_space(model_type))
    assert list(model.state_dict()) == names
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == pointers
    unwrapped = supernet.unwrap()
    assert unwrapped is model
    assert [(name, type(module)) for name, module in model.named_modules()] == tree
    assert list(model.state_dict()) == names
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == pointers
    assert torch.equal(logits(model), logits(toy_family_model(model_type)))


# -- sub-networks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_active_equals_extracted_equals_reloaded(model_type: str, attention: str, tmp_path: Path) -> None:
    if (model_type, attention) == ("gpt_oss", "sdpa"):
        pytest.skip("its attention sinks need the eager implementation on a CPU")
    supernet = shuffled_supernet(model_type, attn_implementation=attention)
    outputs = []
    for number, architecture in enumerate(some_architectures(supernet.space)):
        with supernet.active(architecture):
            outputs.append(logits(supernet))
        extracted = supernet.extract(architecture)
        assert torch.equal(logits(extracted), outputs[-1])
        folder = tmp_path / str(number)
        cast("Any", extracted).save_pretrained(folder, save_original_format=False)
        assert torch.equal(logits(reloaded(type(extracted), folder, attention)), outputs[-1])
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


def test_gradients_of_a_slice_reach_only_the_slice(model_type: str) -> None:
    supernet = shuffled_supernet(model_type)
    architecture = supernet.space.decode(supernet.space.middle)
    with supernet.active(architecture):
        supernet(**tiny_inputs()).logits.sum().backward()
    parameters, reached = dict(supernet.model.named_parameters()), 0
    for group in supernet.groups:
        for member in group.members:
            if member.parameter not in parameters:
                continue  # a buffer, such as a router's correction bias
            gradient = parameters[member.parameter].grad
            kept = group.kept(architecture)
            if kept == 0:
                assert gradient is None
                continue
            assert gradient is not None
            outside = member.positions(range(kept, group.units))
            assert not gradient.index_select(member.dim, torch.tensor(outside, dtype=torch.long)).any()
            reached += int(gradient.abs().sum() > 0)
    assert reached > 5


def test_the_active_architecture_and_mode_survive_exceptions(model_type: str) -> None:
    supernet = toy_family_supernet(model_type)
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
    if projected and model_type != "electra":
        pytest.skip("only ELECTRA projects its embeddings")
    supernet = shuffled_supernet(model_type, **({"embedding_size": 16} if projected else {}))
    if model_type in family_for("mixtral").model_types:
        cast("Any", supernet.model).set_experts_implementation("eager")  # the counter does not see grouped products
    inputs = {"input_ids": tiny_inputs()["input_ids"]}
    batch, length = inputs["input_ids"].shape
    context = Context(batch=batch, sequences=(length,))
    for architecture in some_architectures(supernet.space):
        extracted = supernet.extract(architecture)
        assert supernet.count_parameters(architecture) == sum(p.numel() for p in extracted.parameters())
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            logits(extracted, inputs)
        specs = supernet.ops(architecture, context)
        assert 2 * supernet.count_macs(architecture, context) == sum(spec.flops for spec in specs)
        assert sum(unmasked_flops(spec) for spec in specs) == counter.get_total_flops()


def unmasked_flops(spec: OpSpec) -> int:
    """The operation counts causal attention by the pairs that a token may see; torch's counter knows no masks."""
    if spec.kind != "attention":
        return spec.flops
    size = spec.size
    return op_cost.attention(size["heads"], size["groups"], size["head_dim"], spec.context, causal=False).flops


def test_macs_over_several_lengths_are_their_mean(model_type: str) -> None:
    supernet = toy_family_supernet(model_type)
    architecture = supernet.space.decode(supernet.space.middle)
    macs = [
        supernet.count_macs(architecture, Context(batch=2, sequences=lengths)) for lengths in ((8,), (24,), (8, 24))
    ]
    assert macs[2] == (macs[0] + macs[1]) / 2


def test_memory_grows_with_every_option(model_type: str) -> None:
    supernet = toy_family_supernet(model_type)
    space = supernet.space
    used = [supernet.memory_bytes(space.decode(g), Context()) for g in (space.smallest, space.middle, space.largest)]
    assert used == sorted(set(used))
    halved = supernet.memory_bytes(space.decode(space.largest), Context(dtype="bfloat16"))
    assert 2 * halved == used[-1]


# -- layouts --------------------------------------------------------------------------------------------------------


def test_a_uniform_layout_loads_with_the_stock_class(model_type: str, tmp_path: Path) -> None:
    supernet = shuffled_supernet(model_type)
    architecture = supernet.space.decode(next(stock_genotypes(supernet)))
    extracted: Any = supernet.extract(architecture, "uniform")
    assert type(extracted).__module__.startswith("transformers.")
    extracted.save_pretrained(tmp_path)
    stock = reloaded(getattr(transformers, type(extracted).__name__), tmp_path, supernet.config._attn_implementation)
    assert type(stock) is type(toy_family_model(model_type))
    with supernet.active(architecture):
        assert torch.equal(logits(stock), logits(supernet))


def stock_genotypes(supernet: Supernet) -> Iterator[Genotype]:
    """Networks with dropped layers and smaller ones that the layout uniform can say, smallest first."""
    for genotype in supernet.space.uniform():
        architecture = supernet.space.decode(genotype)
        try:
            supernet.configured(architecture, "uniform")
        except ValueError:
            continue
        if 1 < len(architecture.layers) < supernet.space.num_layers:
            yield genotype


# -- spaces ---------------------------------------------------------------------------------------------------------


def test_the_default_space_is_legal_throughout(model_type: str) -> None:
    supernet = Supernet.wrap(toy_family_model(model_type))
    space = supernet.space
    assert space.family == family_for(model_type).name
    rng = random.Random(3)
    for genotype in (space.smallest, *(space.sample(rng) for _ in range(6))):
        assert logits(supernet.extract(space.decode(genotype))).isfinite().all()
    assert torch.equal(logits(supernet.extract(space.decode(space.largest))), logits(supernet))
