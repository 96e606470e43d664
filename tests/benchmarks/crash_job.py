"""What the crash benchmark kills: a command in a folder of its own, and everything it has finished there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from studies.records import Evaluation, Genotype, Value
from studies.store import FIXED, StudyStore
from tests.toy_job import write_checkpoint, write_data

Command = Literal["tune", "search", "fit"]
COMMANDS: tuple[Command, ...] = ("tune", "search", "fit")
STEPS = 120
LAYERS = 4
STUDY = "study"
Item = tuple[str, str]
"""Kind (``step`` of training, ``weights``, ``measurement``, ``study``, ``note``, ``evaluation``, ``value`` or
``artifact``) and name of something finished."""

NAS = Path(sys.executable).with_name("nas")

TUNING = ("--steps", str(STEPS), "--batch-size", "8", "--learning-rate", "3e-3", "--save-seconds", "0.05")
SEARCHING = ("--budget", "120", "--rounds", "10", "--sequence", "8+16", "--finalists", "3", "--study-name", STUDY)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that a kill must not do."""

    kind: Literal["lost", "duplicated", "changed"]
    what: str


@dataclass(frozen=True, slots=True)
class Job:
    """A command line but for the folder it works in.

    Attributes:
        inputs: holds what `prepare` wrote.
    """

    command: Command
    inputs: Path

    def arguments(self, folder: Path) -> tuple[str, ...]:
        """What follows ``nas`` to do the job in a folder."""
        if self.command == "tune":
            return self._tune(folder)
        storage = ("--storage", storage_of(folder))
        if self.command == "search":
            return ("search", str(self.inputs / "work" / "supernet"), *SEARCHING, *storage)
        return ("fit", *self._tune(folder)[1:], *SEARCHING, *storage, "--recover", "10")

    def _tune(self, folder: Path) -> tuple[str, ...]:
        inputs = (str(self.inputs / "model"), "--data", str(self.inputs / "data.tsv"))
        return ("tune", *inputs, *TUNING, "--output", str(folder))

    def replay(self, finished: Path, folder: Path) -> None:
        """Do the job without a kill, with the measurements of a finished one and nothing else of it."""
        folder.mkdir()
        if self.command != "tune":
            copy_database(finished, folder)
            call("study", "delete", STUDY, "--yes", "--storage", storage_of(folder))
        call(*self.arguments(folder))


def prepare(inputs: Path) -> None:
    """Write what all jobs start from."""
    write_checkpoint(inputs / "model", num_hidden_layers=LAYERS)
    write_data(inputs / "data.tsv", rows=1200)
    call(*Job("tune", inputs).arguments(inputs / "work"))


@dataclass(frozen=True, slots=True)
class Run:
    """How one run of a job ended.

    Attributes:
        stage: the last one that said something before the end.
    """

    seconds: float
    killed: bool
    stage: str


def call(*arguments: str, kill_after: float | None = None) -> Run:
    """Run ``nas`` until it ends, or kill it and its children with signal 9; any other end but success is fatal."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NAS_")}
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [str(NAS), *arguments],
            stdout=log,
            stderr=log,
            env={**environment, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            start_new_session=True,
        )
        try:
            process.wait(kill_after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        seconds = time.monotonic() - start
        log.seek(0)
        lines = log.read().splitlines()
    if process.returncode not in (0, -signal.SIGKILL):
        raise SystemExit("\n".join([f"nas {' '.join(arguments)} ended with {process.returncode}:", *lines[-20:]]))
    stages = [title for title, separator, rest in (line.partition(": ") for line in lines) if separator and "/" in rest]
    return Run(seconds, process.returncode != 0, stages[-1] if stages else "start")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything finished in a folder.

    Attributes:
        items: what may neither vanish nor change, with its content; of training, the steps that a restart keeps.
        trace: genotypes in order of proposal.
        twice: evaluations of one genotype, and values that answer one question, beyond the first.
        files: all of them but the database's, relative to the folder.
    """

    items: dict[Item, object] = field(default_factory=dict)
    trace: tuple[Genotype, ...] = ()
    twice: tuple[str, ...] = ()
    files: frozenset[str] = frozenset()

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Look at a folder without touching it."""
        paths = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        items: dict[Item, object] = {
            ("weights", str(path)): sha256(folder / path)
            for path in paths
            if path.name == "model.safetensors" and not any(part.startswith(".") for part in path.parts)
        }
        for stage in ("teacher", "supernet"):
            items |= {("step", f"{stage} {step}"): None for step in range(1, saved_steps(folder, stage) + 1)}
        items |= {} if not database(folder).exists() else dict(stored_items(folder))
        evaluations = [item for item in items.values() if isinstance(item, Evaluation)]
        return cls(
            items=items,
            trace=tuple(evaluation.genotype for evaluation in evaluations),
            twice=repeated(items),
            files=frozenset(str(path) for path in paths if not path.name.startswith(database(folder).name)),
        )

    def count(self, kind: str) -> int:
        """How many items of a kind there are."""
        return sum(kind == one for one, _ in self.items)


def repeated(items: Mapping[Item, object]) -> tuple[str, ...]:
    """Genotypes that were evaluated, and questions that were answered, more than once."""
    genotypes = Counter(item.genotype for item in items.values() if isinstance(item, Evaluation))
    questions = Counter(
        (name.partition(".")[0], v.objective, v.provenance, v.device, v.context, v.weights_hash, v.data_hash)
        for (_, name), v in items.items()
        if isinstance(v, Value)
    )
    return tuple(str(key) for counter in (genotypes, questions) for key, count in counter.items() if count > 1)


def stored_items(folder: Path) -> Iterator[tuple[Item, object]]:
    """Everything finished in the database of a folder, read from a copy."""
    with tempfile.TemporaryDirectory() as scratch:
        copy_database(folder, Path(scratch))
        with StudyStore.open(storage_of(Path(scratch))) as store:
            for device in store.devices():
                for one in store.measurements(device):
                    yield ("measurement", f"{device} {one.op_key}"), one
            for study in store.studies():
                yield ("study", study.name), tuple(getattr(study, name) for name in (*FIXED, "budget"))
                yield from ((("note", key), content) for key, content in store.notes(study.name).items())
                for evaluation in store.evaluations(study.name):
                    if evaluation.status in ("done", "failed"):
                        yield from evaluation_items(evaluation)
                for artifact in store.artifacts(study.name):
                    yield ("artifact", str(Path(artifact.uri).relative_to(folder))), artifact.sha256


def evaluation_items(evaluation: Evaluation) -> Iterator[tuple[Item, object]]:
    """An evaluation, final but for its values, and its values, to which more may be added."""
    fixed = ("genotype", "status", "failure", "number")
    yield ("evaluation", f"{evaluation.number}"), Evaluation(**{name: getattr(evaluation, name) for name in fixed})
    for i, value in enumerate(evaluation.values):
        yield ("value", f"{evaluation.number}.{i}"), value


def faults(before: Snapshot, after: Snapshot) -> list[Fault]:
    """What of a snapshot a later one lacks or contradicts, and what the later one holds twice."""
    found = [Fault("lost", " ".join(item)) for item in before.items if item not in after.items]
    common = (item for item in before.items if item in after.items)
    found += [Fault("changed", " ".join(item)) for item in common if before.items[item] != after.items[item]]
    return found + [Fault("duplicated", what) for what in after.twice if what not in before.twice]


def saved_steps(folder: Path, stage: str) -> int:
    """Training steps that are on disk: all once the network is written, else those of the training state."""
    if (folder / stage).exists():
        return STEPS
    try:
        with (folder / "training" / f"{stage}.safetensors").open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    except FileNotFoundError:
        return 0
    return int(header["__metadata__"]["step"])


def database(folder: Path) -> Path:
    """The study database of a folder."""
    return folder / "study.db"


def storage_of(folder: Path) -> str:
    """Its URL."""
    return f"sqlite:///{database(folder)}"


def copy_database(source: Path, target: Path) -> None:
    """The database with what its write-ahead log holds; nobody may be writing."""
    for suffix in ("", "-wal"):
        path = Path(f"{database(source)}{suffix}")
        if path.exists():
            shutil.copyfile(path, target / path.name)


def sha256(path: Path) -> str:
    """Hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
