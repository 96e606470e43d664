"""The vocabulary every layer shares: what was asked, what was tried, what was measured.

All records are frozen and carry their units in their names. Nothing here imports more than the standard library.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, get_args

Genotype = tuple[int, ...]
"""One option index per choice of a search space: the passport between layers."""

Goal = Literal["min", "max"]
Provenance = Literal["computed", "analytic", "predicted", "supernet", "extracted", "exported"]
"""How a number came to be; `supernet`, `extracted` and `exported` are measurements, told apart by what was run."""

MEASURED: frozenset[Provenance] = frozenset({"computed", "supernet", "extracted"})
"""Provenances of real values that are compared on a front (`computed` is exact by construction).

`exported` is left out: a checkpoint's weights may have recovered after extraction, and would be compared with
inherited ones. Its values stand beside the front.
"""

Status = Literal["pending", "running", "done", "failed"]


def content_hash(content: object) -> str:
    """Hash any JSON-representable content, independent of key order and of Python's hash seed (16 hex digits)."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """What a study minimises or maximises.

    Attributes:
        name: a file name in `nas/objectives`.
        unit: unit of the values, such as ``ms`` or ``fraction``.
        settings: sorted (name, value) pairs that are part of its identity, such as batch and sequence length.
        reference: the worst value worth counting in a hypervolume; None lets the study choose.
    """

    name: str
    unit: str
    goal: Goal = "min"
    settings: tuple[tuple[str, str], ...] = ()
    reference: float | None = None

    @property
    def key(self) -> str:
        """``name`` or ``name:a=1,b=2``: the identity used in the store and on the command line."""
        return self.name + (":" + ",".join(f"{k}={v}" for k, v in self.settings) if self.settings else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Value:
    """One number for one objective of one sub-network, with everything that decides whether it may be reused.

    A quality is reused by (architecture, `weights_hash`, `data_hash`); a cost by (architecture, `device`, `context`).

    Attributes:
        objective: `Objective.key`.
        number: in the objective's unit.
        spread: interquartile range of a timing, standard error of a metric; None for exact values.
        n: how many samples or repeats stand behind the number.
        data_fraction: share of the split that was used, in (0, 1].
    """

    objective: str
    number: float
    provenance: Provenance
    spread: float | None = None
    n: int = 1
    weights_hash: str = ""
    data_hash: str = ""
    data_fraction: float = 1.0
    device: str = ""
    context: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.provenance not in get_args(Provenance):
            raise ValueError(f"provenance must be one of {get_args(Provenance)}, got {self.provenance!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """One sub-network of a study: its canonical genotype, how its evaluation ended, and its values."""

    genotype: Genotype
    status: Status = "done"
    values: tuple[Value, ...] = ()
    failure: str = ""
    number: int = -1
    """Position in the study, in order of proposal; -1 before it is stored."""

    def value(self, objective: str, provenances: frozenset[Provenance] = MEASURED) -> Value | None:
        """The latest value of an objective whose provenance is allowed, or None."""
        return next(
            (v for v in reversed(self.values) if v.objective == objective and v.provenance in provenances), None
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One timing of one operator, block or whole model on one device.

    Attributes:
        op_key: `OpSpec.key` (dtype, context and implementation are in it).
        seconds_median: median of the paired ratios times the reference's calibrated seconds.
        seconds_p95: 95th percentile of the same.
        clock: ``thread_cpu``, ``process_cpu``, ``wall`` or ``cuda_event``.
        load: one-minute load average when it was taken.
        noisy: the protocol could not reach its stop rule; shown to the user, never hidden.
    """

    op_key: str
    device: str
    seconds_median: float
    seconds_iqr: float
    seconds_p95: float
    repeats: int
    reference_seconds: float
    clock: str
    load: float
    noisy: bool = False
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """What a study is about; a study opened again must agree on everything but `budget`.

    Attributes:
        space_fingerprint: identity of the search space.
        supernet_hash: identity of weights, order and space.
        constraints: objective key → largest allowed value (smallest for a maximised one).
        latency_table_hash: the frozen table the search reads, so that a resumed search sees the same costs.
        settings: the resolved configuration, stored for the record.
    """

    name: str
    space_fingerprint: str
    supernet_hash: str
    data_hash: str
    objectives: tuple[Objective, ...]
    algorithm: str
    seed: int
    budget: int
    constraints: Mapping[str, float] = field(default_factory=dict)
    latency_table_hash: str = ""
    space: Mapping[str, object] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    created_utc: datetime | None = None
