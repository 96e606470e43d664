"""Without a task first: a supernet of plain text, and a network of it that is fine-tuned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nas.adapting import adapt, with_new_head
from nas.searching import open_supernet
from nas.tune_request import TuneRequest
from nas.tuning import tune_supernet
from nas.workspace import Workspace
from supernets.checkpoint import head_labels, load_classifier
from supernets.finetune import TuneSettings
from supernets.recipe import load_recipe, plain_recipe
from supernets.task import TaskSettings
from tests.toy_job import SPACE, ToyJob, make_job


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> ToyJob:
    return make_job(tmp_path_factory.mktemp("agnostic"))


def request_of(job: ToyJob, recipe: str = "sandwich-distilled") -> TuneRequest:
    tuning = TuneSettings(steps=4, batch_size=8, importance_batches=1, recipe=load_recipe(recipe))
    task = TaskSettings(kind="masked-language-modelling", data=str(job.data), label=None)
    return TuneRequest(model=str(job.model), task=task, tuning=tuning, space=SPACE)


def test_a_supernet_of_plain_text_becomes_a_classifier(job: ToyJob) -> None:
    folder = tune_supernet(request_of(job), job.workspace)
    assert head_labels(str(folder)) is None
    opened = open_supernet(folder)
    assert opened.task.settings.kind == "masked-language-modelling"
    three: Any = load_classifier(str(folder), ("a", "b", "c")).model
    assert three.config.num_labels == 3

    smallest = opened.supernet.space.decode(opened.supernet.space.smallest)
    classification = TaskSettings(kind="text-classification", data=str(job.data))
    tuning = TuneSettings(steps=6, batch_size=8, recipe=plain_recipe(), order_fraction=-1.0, watched_examples=0)
    adapted = adapt(opened, smallest, classification, tuning)
    trained: Any = adapted.network
    assert adapted.task.labels == ("no", "yes")
    assert trained.config.id2label == {0: "no", 1: "yes"}
    assert 0 <= adapted.quality.error <= 1

    untouched: Any = opened.supernet.extract(smallest)
    renewed: Any = with_new_head(untouched, adapted.task, seed=0)
    assert type(renewed) is type(untouched)
    body = untouched.base_model.state_dict()
    assert all(torch.equal(tensor, body[name]) for name, tensor in renewed.base_model.state_dict().items())
    moved = trained.base_model.state_dict()
    assert any(not torch.equal(tensor, body[name]) for name, tensor in moved.items())


def test_there_is_no_strong_teacher_of_plain_text(job: ToyJob, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no strong teacher: use --recipe sandwich-distilled"):
        tune_supernet(request_of(job, "instatune"), Workspace(tmp_path / "work"))
    with pytest.raises(ValueError, match="a tokenizer with a mask token"):
        tune_supernet(replace(request_of(job), model=str(_maskless(job, tmp_path))), Workspace(tmp_path / "other"))


def _maskless(job: ToyJob, tmp_path: Path) -> Path:
    from transformers import AutoTokenizer

    folder = tmp_path / "maskless"
    model: Any = load_classifier(str(job.model), ("a", "b")).model
    model.base_model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    tokenizer.mask_token = None
    tokenizer.save_pretrained(folder)
    return folder
