"""`--mixture` and what belongs to it, on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.errors import ExitCode
from cli.main import run
from supernets.checkpoint import read_supernet_record
from tests.toy_job import ToyJob

SMALL = ("--head-options", "2", "--width-options", "2", "--batch-size", "8", "--steps", "2", "--gamma", "0")


def tune(job: ToyJob, *arguments: str) -> ExitCode:
    return ExitCode(run(["tune", str(job.model), "--data", str(job.data), *SMALL, *arguments]))


def test_tune_makes_the_mixture_that_is_asked_for(fitted: ToyJob, tmp_path: Path) -> None:
    mixed = ("--mixed", "ffn", "--mixed", "attention")
    output = ("--output", str(tmp_path / "work"))
    assert tune(fitted, "--mixture", "layer", "--experts", "4", "--rank", "2", *mixed, *output) == ExitCode.OK
    record = read_supernet_record(tmp_path / "work" / "supernet")["request"]["mixture"]
    assert {name: record[name] for name in ("kind", "experts", "rank", "modules")} == {
        "kind": "layer",
        "experts": 4,
        "rank": 2,
        "modules": ["ffn", "attention"],
    }


def test_check_tells_the_parameters_of_a_mixture(fitted: ToyJob, capsys: pytest.CaptureFixture[str]) -> None:
    facts = []
    for arguments in ([], ["--mixture", "neuron"]):
        assert run(["check", str(fitted.model), "--data", str(fitted.data), *SMALL, *arguments, "-f", "json"]) == 0
        facts += json.loads(capsys.readouterr().out)
    assert "mixture parameters" not in facts[0]
    assert facts[1]["mixture parameters"] > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--experts", "4"], "--experts, --rank and --mixed need --mixture layer or --mixture neuron"),
        (["--mixture", "layer", "--experts", "1"], "at least 2 experts, got 1"),
        (["--mixture", "neuron", "--rank", "0"], "at least 1, got 0"),
        (["--mixture", "layer", "--rank", "500"], "rank 500 exceeds the 32 of"),
        (["--mixture", "layer", "--mixed", "norms"], "one or several of ffn, attention"),
    ],
)
def test_mistakes_are_one_line(
    fitted: ToyJob, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert tune(fitted, *arguments, "--output", str(tmp_path / "work")) == ExitCode.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "work").exists()
