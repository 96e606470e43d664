"""What a supernet is made from, as plain data. Imports no torch when loaded."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from supernets.task import TaskSettings

if TYPE_CHECKING:
    from supernets.family import SpaceOptions
    from supernets.finetune import TuneSettings
    from supernets.mixture import MixtureSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Duration:
    """How long to train where that is not a number of steps.

    Attributes:
        epochs: passes over the training data.
        seconds: the teacher's training, if it needs any, and the supernet's together, on this machine.
        passes: both together in forward and backward passes of the full network, of which a sub-network's is a share
            by multiply-accumulates; the same on every machine.
    """

    epochs: float | None = None
    seconds: float | None = None
    passes: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.epochs, self.seconds, self.passes) if value is not None]
        if len(given) != 1 or not 0 < given[0] < math.inf:
            raise ValueError(f"training lasts a positive number of epochs, seconds or passes, one of them, got {self}")


def _default_space() -> SpaceOptions:
    from supernets.family import SpaceOptions

    return SpaceOptions()


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneRequest:
    """What `tune_supernet` makes.

    Attributes:
        model: folder or name of the pre-trained checkpoint.
        tuning: steps, recipe and optimiser; the teacher is trained with the same, on hard labels alone.
        duration: replaces the steps of `tuning`; what it comes to is decided once and kept in the workspace.
        mixture: what gives every architecture weights of its own; None shares one set among all.
        teacher: a fine-tuned checkpoint to distil from; None fine-tunes one (or takes `model`, if it has a head).
        start: which weights the supernet starts from: those of the teacher that was fine-tuned here, or `model`'s own,
            as in the InstaTune paper. A teacher given as a checkpoint may have another shape, and is not started from.
    """

    model: str
    task: TaskSettings
    tuning: TuneSettings
    duration: Duration | None = None
    space: SpaceOptions = field(default_factory=_default_space)
    mixture: MixtureSettings | None = None
    teacher: str | None = None
    start: Literal["teacher", "pretrained"] = "teacher"

    def lasting(self, steps: int) -> TuneRequest:
        """The same request with a number of steps."""
        return replace(self, tuning=replace(self.tuning, steps=steps))

    def to_json(self) -> dict[str, Any]:
        """What decides the supernet, as JSON."""
        left_out = {"save_seconds", "watched_examples"} | ({"steps"} if self.duration else set())
        content = {
            "model": self.model,
            "task": self.task.to_json(),
            "tuning": {name: value for name, value in asdict(self.tuning).items() if name not in left_out},
            "duration": None if self.duration is None else asdict(self.duration),
            "space": self.space.to_json(),
            "mixture": None if self.mixture is None else asdict(self.mixture),
            "teacher": self.teacher,
            "start": self.start,
        }
        decoded: dict[str, Any] = json.loads(json.dumps(content))  # equal to what is read back: JSON has no tuples
        return decoded
