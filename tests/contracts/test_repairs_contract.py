"""What every repair promises, over all files in `supernets/repairs`."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from supernets.calibration import calibrate
from supernets.elastic_experts import build_block
from supernets.expert_bank import moe_layers
from supernets.reduction import CalibratedLayer, reduce_layer
from supernets.repair import REPAIRS, Repair, RepairSettings, divergence, repair_named
from tests.toy_moe import toy_batches, toy_moe

BATCHES = toy_batches(batches=1, size=6)
STUDENTS = (
    ("qwen2_moe", "reap"),
    ("mixtral", "m-smoe"),
    ("deepseek_v3", "uncurl"),
    ("qwen3_moe", "mone"),
    ("gpt_oss", "reap"),
)


@cache
def pair(kind: str, operator: str) -> tuple[nn.Module, nn.Module]:
    """A full model and one with half the experts."""
    teacher = toy_moe(kind)
    statistics, student = calibrate(teacher, BATCHES), copy.deepcopy(teacher)
    for layer in moe_layers(teacher):
        reduced = reduce_layer(CalibratedLayer.of(layer, statistics), operator, 4)
        student.set_submodule(layer.name, build_block(layer, teacher.config, reduced, layer.top_k))
    return teacher, student


@pytest.fixture(params=REPAIRS.names())
def repair(request: pytest.FixtureRequest) -> Repair:
    return repair_named(request.param)


@pytest.fixture(params=STUDENTS, ids="-".join)
def models(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    """A teacher and a student of the test's own."""
    teacher, student = pair(*request.param)
    return teacher, copy.deepcopy(student)


def settings_of(repair: Repair, steps: int) -> RepairSettings:
    """Steps so small that no token changes its experts, at which a loss jumps."""
    return RepairSettings(steps=steps, learning_rate=1e-5, temperature=repair.defaults.temperature)


def test_it_is_called_like_its_file(repair: Repair) -> None:
    assert repair_named(repair.name) is repair


def test_lowers_its_loss_and_changes_only_what_it_declares(repair: Repair, models: tuple[nn.Module, nn.Module]) -> None:
    teacher, student = models
    full = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    trainable = {name: parameter.requires_grad for name, parameter in student.named_parameters()}
    declared, identities = set(repair.parameters(student)), [id(one) for one in student.parameters()]
    student.train()
    losses = repair.repair(student, teacher, BATCHES, settings_of(repair, 12))
    after = student.state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert losses[-1] < losses[0]
    assert changed
    assert changed <= declared
    assert list(after) == list(before)
    assert identities == [id(one) for one in student.parameters()]
    assert trainable == {name: parameter.requires_grad for name, parameter in student.named_parameters()}
    assert all(parameter.grad is None for parameter in student.parameters())
    assert student.training
    assert all(torch.equal(tensor, full[name]) for name, tensor in teacher.state_dict().items())


def test_the_same_twice(repair: Repair) -> None:
    teacher, student = pair(*STUDENTS[0])
    one, other = copy.deepcopy(student), copy.deepcopy(student)
    settings = settings_of(repair, 3)
    assert repair.repair(one, teacher, BATCHES, settings) == repair.repair(other, teacher, BATCHES, settings)
    for parameter, twin in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(parameter, twin)


def test_text_is_needed(repair: Repair) -> None:
    teacher, student = pair(*STUDENTS[0])
    with pytest.raises(ValueError, match="a repair needs at least one batch of text"):
        repair.repair(student, teacher, [])


def padded(batch: dict[str, Tensor], tokens: int) -> dict[str, Tensor]:
    """The same texts with so many tokens of padding behind each."""
    ids_BL = batch["input_ids"]
    mask_BL = torch.cat([torch.ones_like(ids_BL), torch.zeros_like(ids_BL[:, :tokens])], dim=1)
    return {"input_ids": torch.cat([ids_BL, ids_BL[:, :tokens]], dim=1), "attention_mask": mask_BL}


def test_padding_teaches_nothing(repair: Repair) -> None:
    teacher, student = pair(*STUDENTS[0])
    one, other = copy.deepcopy(student), copy.deepcopy(student)
    settings = settings_of(repair, 2)
    losses = repair.repair(one, teacher, BATCHES, settings)
    assert repair.repair(other, teacher, [padded(batch, 5) for batch in BATCHES], settings) == pytest.approx(losses)
    for parameter, twin in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(parameter, twin, rtol=1e-5, atol=1e-6)


def test_a_divergence_is_that_of_the_next_tokens() -> None:
    teacher, student = pair(*STUDENTS[0])
    (batch,) = toy_batches(batches=1, size=2)
    masked = {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}
    masked["attention_mask"][0, 6:] = 0
    with torch.no_grad():
        found = divergence(student, teacher, masked, 2.0)
        logits = [model(**masked).logits.double() / 2 for model in (teacher, student)]
    wanted = []
    for row, length in enumerate((6, batch["input_ids"].shape[1])):
        for position in range(length - 1):
            p, q = (one[row, position].log_softmax(-1) for one in logits)
            wanted.append(float((p.exp() * (p - q)).sum()))
    assert float(found) == pytest.approx(4 * sum(wanted) / len(wanted), rel=1e-4)
