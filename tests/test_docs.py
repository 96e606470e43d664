"""What is printed and written about the program is what it does: help texts, and the README's Python."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from cli.main import app, run
from tests.toy_job import write_checkpoint, write_data

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden" / "help"
UPDATE = "UPDATE_GOLDEN"


def verbs(command: Any = None, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every verb of the command line, groups and the program itself included."""
    command = command or typer.main.get_command(app)
    yield words
    for name, child in sorted(getattr(command, "commands", {}).items()):
        yield from verbs(child, (*words, name))


def golden(words: tuple[str, ...]) -> Path:
    return GOLDEN / f"{'-'.join(('nas', *words))}.txt"


@pytest.mark.parametrize("words", list(verbs()), ids=" ".join)
def test_help(words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run with UPDATE_GOLDEN=1 to accept new texts."""
    monkeypatch.setenv("COLUMNS", "100")
    assert run([*words, "--help"]) == 0
    shown = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines()) + "\n"
    if os.environ.get(UPDATE):
        GOLDEN.mkdir(parents=True, exist_ok=True)
        golden(words).write_text(shown, encoding="utf-8")
    assert shown == golden(words).read_text(encoding="utf-8"), f"{UPDATE}=1 accepts the new text"


def test_no_help_is_left_over() -> None:
    assert set(GOLDEN.glob("*")) == {golden(words) for words in verbs()}


def snippet() -> str:
    """The first Python block of the README."""
    found = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    assert found, "the README shows how to use the library from Python"
    return found[1]


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names its inputs `model_folder` and `data_file`; what it assigns to them is replaced."""
    code = re.sub(r"^(model_folder|data_file) = .*$", "", snippet(), flags=re.M)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {
        "model_folder": str(write_checkpoint(tmp_path / "model")),
        "data_file": str(write_data(tmp_path / "data.tsv")),
    }
    exec(compile(code, "README.md", "exec"), names)
