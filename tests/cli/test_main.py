"""The command as a user meets it: help, version, usage errors, interrupts."""

from __future__ import annotations

import pytest

from cli import errors, main
from cli.errors import ExitCode
from cli.main import run


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == ExitCode.OK
    out = capsys.readouterr().out
    verbs = [command.name for command in main.app.registered_commands] + [g.name for g in main.app.registered_groups]
    assert all(verb and verb in out for verb in verbs)


def test_version(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "version", {"supernas": "0.1.0"}.get)
    assert run(["--version"]) == ExitCode.OK
    assert capsys.readouterr().out == "supernas 0.1.0\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["frnot"], "error: No such command 'frnot'."),
        (["front", "--xyz"], "error: No such option: --xyz Try 'nas front --help'."),
        (["study", "show"], "error: Missing argument 'name'. Try 'nas study show --help'."),
    ],
)
def test_usage_errors_are_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == ExitCode.BAD_INPUT
    err = capsys.readouterr().err
    assert err.startswith(line)
    assert err.count("\n") == 1


def test_no_verb_shows_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == ExitCode.BAD_INPUT
    out, err = capsys.readouterr()
    assert "front" in out + err
    assert "error" not in err


def test_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(errors, "foreign_kernels", interrupted)
    assert run(["--help"]) == ExitCode.INTERRUPTED
    assert "the same command resumes" in capsys.readouterr().err


def test_a_hidden_kernels_folder_stops_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(errors, "foreign_kernels", lambda: "hidden; use a wheel")
    assert run(["--help"]) == ExitCode.BAD_INPUT
    assert capsys.readouterr().err == "error: hidden; use a wheel\n"
