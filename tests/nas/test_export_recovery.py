"""Recovery before export: what it gives is kept only if it is no worse on validation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nas.export import Exported, ExportRequest, _teacher_logits, export_network
from nas.searching import open_supernet
from studies.store import StudyStore
from supernets.checkpoint import load_exported, load_teacher_logits
from supernets.evaluation import Quality, evaluate
from supernets.finetune import TuneSettings
from tests.toy_job import ToyJob, provenance

BIAS = "classifier.bias"


def export_with(job: ToyJob, folder: Path, monkeypatch: pytest.MonkeyPatch, *, change: float) -> Exported:
    """Export a network; training moves its last bias by 1 and its error by `change`."""

    def recover(_opened: object, network: nn.Module, *_: object) -> nn.Module:
        with torch.no_grad():
            network.get_parameter(BIAS).add_(1)
        return network

    changes = iter((0.0, change))

    def judged(*arguments: Any, **options: Any) -> Quality:
        return replace(evaluate(*arguments, **options), error=0.4 + next(changes))

    monkeypatch.setattr("nas.export.recover", recover)
    monkeypatch.setattr("nas.export.evaluate", judged)
    with (
        StudyStore.open(f"sqlite:///{folder.parent / 'study.db'}") as store,
        StudyStore.open(job.workspace.storage) as old,
    ):
        study = old.study("study")
        evaluation = old.evaluations("study")[0]
        store.create_or_resume(study)
        store.append("study", [evaluation])
        request = ExportRequest(folder=folder, study_name="study", recovery_steps=5)
        return export_network(open_supernet(job.workspace.supernet), evaluation, request, store)


def moved(job: ToyJob, done: Exported) -> float:
    """By how much the last bias of the checkpoint differs from the supernet's."""
    supernet = open_supernet(job.workspace.supernet).supernet
    return float((load_exported(done.folder).state_dict()[BIAS] - supernet.model.state_dict()[BIAS]).mean())


@pytest.mark.parametrize(("change", "kept"), [(-0.1, True), (0.0, True), (0.1, False)])
def test_recovery_is_kept_only_if_it_does_no_harm(
    change: float, kept: bool, fitted: ToyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = export_with(fitted, tmp_path / "export", monkeypatch, change=change)
    assert done.recovery_kept is provenance(done.folder)["recovery_kept"] is kept
    assert done.quality.error == pytest.approx(0.4 + min(change, 0.0))
    assert moved(fitted, done) == pytest.approx(1.0 if kept else 0.0, abs=1e-6)
    assert ("made it worse on validation" in (done.folder / "README.md").read_text()) is not kept


def test_kept_answers_of_the_teacher_are_only_used_for_the_data_they_were_given_on(
    fitted: ToyJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_supernet(fitted.workspace.supernet)
    kept = load_teacher_logits(opened.folder)
    assert kept is not None
    asked: list[str] = []

    def ask(*arguments: Any, **options: Any) -> tuple[torch.Tensor, None]:
        asked.append("again")
        return kept, None

    monkeypatch.setattr("nas.export.predict_logits", ask)
    settings = TuneSettings(steps=1)
    known = _teacher_logits(opened, settings)
    assert known is not None
    assert torch.equal(known, kept)
    assert not asked
    moved = replace(opened, record={**opened.record, "taught_on": "the same number of other examples"})
    _teacher_logits(moved, settings)
    assert asked == ["again"]


def test_damaged_answers_are_named(tmp_path: Path) -> None:
    (tmp_path / "teacher_logits.safetensors").write_bytes(b"not this")
    with pytest.raises(
        ValueError, match=r"teacher_logits\.safetensors cannot be read .* delete it, and the teacher is"
    ):
        load_teacher_logits(tmp_path)
