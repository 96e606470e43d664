"""Which network of a study is written: the options that verbs share, and what they choose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import typer

from cli.options import LimitOptions, data_paths
from cli.study import pick

if TYPE_CHECKING:
    from nas.export import Selection
    from nas.searching import OpenSupernet
    from studies.records import Evaluation, Study
    from studies.store import StudyStore


@dataclass(frozen=True, kw_only=True)
class ChoiceOptions:
    """Which network, in which layout."""

    panel: ClassVar[str] = "Choice"
    knee: Annotated[bool, typer.Option("--knee", help="The best compromise within the limits; the default.")] = False
    rank: Annotated[int | None, typer.Option(help="Place on the front; 1 is the best in the first objective.")] = None
    number: Annotated[int | None, typer.Option(help="The network of this number, on the front or not.")] = None
    layout: Annotated[
        Literal["free", "uniform", "padded"],
        typer.Option(help="uniform loads with stock classes; free brings its own; padded fills up layers of experts."),
    ] = "free"
    supernet: Annotated[Path | None, typer.Option(help="Folder of the supernet, if it has moved.")] = None

    def find(
        self, store: StudyStore, study_name: str | None, limits: LimitOptions, data: list[str] | None
    ) -> tuple[Study, OpenSupernet, Evaluation]:
        """The study, its supernet (whose data may have moved), and the network that is meant.

        Raises:
            ValueError: no such study or network, or one that only its own code can write.
        """
        selection = self._selection(limits.limits())
        from nas.export import select
        from nas.searching import open_supernet
        from nas.stock import uniform_front

        study = pick(store, study_name)
        if problem := study.settings.get("problem"):
            raise ValueError(f"study {study.name!r} searched the problem {problem}, which only its own code can export")
        folder = self.supernet or Path(store.checkpoint(study.supernet_hash) or "supernet")
        opened = open_supernet(folder, data_paths(data) if data else None)
        front, evaluations = store.front(study.name), store.evaluations(study.name)
        if self.layout == "uniform":
            within = store.evaluations_within_limits(study.name, front.allowed)
            front = uniform_front(front, within, opened.supernet)
        return study, opened, select(front, evaluations, selection)

    def _selection(self, limits: dict[str, float]) -> Selection:
        from nas.export import Selection

        if sum((self.knee, self.rank is not None, self.number is not None)) > 1:
            raise ValueError("--knee, --rank and --number exclude each other; give one")
        if limits and not self.knee and self.number is None:
            return Selection(rank=self.rank or 1, limits=limits)
        return Selection(rank=self.rank, number=self.number, limits=limits)
