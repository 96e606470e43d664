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
        objectives: ``name`` or ``name:setting=value,...``.
        limits: objective text → largest allowed value in its unit.
        algorithm: a file name in `nas/algorithms`.
        budget: networks that are evaluated at most.
        batch: networks an algorithm proposes at a time.
        storage: database URL.
    """

    objectives: tuple[str, ...] = ("error", "latency")
    limits: Mapping[str, float] = field(default_factory=dict)
    algorithm: str = "linas"
    budget: int = 200
    batch: int = 20
    seed: int = 0
    storage: str = "sqlite:///nas.db"
    study_name: str = "study"

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise ValueError(f"a budget is at least 1 evaluation, got {self.budget}")
        ALGORITHMS.check(self.algorithm)
        for text in (*self.objectives, *self.limits):
            OBJECTIVES.check(parse_objective(text)[0])
        _ = self.algorithm_settings

    @property
    def algorithm_settings(self) -> AlgorithmSettings:
        """What the algorithm is told."""
        return AlgorithmSettings(seed=self.seed, batch=self.batch)

    @property
    def algorithm_key(self) -> str:
        """``linas:batch=20``: everything but the seed that decides what is proposed, as a `Study` stores it."""
        return f"{self.algorithm}:batch={self.batch}"

    def to_json(self) -> dict[str, object]:
        """Plain values, for the record of a study; the storage URL, which may hold a password, is left out."""
        content = asdict(self)
        del content["storage"]
        return {**content, "objectives": list(self.objectives), "limits": dict(self.limits)}
