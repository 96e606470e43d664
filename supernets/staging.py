"""Folders that appear complete or not at all: written beside their place and moved there."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from studies.errors import ResourceError

try:
    import fcntl
except ImportError:  # Windows: what a killed process leaves there stays
    fcntl = None  # type: ignore[assignment]


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Write into a temporary sibling that becomes `folder` when the block ends well, and vanishes when it does not.

    The sibling of a writer that was killed is removed by the next one; that of a living writer is locked.

    Raises:
        ValueError: `folder` exists and is not empty.
        ResourceError: the disk is full.
    """
    require_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{folder.name}.unfinished-"
    _remove_abandoned(folder.parent, prefix)
    staged = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    lock = _try_lock(staged)
    try:
        yield staged
        require_free(folder)  # another writer may have been faster
        if folder.exists():
            folder.rmdir()
        staged.chmod(0o755)
        os.replace(staged, folder)
    except BaseException as error:
        shutil.rmtree(staged, ignore_errors=True)
        if "No space left" in str(error) or getattr(error, "errno", None) == 28:
            raise ResourceError(f"the disk holding {folder.parent} is full; nothing was written") from error
        raise
    finally:
        if lock is not None:
            os.close(lock)


def require_free(folder: Path) -> None:
    """ValueError if something lies where a folder is to be written; an empty folder is fine."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} already exists: choose another output or remove it")


def _remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove what nobody is writing any more."""
    for path in parent.glob(f"{glob.escape(prefix)}*"):
        lock = _try_lock(path)
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def _try_lock(folder: Path) -> int | None:
    """Descriptor that holds the folder's lock until closed; None where another one does, or there are no locks."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # it has just taken its place
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
