"""What other studies of the same space already know, handed to a new search and frozen into its study."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nas.algorithm import SearchProblem
from nas.objective import BoundObjective
from nas.search import SEARCHED
from studies.pareto import signed
from studies.records import Evaluation, Genotype, Study, content_hash
from studies.store import StudyStore

AUTO = "auto"
"""Stands for every other study of the same space in the store."""

WARM_START_NOTE = "warm_start"

RELATED_NOTE = "warm_start_related"

Rows = dict[Genotype, tuple[float, ...]]
"""Genotype → one cost per column, NaN where it is not known."""


@dataclass(frozen=True, slots=True)
class WarmStart:
    """What a search is told beforehand.

    Attributes:
        known: costs of this very problem.
        related: costs of other weights or data, which may help to predict those of this problem.
    """

    known: Rows = field(default_factory=dict)
    related: Rows = field(default_factory=dict)

    @property
    def mark(self) -> str:
        """Identity, as the study's algorithm carries it: part of what a study may not change."""
        parts = {"known": self.known, "related": self.related}
        return "".join(f",{name}={content_hash(_to_json(rows))}" for name, rows in parts.items() if rows)


def warm_start(
    sources: Sequence[str],
    problem: SearchProblem,
    columns: Sequence[BoundObjective],
    store: StudyStore,
    study_name: str,
) -> WarmStart:
    """All that other studies of the same space tell; see `known_rows` and `related_rows`."""
    told = (sources, problem, columns, store, study_name)
    return WarmStart(known_rows(*told), related_rows(*told))


def known_rows(
    sources: Sequence[str],
    problem: SearchProblem,
    columns: Sequence[BoundObjective],
    store: StudyStore,
    study_name: str,
) -> Rows:
    """Cost rows of networks that other studies measured, in order of study and number.

    Qualities of the same weights on the same data hold here too, on whatever device and for whatever other objectives
    they were measured; costs are those of this problem. Of a study of other weights or data the numbers say nothing,
    but where its front lies does: those networks come with unknown qualities, as ones worth asking for first.

    Args:
        sources: study names, or `AUTO`.
        columns: the problem's columns, as evaluated on all of the data.

    Raises:
        ValueError: an unknown study, the study itself, or one of another space.
    """
    rows: Rows = {}
    for study in _chosen(sources, problem, store, study_name):
        done = [e for e in store.evaluations(study.name) if e.status == "done"]
        qualities = {e.genotype: _qualities(e, columns) for e in done}
        if all(None in found for found in qualities.values()):
            worth_asking = [e.genotype for e in store.front(study.name, provenances=SEARCHED).evaluations]
        else:
            worth_asking = [genotype for genotype, found in qualities.items() if None not in found]
        for genotype in worth_asking:
            exact = problem.exact([genotype])[0]
            found = (math.nan if number is None else number for number in qualities[genotype])
            row = tuple(
                float(cost) if is_exact else next(found)
                for cost, is_exact in zip(exact, problem.exact_columns, strict=True)
            )
            if genotype not in rows or any(map(math.isnan, rows[genotype])):
                rows[genotype] = row
    return rows


def related_rows(
    sources: Sequence[str],
    problem: SearchProblem,
    columns: Sequence[BoundObjective],
    store: StudyStore,
    study_name: str,
) -> Rows:
    """Qualities that networks of the same space have under other weights or on other data, NaN for all other costs.

    They come from one study, the one that measured the most such networks: numbers of several are not on one scale.
    """
    found: list[Rows] = [{}]
    for study in _chosen(sources, problem, store, study_name):
        rows: Rows = {}
        for evaluation in store.evaluations(study.name):
            numbers = [_elsewhere(evaluation, column) for column in columns]
            if evaluation.status == "done" and not all(map(math.isnan, numbers)):
                rows[evaluation.genotype] = tuple(numbers)
        found.append(rows)
    return max(found, key=len)


def frozen(study_name: str, store: StudyStore) -> WarmStart | None:
    """What a study was started with, which may be nothing; None if there is no such study, or it was no warm start."""
    if study_name not in {study.name for study in store.studies()}:
        return None
    notes = store.notes(study_name)
    if WARM_START_NOTE not in notes:
        return None
    return WarmStart(*(_from_json(notes.get(name, [])) for name in (WARM_START_NOTE, RELATED_NOTE)))


def freeze(told: WarmStart, study_name: str, store: StudyStore) -> None:
    """Keep it with the study: a resumed search must be told the same, whatever the sources have learnt since."""
    store.note(study_name, WARM_START_NOTE, _to_json(told.known))
    if told.related:
        store.note(study_name, RELATED_NOTE, _to_json(told.related))


def _chosen(sources: Sequence[str], problem: SearchProblem, store: StudyStore, study_name: str) -> list[Study]:
    fingerprint = problem.space.fingerprint
    others = {study.name: study for study in store.studies() if study.name != study_name}
    chosen: dict[str, Study] = {}
    for source in sources:
        if source == AUTO:
            chosen |= {name: study for name, study in others.items() if study.space_fingerprint == fingerprint}
            continue
        if source == study_name:
            raise ValueError(f"study {source!r} cannot warm-start itself; name another one")
        study = others.get(source) or store.study(source)
        if study.space_fingerprint != fingerprint:
            raise ValueError(
                f"study {source!r} searched another space ({study.space_fingerprint}, not {fingerprint}); "
                "a warm start needs the same choices in the same order of layers"
            )
        chosen[source] = study
    return list(chosen.values())


def _qualities(evaluation: Evaluation, columns: Sequence[BoundObjective]) -> list[float | None]:
    """Costs of the columns that need a measurement, None where nothing stored is as good as one."""
    return [_stored(evaluation, column) for column in columns if not column.exact]


def _stored(evaluation: Evaluation, column: BoundObjective) -> float | None:
    wanted = column.reuse
    for value in reversed(evaluation.values):
        if (
            wanted is not None
            and (value.objective, value.provenance) == (column.objective.key, "supernet")
            and (value.weights_hash, value.data_hash, value.context)
            == (wanted.weights_hash, wanted.data_hash, wanted.context)
            and value.data_fraction == 1.0
        ):
            return signed(column.objective, value.number)
    return None


def _elsewhere(evaluation: Evaluation, column: BoundObjective) -> float:
    """The latest cost on all data under weights or data that are not this problem's; NaN for what is computed."""
    here = column.reuse
    for value in reversed(evaluation.values if here is not None and not column.exact else ()):
        assert here is not None
        if (
            value.objective.partition(":")[0] == column.objective.name
            and value.provenance == "supernet"
            and (value.weights_hash, value.data_hash) != (here.weights_hash, here.data_hash)
            and value.data_fraction == 1.0
        ):
            return signed(column.objective, value.number)
    return math.nan


def _to_json(rows: Mapping[Genotype, tuple[float, ...]]) -> list[list[object]]:
    return [[list(genotype), [None if math.isnan(cost) else cost for cost in row]] for genotype, row in rows.items()]


def _from_json(content: list[tuple[list[int], list[float | None]]]) -> Rows:
    return {tuple(genotype): tuple(math.nan if cost is None else cost for cost in row) for genotype, row in content}
