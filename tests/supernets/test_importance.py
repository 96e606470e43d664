"""Importance against what it estimates: the change of the loss when a unit or layer is really removed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from supernets.importance import measure_importance, order_by_importance
from supernets.space import FFN_WIDTH, HEADS, Architecture, LayerChoice
from supernets.supernet import Supernet
from supernets.task import TRAIN, Batch
from tests.toy_task import ToyTask, tiny_supernet


def batches(count: int = 3) -> list[Batch]:
    return list(islice(ToyTask().batches(TRAIN, 8, seed=0), count))


def loss_of(supernet: Supernet) -> Callable[[Batch], Tensor]:
    def loss(batch: Batch) -> Tensor:
        assert batch.labels is not None
        return F.cross_entropy(supernet(**batch.inputs).logits, batch.labels)

    return loss


def test_scores_are_the_first_order_loss_change_of_removing_a_unit() -> None:
    """The oracle is the derivative of each single example's loss in a gate on the consumer's input, in float64."""
    supernet = tiny_supernet()
    supernet.model.double()
    data, loss = batches(2), loss_of(supernet)
    scores = measure_importance(supernet, data, loss).units
    for group in supernet.groups[:2]:
        gates = torch.ones(group.units, dtype=torch.float64, requires_grad=True)
        consumer = supernet.model.get_submodule(group.consumer)

        def gate(_: object, args: tuple[Tensor, ...], gates: Tensor = gates) -> Tensor:
            return args[0] * gates.repeat_interleave(args[0].shape[-1] // len(gates))

        handle = consumer.register_forward_pre_hook(gate)
        expected = torch.zeros(group.units, dtype=torch.float64)
        for batch in data:
            assert batch.labels is not None
            for row in range(len(batch)):
                inputs = {name: tensor[row : row + 1] for name, tensor in batch.inputs.items()}
                single = F.cross_entropy(supernet(**inputs).logits, batch.labels[row : row + 1]) / len(batch)
                expected += torch.autograd.grad(single, gates)[0].abs()
        handle.remove()
        assert scores[group.axis, group.layer] == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-9)


def test_planted_useless_units_come_last() -> None:
    supernet = tiny_supernet()
    layer = supernet.model.get_submodule("bert.encoder.layer.1")
    layer.get_parameter("attention.output.dense.weight").data[:, 8:16] = 0
    dead = [3, 17, 40]
    layer.get_parameter("output.dense.weight").data[:, dead] = 0
    orders = measure_importance(supernet, batches(), loss_of(supernet)).orders
    assert orders[HEADS, 1][-1] == 1
    assert orders[FFN_WIDTH, 1][-3:] == dead
    assert all(sorted(orders[g.axis, g.layer]) == list(range(g.units)) for g in supernet.groups)


def test_layers_are_removed_greedily_by_the_loss_without_them() -> None:
    supernet = tiny_supernet(layers=4)
    data, loss = batches(), loss_of(supernet)
    importance = measure_importance(supernet, data, loss)
    kept, removed, losses = [0, 1, 2, 3], list[int](), list[float]()
    while len(kept) > 1:
        costs = []
        for layer in kept:
            rest = Architecture(tuple(LayerChoice(index=i, units=()) for i in kept if i != layer))
            with supernet.active(rest), torch.no_grad():
                costs.append(sum(float(loss(batch)) for batch in data) / len(data))
        losses.append(min(costs))
        removed.append(kept.pop(costs.index(losses[-1])))
    assert importance.layer_order == (*kept, *reversed(removed))
    assert importance.layer_losses == pytest.approx(losses, rel=1e-6)


def test_a_layer_that_does_nothing_is_removed_first() -> None:
    """With zero outputs in both blocks a layer is two norms of what is normalised already."""
    supernet = tiny_supernet()
    layer = supernet.model.get_submodule("bert.encoder.layer.1")
    for name in ("attention.output", "output"):
        layer.get_parameter(f"{name}.dense.weight").data.zero_()
        layer.get_parameter(f"{name}.dense.bias").data.zero_()
    for module in supernet.model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.weight.data.fill_(1.0)
            module.bias.data.zero_()
    with torch.no_grad():
        full_BC = supernet(**batches(1)[0].inputs).logits
    importance = measure_importance(
        supernet, batches(1), lambda batch: F.mse_loss(supernet(**batch.inputs).logits + 1e-3, full_BC)
    )
    assert importance.layer_order[-1] == 1
    assert importance.layer_losses[0] == pytest.approx(1e-6, rel=1e-2)
    assert importance.layer_losses[1] > 1e-3


def test_measuring_leaves_the_model_as_it_was() -> None:
    supernet = tiny_supernet()
    supernet.model.train()
    before = supernet.hash
    measure_importance(supernet, batches(1), loss_of(supernet))
    assert supernet.model.training
    assert supernet.hash == before
    assert all(parameter.grad is None for parameter in supernet.model.parameters())
    hooks = [hook for module in supernet.model.modules() for hook in module._forward_pre_hooks]
    assert not hooks


def test_no_data_is_refused() -> None:
    supernet = tiny_supernet()
    with pytest.raises(ValueError, match="importance needs at least one batch"):
        measure_importance(supernet, [], loss_of(supernet))


def test_ordering_moves_weights_moments_and_layers_together() -> None:
    """After one step from zero, Adam's first moment is a multiple of the gradient, which shows where each unit went."""
    supernet = tiny_supernet()
    optimizer = torch.optim.AdamW(supernet.model.parameters(), lr=1e-9)
    loss_of(supernet)(batches(1)[0]).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    named = dict(supernet.model.named_parameters())
    before = {name: (p.detach().clone(), optimizer.state[p]["exp_avg"].clone()) for name, p in named.items()}
    optimizer.zero_grad(set_to_none=True)
    importance = order_by_importance(supernet, batches(), loss_of(supernet), optimizer)
    assert supernet.space.layer_order == importance.layer_order
    for group in supernet.groups:
        order = importance.orders[group.axis, group.layer]
        for member in group.members:
            rows = torch.tensor(member.positions(order))
            weight, moment = before[member.parameter]
            parameter = named[member.parameter]
            assert torch.equal(parameter, weight.index_select(member.dim, rows))
            assert torch.equal(optimizer.state[parameter]["exp_avg"], moment.index_select(member.dim, rows))
