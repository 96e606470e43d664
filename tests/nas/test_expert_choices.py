"""The choices that objectives see are those of the extracted network."""

from __future__ import annotations

import torch

from nas.expert_choices import expert_choices
from tests.toy_experts import LENGTH, expert_bindings, expert_supernet


def test_the_choices_are_those_of_the_network() -> None:
    """Merged experts by their common number, constants as -1."""
    bindings = expert_bindings(supernet=expert_supernet(operators=("mone", "uncurl")), batch_size=5)
    supernet, constants = bindings.supernet, 0
    for genotype in (supernet.space.smallest, supernet.space.middle):
        architecture = supernet.space.decode(genotype)
        network = supernet.extract(architecture)
        wanted: list[list[torch.Tensor]] = []
        for choice in architecture.layers:
            elastic, seen = supernet.experts[choice.index], list[torch.Tensor]()
            lead = elastic.tensors(architecture).get("experts.expert_map", torch.arange(8))
            count = elastic.sizes(choice)["experts"]
            gate = network.get_submodule(f"model.layers.{choice.index}.mlp.gate")
            gate.register_forward_hook(
                lambda _, __, out, lead=lead, count=count, seen=seen: seen.append(
                    torch.where(lead[out[-1]] < count, lead[out[-1]], -1)
                )
            )
            wanted.append(seen)
        for batch in bindings.task.batches("validation", 1):
            network(**batch.inputs)
        found = list(expert_choices(bindings, genotype))
        depth = len(architecture.layers)
        for position, seen in enumerate(wanted):
            layers = found[position::depth]
            assert [len(layer.chosen_BTk) for layer in layers] == [5, 5, 2]
            assert {layer.experts for layer in layers} == {
                supernet.experts[architecture.layers[position].index].sizes(architecture.layers[position])["experts"]
            }
            chosen = torch.cat([layer.chosen_BTk for layer in layers])
            torch.testing.assert_close(chosen, torch.stack(seen).view(len(chosen), LENGTH, -1), rtol=0, atol=0)
            constants += int((chosen < 0).sum())
    assert constants
