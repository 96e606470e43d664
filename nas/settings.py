"""What a search was asked for, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from nas.algorithm import ALGORITHMS, AlgorithmSettings
from nas.objective import OBJECTIVES, parse_objective


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSettings:
    """A search as the user writes it; checked without loading a model.

    Attributes:
        objectives: ``name`` or ``name:setting=value,...``; for a problem of one's own, none means all it has.
        limits: objective text → largest allowed value in its unit.
        algorithm: a file name in `nas/algorithms`.
        budget: networks that are evaluated at most.
        batch: networks an algorithm proposes at a time.
        low_fidelity: share of the data that networks are measured on first, those with a chance on all of it; None
            measures all networks on the same data.
        warm_start: studies whose results the search starts from, or ``auto``.
        storage: database URL.
        problem: ``package.module:name`` of a problem of one's own, which then decides what objectives there are.
    """

    objectives: tuple[str, ...] = ("error", "latency")
    limits: Mapping[str, float] = field(default_factory=dict)
    algorithm: str = "guided"
    budget: int = 200
    batch: int = 20
    seed: int = 0
    low_fidelity: float | None = None
    warm_start: tuple[str, ...] = ()
    storage: str = "sqlite:///nas.db"
    study_name: str = "study"
    problem: str | None = None

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise ValueError(f"a budget is at least 1 evaluation, got {self.budget}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"a seed is a whole number from 0 to 2^63 - 1, got {self.seed}")
        if self.low_fidelity is not None and not 0 < self.low_fidelity < 1:
            raise ValueError(f"low fidelity is a share of the data between 0 and 1, got {self.low_fidelity}")
        ALGORITHMS.check(self.algorithm)
        for text in (*self.objectives, *self.limits):
            name, _ = parse_objective(text)
            if self.problem is None:
                OBJECTIVES.check(name)
        _ = self.algorithm_settings

    @property
    def algorithm_settings(self) -> AlgorithmSettings:
        """What the algorithm is told."""
        return AlgorithmSettings(seed=self.seed, batch=self.batch)

    @property
    def algorithm_key(self) -> str:
        """``guided:batch=20``: everything but the seed that decides what is proposed, as a `Study` stores it."""
        share = "" if self.low_fidelity is None else f",low_fidelity={self.low_fidelity:g}"
        return f"{self.algorithm}:batch={self.batch}{share}"

    def to_json(self) -> dict[str, object]:
        """Plain values, for the record of a study; the storage URL, which may hold a password, is left out."""
        content = asdict(self)
        del content["storage"]
        lists = {"objectives": list(self.objectives), "warm_start": list(self.warm_start)}
        return {**content, **lists, "limits": dict(self.limits)}
