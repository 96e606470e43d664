"""`nas adapt`: from a supernet of plain text to a classifier that reloads, and what is said where that cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli.errors import ExitCode
from cli.main import run
from nas.searching import open_supernet
from studies.store import StudyStore
from supernets.checkpoint import load_exported
from supernets.evaluation import evaluate, resolve_precision
from supernets.task import VALIDATION
from tests.toy_job import ToyJob, make_job, provenance

KIND = ("--task", "masked-language-modelling", "--recipe", "sandwich-distilled", "--label", "")
SMALL = ("--head-options", "2", "--width-options", "2", "--batch-size", "8", "--steps", "2", "--uniform")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> ToyJob:
    """A searched supernet of plain text."""
    job = make_job(tmp_path_factory.mktemp("plain"))
    work, storage = str(job.workspace.root), job.workspace.storage
    assert run(["tune", str(job.model), "--data", str(job.data), *KIND, *SMALL, "--output", work]) == ExitCode.OK
    searched = ("--algorithm", "random", "--budget", "4", "--objective", "error", "--objective", "macs")
    assert run(["search", str(job.workspace.supernet), *searched, "--storage", storage]) == ExitCode.OK
    return job


def adapt(job: ToyJob, output: Path, *arguments: str) -> int:
    fixed = ("--storage", job.workspace.storage, "--output", str(output), "--steps", "3", "--batch-size", "8")
    return run(["adapt", *fixed, "--data", str(job.data), *arguments])


def test_a_search_judges_by_guessed_words(plain: ToyJob, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What the study holds is the share of masked words that each network guesses wrong, and nothing of its head."""
    opened = open_supernet(plain.workspace.supernet)
    with StudyStore.open(plain.workspace.storage) as store:
        evaluations = store.evaluations("study")
    precision = resolve_precision("auto", "cpu")
    for evaluation in evaluations:
        value = evaluation.value("error")
        assert value is not None
        with opened.supernet.active(opened.supernet.space.decode(evaluation.genotype)):
            expected = evaluate(opened.supernet, opened.task, VALIDATION, precision=precision)
        assert value.number == pytest.approx(expected.error)
        assert 0 <= value.number <= 1
        assert value.spread == pytest.approx(expected.standard_error)
    for objective in ("nll", "divergence"):
        asked = ("--objective", objective, "--objective", "macs", "--storage", f"sqlite:///{tmp_path / 's.db'}")
        assert run(["search", str(plain.workspace.supernet), *asked]) == ExitCode.BAD_INPUT
        assert f"{objective} needs the logits of a head" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["free", "uniform"])
def test_a_network_gets_a_head_and_is_written(
    layout: str, plain: ToyJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with StudyStore.open(plain.workspace.storage) as store:
        before = store.evaluations("study")
    assert adapt(plain, tmp_path / "c", "--layout", layout) == ExitCode.OK
    assert "train network: 3/3" in capsys.readouterr().err
    network: Any = load_exported(tmp_path / "c")
    assert network.config.id2label == {0: "no", 1: "yes"}

    told = provenance(tmp_path / "c")
    assert (told["task"]["kind"], told["plain_text"]["kind"]) == ("text-classification", "masked-language-modelling")
    assert told["adapted_steps"] == 3
    assert [(v["objective"], v["provenance"]) for v in told["values"] if v["data_hash"]] == [("error", "exported")]
    assert any(v["objective"].startswith("macs") for v in told["values"])
    assert "fine-tuned alone on its task for 3 steps" in (tmp_path / "c" / "README.md").read_text()

    with StudyStore.open(plain.workspace.storage) as store:
        assert store.evaluations("study") == before, "an error of another task is no value of the study"
        (artifact,) = [one for one in store.artifacts("study") if one.uri == str(tmp_path / "c")]
    assert artifact.description == {"parameters": told["parameters"], "adapted_steps": 3, "seed": 0}

    judged = ["eval", str(tmp_path / "c"), "--data", str(plain.data), "--split", "validation"]
    assert run([*judged, "--rounds", "2", "--sequence", "8", "-f", "json"]) == ExitCode.OK
    (row,) = json.loads(capsys.readouterr().out)
    assert 1 - row["accuracy"] == pytest.approx(told["values"][-1]["number"])


def test_an_untrained_head_is_not_exported(plain: ToyJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in ((), ("--recover", "1")):
        arguments = ["export", "--storage", plain.workspace.storage, "--output", str(tmp_path / "e"), *more]
        assert run(arguments) == ExitCode.BAD_INPUT
        assert "has an untrained head: fine-tune the network on a task with nas adapt" in capsys.readouterr().err
    fitted = ["fit", str(plain.model), "--data", str(plain.data), *KIND, *SMALL, "--output", str(tmp_path / "work")]
    assert run(fitted) == ExitCode.BAD_INPUT
    assert "trains no head to export: run nas tune and nas search, then nas adapt" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "masked-language-modelling"), "is fine-tuned on classes, which the task masked-language-modelling"),
        (
            ("--task", "language-modelling", "--label", ""),
            "is fine-tuned on classes, which the task language-modelling",
        ),
        (("--label", ""), "unlabelled text needs a checkpoint with a classification head; name a label column"),
        (("--data", "elsewhere.tsv"), "--data takes one path, or SPLIT=FILE"),
        (("--number", "99"), "no finished evaluation number 99"),
        (("--knee", "--rank", "1"), "--knee, --rank and --number exclude each other"),
        (("--steps", "0"), "steps and batch size must be at least 1, got 0"),
        (("--plain-text", "elsewhere.tsv"), "elsewhere.tsv does not exist"),
    ],
)
def test_bad_input(
    arguments: tuple[str, ...], message: str, plain: ToyJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert adapt(plain, tmp_path / "c", *arguments) == ExitCode.BAD_INPUT
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_lies_there_stays(plain: ToyJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "thesis.txt").touch()
    assert adapt(plain, tmp_path / "c") == ExitCode.BAD_INPUT
    assert "already exists: choose another output" in capsys.readouterr().err


def test_a_trained_head_is_kept(
    fitted: ToyJob, plain: ToyJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["adapt", "--data", str(plain.data), "--storage", fitted.workspace.storage, "--output"]
    assert run([*arguments, str(tmp_path / "c")]) == ExitCode.BAD_INPUT
    assert "its networks are ready: write one with nas export" in capsys.readouterr().err
