"""Every kind of failure: its exit code and its one line."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import typer

from cli.errors import ExitCode, exit_code, foreign_kernels, message, report
from studies.errors import LimitError, ResourceError, StorageError, VerificationError

CASES = [
    (ValueError("depth must be positive, got 0"), ExitCode.BAD_INPUT),
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "model"), ExitCode.BAD_INPUT),
    (typer.BadParameter("not a number"), ExitCode.BAD_INPUT),
    (StorageError("of another program"), ExitCode.STORAGE),
    (VerificationError("outputs differ"), ExitCode.VERIFICATION),
    (ResourceError("batch 8 fits"), ExitCode.RESOURCES),
    (MemoryError(), ExitCode.RESOURCES),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), ExitCode.RESOURCES),
    (OSError(errno.ENOSPC, "No space left on device", "/full"), ExitCode.RESOURCES),
    (LimitError("no sub-network meets 0.1 ms"), ExitCode.LIMITS),
    (KeyboardInterrupt(), ExitCode.INTERRUPTED),
    (typer.Abort(), ExitCode.INTERRUPTED),
    (RuntimeError("odd"), ExitCode.UNEXPECTED),
    (OSError(errno.EIO, "Input/output error"), ExitCode.UNEXPECTED),
    (AssertionError(), ExitCode.UNEXPECTED),
]


@pytest.mark.parametrize(("error", "code"), CASES, ids=lambda case: repr(case))
def test_exit_codes(error: BaseException, code: ExitCode, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(error) is code
    assert report(error) is code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.strip() != "error:"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("rule\n  value"), "rule value"),
        (OSError(errno.ENOSPC, "No space left on device", "/full"), "No space left on device: /full"),
        (MemoryError(), "MemoryError"),
        (KeyError("x"), "unexpected KeyError: 'x' (NAS_TRACEBACK=1 shows where)"),
    ],
)
def test_messages(error: Exception, text: str) -> None:
    assert message(error) == text


def test_traceback_on_request(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("NAS_TRACEBACK", "1")
    report(ValueError("odd"))
    assert capsys.readouterr().err == "ValueError: odd\nerror: odd\n"


def test_a_package_that_hides_our_kernels_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert foreign_kernels() == ""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "kernels", raising=False)
    assert str(tmp_path / "kernels") in foreign_kernels()
