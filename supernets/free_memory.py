"""How much memory is left, and whether a checkpoint fits into it, asked before anything is loaded."""

from __future__ import annotations

import os
import re
from pathlib import Path

from studies.errors import ResourceError
from supernets.checkpoint_reader import CheckpointReader

BYTES_PER_WEIGHT = 4
"""Models are loaded in 32 bits, however they are stored."""

_MEMINFO = Path("/proc/meminfo")
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_GIB = 2**30


def available_memory() -> int | None:
    """Bytes that can be had without swapping, at most what a container allows in all; None where nobody says.

    Linux says what is available. Of other systems only the size of the whole memory is asked.
    """
    if _MEMINFO.exists():
        found = re.search(r"^MemAvailable:\s+(\d+) kB", _MEMINFO.read_text(), re.MULTILINE)
        available = int(found[1]) * 1024 if found else None
        limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.exists() else ""
        known = [one for one in (available, int(limit) if limit.isdecimal() else None) if one is not None]
        return min(known, default=None)
    names = ("SC_PHYS_PAGES", "SC_PAGE_SIZE")
    if not set(names) <= set(getattr(os, "sysconf_names", ())):
        return None
    return os.sysconf(names[0]) * os.sysconf(names[1])


def require_memory(source: str, remedy: str) -> None:
    """See that the weights of a checkpoint folder fit into memory; what is no folder is not looked at.

    Raises:
        ResourceError: they do not; ends with the remedy.
        ValueError: the folder holds no readable safetensors.
    """
    free = available_memory()
    if free is None or not Path(source).is_dir():
        return
    needed = BYTES_PER_WEIGHT * CheckpointReader(Path(source)).count_elements()
    if needed > free:
        raise ResourceError(
            f"the weights of {source} take {needed / _GIB:.1f} GiB in 32 bits, and {free / _GIB:.1f} GiB of memory are "
            f"free; {remedy}"
        )
