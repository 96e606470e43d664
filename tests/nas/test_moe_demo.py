"""The expert demonstration on a subject of two layers, with text made here."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from cli.main import run
from nas import moe_demo
from nas.domain_texts import DOMAINS
from nas.moe_demo import MoeDemoResult, MoeDemoSettings, run_moe_demo
from nas.moe_subject import Subject
from supernets import checkpoint

SETTINGS = MoeDemoSettings(
    subject=Subject(experts=4, width=16, hidden=16, layers=2, steps=20, repeats=1), search_budget=12
)


@pytest.fixture
def made_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small texts instead of downloaded ones; exports are not verified in processes of their own."""

    def prepare(folder: Path) -> Path:
        for domain in DOMAINS:
            (folder / domain).mkdir(parents=True, exist_ok=True)
            for split in ("train", "calibration", "validation", "test"):
                rng = random.Random(f"{domain} {split}")
                text = " ".join(f"{domain}{rng.randrange(9)}" for _ in range(200))
                (folder / domain / f"{split}.txt").write_text(text)
        return folder

    monkeypatch.setattr(moe_demo, "prepare_domain_texts", prepare)
    monkeypatch.setattr(checkpoint, "verify_network", lambda *_: None)


def test_the_whole_job_and_its_repetition(made_texts: None, tmp_path: Path) -> None:
    said: list[str] = []
    stages: dict[str, float] = {}
    result = run_moe_demo(
        tmp_path, SETTINGS, said.append, lambda name, done, total: stages.update({name: done / total})
    )
    assert [row["operator"] for row in result.uniform] == list(moe_demo.UNIFORM)
    assert {row["parameters"] < result.full_parameters for row in result.uniform} == {True}
    sizes = [row["parameters"] for row in result.front]
    assert sizes == sorted(sizes)
    assert len(sizes) > 1
    assert result.export["parameters"] <= min(row["parameters"] for row in result.uniform)
    exported = next(row for row in result.front if result.export["path"].endswith(f"-{row['number']}"))
    assert result.export["test_nll"] == pytest.approx(exported["test_nll"], rel=1e-5)
    assert result.export["parameters"] == exported["parameters"]
    assert "front of" in said[-1]
    assert stages["search"] == 1
    assert stages["calibrate"] == 1
    again = run_moe_demo(tmp_path, SETTINGS, said.append, lambda *_: None)
    assert replace(again, seconds=0.0) == replace(result, seconds=0.0)


def test_the_verb_prints_its_result(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"operator": "reap", "test_nll": 1.5, "parameters": 10, "path": "x"}
    result = MoeDemoResult(
        seconds=1.0, full_test_nll=1.25, full_parameters=20, uniform=(row,), front=(row,), export=dict(row)
    )
    monkeypatch.setattr(moe_demo, "run_moe_demo", lambda *_: result)
    assert run(["demo-moe"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(last.removeprefix("RESULT ")) == json.loads(json.dumps(asdict(result)))
