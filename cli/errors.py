"""Exit codes, and the one line a user reads when something goes wrong.

| code | meaning |
|---|---|
| 0 | done |
| 1 | unexpected: a bug of ours |
| 2 | bad input: usage, unknown name, missing or malformed file |
| 3 | storage: a database that is foreign, newer or corrupt |
| 4 | verification: an export disagrees with its sub-network |
| 5 | resources: out of memory or disk |
| 6 | limits that no sub-network can meet |
| 130 | interrupted; the same command resumes |

`NAS_TRACEBACK=1` shows the traceback as well.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import sys
import traceback
from enum import IntEnum
from pathlib import Path

import typer

from studies.errors import LimitError, ResourceError, StorageError, VerificationError


class ExitCode(IntEnum):
    """What `nas` returns to the shell."""

    OK = 0
    UNEXPECTED = 1
    BAD_INPUT = 2
    STORAGE = 3
    VERIFICATION = 4
    RESOURCES = 5
    LIMITS = 6
    INTERRUPTED = 130


_BY_CLASS: tuple[tuple[type[BaseException], ExitCode], ...] = (
    (StorageError, ExitCode.STORAGE),
    (VerificationError, ExitCode.VERIFICATION),
    (ResourceError, ExitCode.RESOURCES),
    (MemoryError, ExitCode.RESOURCES),
    (LimitError, ExitCode.LIMITS),
    (KeyboardInterrupt, ExitCode.INTERRUPTED),
    (typer.Abort, ExitCode.INTERRUPTED),
    (typer.TyperException, ExitCode.BAD_INPUT),
    (ValueError, ExitCode.BAD_INPUT),
    (FileNotFoundError, ExitCode.BAD_INPUT),
    (FileExistsError, ExitCode.BAD_INPUT),
    (IsADirectoryError, ExitCode.BAD_INPUT),
    (NotADirectoryError, ExitCode.BAD_INPUT),
    (PermissionError, ExitCode.BAD_INPUT),
)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""What torch says: CUDA's allocator, and the CPU's on Linux and Windows."""


def exit_code(error: BaseException) -> ExitCode:
    """The exit code that stands for an exception."""
    if (isinstance(error, OSError) and error.errno in _DISK_FULL) or "No space left on device" in str(error):
        return ExitCode.RESOURCES
    if isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY):
        return ExitCode.RESOURCES
    return next((code for kind, code in _BY_CLASS if isinstance(error, kind)), ExitCode.UNEXPECTED)


def message(error: BaseException) -> str:
    """One line for the user; an unexpected exception also says how to see its traceback."""
    code = exit_code(error)
    text = " ".join(str(error).split())
    if isinstance(error, typer.Abort):
        return "cancelled; nothing was changed"
    if code is ExitCode.INTERRUPTED:
        return "interrupted; everything finished so far is stored, the same command resumes"
    if code is ExitCode.UNEXPECTED:
        return f"unexpected {type(error).__name__}: {text} (NAS_TRACEBACK=1 shows where)"
    if isinstance(error, typer.TyperException):
        return _usage(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return text or type(error).__name__


def _usage(error: typer.TyperException) -> str:
    """A usage error with the help that would have prevented it; empty where the help itself has just been shown."""
    text = " ".join(getattr(error, "format_message", error.__str__)().split())
    context = getattr(error, "ctx", None)
    return f"{text} Try '{context.command_path} --help'." if text and context else text


def report(error: BaseException) -> ExitCode:
    """Print `error: …` on stderr, the traceback too if NAS_TRACEBACK asks for it, and return the exit code."""
    if os.environ.get("NAS_TRACEBACK", "0") not in ("", "0"):
        traceback.print_exception(error)
    if text := message(error):
        print(f"error: {text}", file=sys.stderr)
    return exit_code(error)


def foreign_kernels() -> str:
    """Why our namespace folder `kernels` is out of reach, with the remedy; empty where all is well.

    A regular package of that name, such as the one Hugging Face publishes, wins over a namespace folder unless both
    were installed from wheels into one place.
    """
    spec = importlib.util.find_spec("kernels")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    if any((folder / "op_spec.py").is_file() for folder in folders):
        return ""
    found = f"the package in {folders[0]} hides" if folders else "nothing provides"
    return f"{found} supernas's folder 'kernels'; use an environment of its own, or install supernas as a wheel"
