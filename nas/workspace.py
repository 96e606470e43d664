"""The folder of one job and what it holds at which stage; every part appears complete or not at all.

work/
├── teacher/                the fine-tuned full model (none if the checkpoint already had a head)
├── teacher.json            what it was fine-tuned from, on and with
├── supernet/               weights, tokenizer and supernet.json
├── exports/NAME/           stand-alone checkpoints
├── training/*.safetensors  states of unfinished training, removed when done
├── plan.json               what training was asked for, and the number of steps that came to
└── study.db                the default study store
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Workspace:
    """Where the stages of a job leave their results."""

    root: Path

    @property
    def teacher(self) -> Path:
        """The fine-tuned full model."""
        return self.root / "teacher"

    @property
    def teacher_question(self) -> Path:
        """The identity of model, data and settings that the teacher answers to."""
        return self.root / "teacher.json"

    @property
    def supernet(self) -> Path:
        """The finished supernet."""
        return self.root / "supernet"

    @property
    def storage(self) -> str:
        """URL of the default study store."""
        return f"sqlite:///{self.root / 'study.db'}"

    @property
    def plan(self) -> Path:
        """What was decided about the training before it started."""
        return self.root / "plan.json"

    def export(self, name: str) -> Path:
        """A stand-alone checkpoint."""
        return self.root / "exports" / name

    def training_state(self, stage: str) -> Path:
        """The state of an unfinished training stage."""
        return self.root / "training" / f"{stage}.safetensors"


def write_whole(path: Path, content: object) -> None:
    """Write JSON in one step, folders included: a kill leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
