"""A whole job in miniature: a pre-trained checkpoint, a data file, and what fitting them takes."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels.timing import TimingSettings
from nas.fit import FitRequest, FitResult, Listener, fit
from nas.searching import SearchRequest
from nas.settings import SearchSettings
from nas.tune_request import TuneRequest
from nas.workspace import Workspace
from supernets.family import SpaceOptions
from supernets.finetune import TuneSettings
from supernets.task import TaskSettings
from tests.toy_task import tiny_model, tiny_tokenizer

QUICK = TimingSettings(min_rounds=2, max_rounds=2, min_sample_seconds=1e-5)
SPACE = SpaceOptions(head_options=2, width_options=2)
LAYERS = 2
STEPS = 6


def write_checkpoint(folder: Path, *, head: bool = False, **config: Any) -> Path:
    """A tiny BERT with its tokenizer; as a bare encoder unless it keeps its classification head."""
    folder.mkdir(parents=True)
    model: Any = tiny_model(layers=LAYERS, **config)
    (model if head else model.bert).save_pretrained(folder)
    tiny_tokenizer(folder).save_pretrained(folder)
    return folder


def write_data(path: Path, rows: int = 60, seed: int = 0) -> Path:
    """Sentences of class ``yes`` hold the word w2; lengths differ."""
    rng = random.Random(seed)
    lines = ["text\tlabel"]
    for number in range(rows):
        words = [f"w{rng.randrange(8, 90)}" for _ in range(rng.randrange(3, 9))]
        if number % 2:
            words[rng.randrange(len(words))] = "w2"
        lines.append(" ".join(words) + "\t" + ("no", "yes")[number % 2])
    path.write_text("\n".join(lines) + "\n")
    return path


@dataclass(frozen=True)
class ToyJob:
    """Where a job's inputs and results are."""

    root: Path

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def data(self) -> Path:
        return self.root / "data.tsv"

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.root / "work")

    def request(self, **changes: Any) -> TuneRequest:
        tuning = TuneSettings(steps=STEPS, batch_size=8, importance_batches=1, **changes.pop("tuning", {}))
        task = TaskSettings(kind="text-classification", data=str(self.data))
        return TuneRequest(**{"model": str(self.model), "task": task, "tuning": tuning, "space": SPACE, **changes})

    def fit_request(self, output: Path | None = None, **search: Any) -> FitRequest:
        settings = SearchSettings(**{"budget": 10, "batch": 5, **search})
        searched = SearchRequest(search=settings, sequences=(8,), finalists=3, timing=QUICK)
        return FitRequest(tune=self.request(), search=searched, output=output or self.workspace.root)


def make_job(root: Path) -> ToyJob:
    """Inputs only."""
    job = ToyJob(root)
    write_checkpoint(job.model)
    write_data(job.data)
    return job


def copied(job: ToyJob, root: Path) -> ToyJob:
    """The results in another folder, for the same inputs."""
    shutil.copytree(job.workspace.root, root / "work")
    for name in ("model", "data.tsv"):
        (root / name).symlink_to(job.root / name)
    return ToyJob(root)


def fit_job(job: ToyJob, listener: Listener | None = None) -> FitResult:
    """Results too."""
    return fit(job.fit_request(), listener)


def provenance(folder: Path) -> dict[str, Any]:
    """What an export says about itself."""
    content: dict[str, Any] = json.loads((folder / "supernas.json").read_text())
    return content
