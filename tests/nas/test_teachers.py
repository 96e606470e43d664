"""Which teachers are taken, and what is remembered of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nas.export import ExportRequest, recover
from nas.searching import open_supernet
from nas.teaching import _question
from nas.tuning import open_task, prepare, tune_supernet
from supernets.checkpoint import read_supernet_record
from supernets.recipe import Recipe
from supernets.task import TaskSettings
from tests.toy_job import ToyJob, make_job, write_checkpoint

CLASSES = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}


@pytest.fixture
def job(tmp_path: Path) -> ToyJob:
    return make_job(tmp_path)


def test_a_teacher_has_a_head(job: ToyJob) -> None:
    with pytest.raises(ValueError, match=r"the teacher .*model has no classification head: fine-tune it"):
        prepare(job.request(teacher=str(job.model)))


def test_a_teacher_reads_the_same_tokens(job: ToyJob, tmp_path: Path) -> None:
    teacher = write_checkpoint(tmp_path / "teacher", head=True, **CLASSES)
    assert prepare(job.request(teacher=str(teacher))).task.labels == ("no", "yes")
    words = (teacher / "tokenizer.json").read_text()
    (teacher / "tokenizer.json").write_text(words.replace('"w2"', '"another"'))
    with pytest.raises(
        ValueError, match=r"the teacher .* has another vocabulary than .*; choose a teacher with the same"
    ):
        prepare(job.request(teacher=str(teacher)))


def test_a_teacher_takes_inputs_as_long_as_the_tasks(job: ToyJob, tmp_path: Path) -> None:
    teacher = write_checkpoint(tmp_path / "teacher", head=True, max_position_embeddings=6, **CLASSES)
    with pytest.raises(ValueError, match=r"the teacher .* takes inputs of at most 6 tokens, the task's have up to"):
        prepare(job.request(teacher=str(teacher)))


def test_something_is_judged_on_labels(job: ToyJob, tmp_path: Path) -> None:
    (tmp_path / "validation.tsv").write_text("text\tlabel\n" + "w5 w6\t\n" * 8)
    data = {"train": str(job.data), "validation": str(tmp_path / "validation.tsv")}
    with pytest.raises(ValueError, match="none of the 8 examples of validation has a label"):
        prepare(job.request(task=TaskSettings(kind="text-classification", data=data)))


def test_a_teacher_is_kept_for_settings_that_decide_its_weights(job: ToyJob) -> None:
    request = job.request()
    task, _ = open_task(request.task, request.model)
    asked = _question(request, task)
    often = replace(request, tuning=replace(request.tuning, save_seconds=1.0))
    assert _question(often, task) == asked
    weighted, _ = open_task(replace(request.task, class_weights="balanced"), request.model)
    assert _question(request, weighted) != asked


def test_later_stages_find_a_teacher_from_anywhere(
    job: ToyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = write_checkpoint(tmp_path / "teacher", head=True, **CLASSES)
    monkeypatch.chdir(tmp_path)
    record = read_supernet_record(tune_supernet(job.request(model="model", teacher="teacher"), job.workspace))
    assert (record["base_model"], record["teacher"]) == (str(job.model.resolve()), str(teacher.resolve()))


@pytest.mark.parametrize("recipe", [Recipe(gamma=0.0), Recipe(alpha=1.0)], ids=["own teacher", "hard labels"])
def test_networks_of_a_supernet_without_teacher_recover(job: ToyJob, recipe: Recipe) -> None:
    opened = open_supernet(tune_supernet(job.request(tuning={"recipe": recipe}), job.workspace))
    supernet = opened.supernet
    network = supernet.extract(supernet.space.decode(supernet.space.smallest))
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    recovered = recover(opened, network, ExportRequest(folder=job.root / "export", study_name="x", recovery_steps=3))
    assert any(not torch.equal(weight, before[name]) for name, weight in recovered.state_dict().items())
