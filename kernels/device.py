"""What a machine is (`Device`) and how to run a clock on it (`DeviceBackend`).

A backend is one file of `kernels/devices`, or an entry point of the group ``supernas.kernels.devices``. Listing them
imports no torch.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import ClassVar

from kernels.op_spec import OpSpec

ENTRY_POINTS = "supernas.kernels.devices"
_FOLDER = Path(__file__).parent / "devices"


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """One processor whose latencies are comparable with each other.

    Attributes:
        name: for people, such as ``AMD EPYC, 2 cores``.
        kind: the torch device type, ``cpu`` or ``cuda``.
        description: what decides its speed: model, cores, instruction sets. Never load, host name or free memory.
    """

    name: str
    kind: str
    description: Mapping[str, object] = field(hash=False)

    @property
    def fingerprint(self) -> str:
        """``cpu-`` or ``cuda-`` and 12 hex digits: equal exactly when kind and description are."""
        text = json.dumps(dict(self.description), sort_keys=True)
        return f"{self.kind}-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading of a clock.

    Attributes:
        seconds: of one call.
        contention: wall seconds per second of the clock; 1 where the clock cannot tell.
    """

    seconds: float
    contention: float = 1.0


class DeviceBackend(ABC):
    """The clock and the abilities of one kind of processor.

    Attributes:
        reference: the block that is run before every sample to cancel drift; a few milliseconds, float32.
    """

    reference: ClassVar[OpSpec]

    @abstractmethod
    def detect(self) -> Device:
        """The device of this process; ValueError if there is none of this kind."""

    @abstractmethod
    def dtypes(self) -> tuple[str, ...]:
        """Element types with arithmetic in hardware, the default first."""

    @abstractmethod
    def clock_kind(self, threads: int) -> str:
        """``thread_cpu``, ``wall`` or ``cuda_event``: what `sample` reads with this many intra-op threads."""

    @abstractmethod
    def sample(self, call: Callable[[], object], *, loops: int, threads: int) -> Sample:
        """Time `loops` calls in a row and return the mean of one, all work of the device included."""


def device_names() -> tuple[str, ...]:
    """Names of all backends, in alphabetical order."""
    files = {path.stem for path in _FOLDER.glob("*.py") if not path.stem.startswith("_")}
    return tuple(sorted(files | set(_installed())))


def load_backend(name: str) -> DeviceBackend:
    """The backend called `name`; ValueError with the known names if there is none."""
    if name not in device_names():
        raise ValueError(f"unknown device {name!r}; known: {', '.join(device_names())}; a new one goes to {_FOLDER}")
    installed = _installed().get(name)
    module = importlib.import_module(installed.module if installed else f"kernels.devices.{name}")
    own = (value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__)
    (backend,) = (value for value in own if issubclass(value, DeviceBackend))
    return backend()


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}
