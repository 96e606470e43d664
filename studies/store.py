"""`StudyStore`: where studies live, and the laws they live by."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, case, delete, or_, select, update

from studies.device_book import DeviceBook
from studies.layout_book import LayoutBook
from studies.pareto import Costs, ParetoFront, ValueFilter, non_dominated, signed
from studies.records import MEASURED, Evaluation, Genotype, Objective, Provenance, Study, Value
from studies.rows import (
    FINISHED,
    VALUE_COLUMNS,
    StudyKey,
    check_results,
    check_values,
    chunks,
    find_evaluations,
    find_study,
    finish,
    genotype_hash,
    identity,
    insert_evaluations,
    insert_values,
    read_evaluations,
    read_evaluations_by_key,
    require_evaluation,
    upsert,
    value_of,
)
from studies.schema import (
    ArchitectureRow,
    CheckpointRow,
    EvaluationRow,
    ObjectiveValueRow,
    SearchSpaceRow,
    StudyRow,
)
from studies.study_book import StudyBook
from studies.study_rows import study_of, study_query, study_row

FIXED = (
    "space_fingerprint",
    "supernet_hash",
    "data_hash",
    "objectives",
    "constraints",
    "algorithm",
    "seed",
    "latency_table_hash",
)
"""What a study may not change when it is opened again."""

LIMITED_FROM_BELOW = "limited_from_below"
"""Setting of a study: keys of what is limited, is no objective, and is to be large."""


class StudyStore(DeviceBook, LayoutBook, StudyBook):
    """All studies of one SQLite file or PostgreSQL database.

    Laws:
        1. A method that writes is one transaction: after it returns, its rows survive a kill and a power cut; before
           that, none of them is there.
        2. A finished evaluation is final: its status and genotype never change, and its values are only ever added to.
           The latest value that answers a question counts.
        3. A study has every genotype at most once. Genotypes must be canonical (`SearchSpace.canonical`); the store
           cannot know.
        4. A study keeps its question: space, weights, data, objectives, constraints, algorithm, seed and latency table.
        5. Only finite numbers are stored; what has none is a failed evaluation with its reason.
        6. Numbers within a study follow the order of proposal, without gaps.

    Many threads and processes may use one database, each with its own store. User errors are ValueError, a database
    that cannot be used is `studies.errors.StorageError`.
    """

    def create_or_resume(self, study: Study) -> Study:
        """The stored study of this name, created if it is new.

        A budget may grow; a smaller one leaves the stored one. Settings, versions and time of creation stay those of
        the creation. ValueError, with both values, if the stored study asks another question.
        """
        created = replace(study, created_utc=study.created_utc or datetime.now(UTC))
        with self.writing() as connection:
            space = {"content": dict(study.space)}
            space_id = identity(connection, SearchSpaceRow, {"fingerprint": study.space_fingerprint}, space)
            weights = {"weights_hash": study.supernet_hash}
            checkpoint_id = identity(connection, CheckpointRow, weights, {"uri": ""})
            statement = upsert(connection, StudyRow).values(**study_row(created, space_id, checkpoint_id))
            connection.execute(statement.on_conflict_do_nothing(index_elements=["name"]))
            grown = update(StudyRow).where(StudyRow.name == study.name, StudyRow.budget < study.budget)
            connection.execute(grown.values(budget=study.budget))
            stored = study_of(connection.execute(study_query().where(StudyRow.name == study.name)).one())
            _check_same_question(stored, study)
        return stored

    def studies(self) -> list[Study]:
        """All studies, oldest first."""
        with self.reading() as connection:
            return [study_of(row) for row in connection.execute(study_query())]

    def study(self, name: str) -> Study:
        """One study; ValueError if there is none of that name."""
        with self.reading() as connection:
            key = find_study(connection, name)
            return study_of(connection.execute(study_query().where(StudyRow.id == key.id)).one())

    def delete(self, name: str) -> None:
        """Remove a study and all it owns; spaces, architectures, devices and measurements stay, others share them."""
        with self.writing() as connection:
            connection.execute(delete(StudyRow).where(StudyRow.id == find_study(connection, name).id))

    def append(self, study_name: str, evaluations: Sequence[Evaluation]) -> list[Evaluation]:
        """Store finished evaluations and return them as stored, with their numbers, in the same order.

        What the study has finished before is returned as it was stored first. An evaluation that is handed out to a
        worker is finished here and now; the worker's own result will be refused.
        """
        check_results(evaluations)
        with self.writing() as connection:
            study = find_study(connection, study_name, lock=True)
            first = {e.genotype: e for e in reversed(evaluations)}
            known = find_evaluations(connection, study, first)
            new = list({e.genotype: first[e.genotype] for e in evaluations if e.genotype not in known}.values())
            placed = insert_evaluations(connection, study, new)
            open_ones = {key.id: first[g] for g, key in known.items() if not key.is_finished}
            finish(connection, open_ones, EvaluationRow.status.not_in(FINISHED))
            stored = {e.genotype: replace(e, number=placed[e.genotype].number) for e in new}
            for evaluation in read_evaluations_by_key(connection, (key.id for key in known.values())):
                stored[evaluation.genotype] = evaluation
        return [stored[evaluation.genotype] for evaluation in evaluations]

    def add_values(self, study_name: str, genotype: Genotype, values: Sequence[Value]) -> Evaluation:
        """Add values to a finished evaluation, such as those of its extracted model; returns it with all its values."""
        check_values(genotype, values)
        with self.writing() as connection:
            key = require_evaluation(connection, find_study(connection, study_name), genotype)
            if not key.is_finished:
                raise ValueError(f"values are added to finished evaluations, {genotype} is still open; finish it first")
            insert_values(connection, [(key.id, values)])
            return read_evaluations_by_key(connection, [key.id])[0]

    def evaluations(self, study_name: str) -> list[Evaluation]:
        """All evaluations of a study by number, open ones too."""
        with self.reading() as connection:
            return read_evaluations(connection, EvaluationRow.study_id == find_study(connection, study_name).id)

    def evaluations_within_limits(self, study_name: str, allowed: ValueFilter) -> list[Evaluation]:
        """The evaluations that break none of the study's limits, by number; limits count as in `front`."""
        stored = self.study(study_name)
        with self.reading() as connection:
            study = find_study(connection, study_name)
            over = read_evaluations_by_key(connection, _over_limits(connection, study, stored, allowed).tolist())
            evaluations = read_evaluations(connection, EvaluationRow.study_id == study.id)
        broken = {evaluation.number for evaluation in over}
        return [evaluation for evaluation in evaluations if evaluation.number not in broken]

    def lookup(
        self,
        space_fingerprint: str,
        genotypes: Collection[Genotype],
        objective: str,
        *,
        weights_hash: str | None = None,
        data_hash: str | None = None,
        data_fraction: float = 1.0,
        device: str | None = None,
        context: str | None = None,
        provenances: frozenset[Provenance] = MEASURED,
    ) -> dict[Genotype, Value]:
        """What any study of the space already knows about an objective key; the latest value per genotype.

        None asks for nothing in that respect: give weights and data for a quality, device and context for a cost.
        """
        wanted = {"weights_hash": weights_hash, "data_hash": data_hash, "device": device, "context": context}
        query = (
            select(ArchitectureRow.hash, *VALUE_COLUMNS)
            .join(EvaluationRow, EvaluationRow.id == ObjectiveValueRow.evaluation_id)
            .join(ArchitectureRow, ArchitectureRow.id == EvaluationRow.architecture_id)
            .join(SearchSpaceRow, SearchSpaceRow.id == ArchitectureRow.space_id)
            .where(
                SearchSpaceRow.fingerprint == space_fingerprint,
                EvaluationRow.status == "done",
                ObjectiveValueRow.objective == objective,
                ObjectiveValueRow.provenance.in_(sorted(provenances)),
                ObjectiveValueRow.data_fraction == data_fraction,
                *(getattr(ObjectiveValueRow, name) == value for name, value in wanted.items() if value is not None),
            )
            .order_by(ObjectiveValueRow.id)
        )
        by_hash = {genotype_hash(genotype): genotype for genotype in genotypes}
        with self.reading() as connection:
            return {
                by_hash[key]: value_of(content)
                for chunk in chunks(by_hash)
                for key, *content in connection.execute(query.where(ArchitectureRow.hash.in_(chunk)))
            }

    def front(
        self,
        study_name: str,
        objectives: Sequence[Objective] | None = None,
        device: str | None = None,
        provenances: frozenset[Provenance] = MEASURED,
        data_fraction: float = 1.0,
    ) -> ParetoFront:
        """The front of a study's finished evaluations within its limits (default objectives: the study's own).

        A network is over a limit if its latest allowed value is; where it has none, nothing is held against it.
        Qualities count that were measured on exactly this share of the data. Only two columns are read for each
        objective; whole evaluations are built for the front alone.
        """
        stored = self.study(study_name)
        chosen = tuple(stored.objectives if objectives is None else objectives)
        allowed = ValueFilter(provenances=provenances, device=device, data_fraction=data_fraction)
        with self.reading() as connection:
            study = find_study(connection, study_name)
            keys_N, costs_NM = _cost_matrix(connection, study, chosen, allowed)
            within_N = ~np.isin(keys_N, _over_limits(connection, study, stored, allowed))
            keys_N, costs_NM = keys_N[within_N], costs_NM[within_N]
            kept = read_evaluations_by_key(connection, keys_N[non_dominated(costs_NM)].tolist())
        return ParetoFront.of(chosen, kept, allowed)


def _check_same_question(stored: Study, asked: Study) -> None:
    for name in FIXED:
        old, new = getattr(stored, name), getattr(asked, name)
        if old != new:
            raise ValueError(
                f"study {stored.name!r} was made with {name.replace('_', ' ')} {_shown(old)}, not {_shown(new)}; "
                "use the same, or another study name"
            )


def _shown(value: Any) -> str:
    """Values of a question on one line, as short as they can be told apart."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={number:g}" for key, number in sorted(value.items())) or "none"
    if isinstance(value, tuple):
        return ", ".join(
            f"{o.goal} {o.key} [{o.unit}]" + f" up to {o.reference}" * (o.reference is not None) for o in value
        )
    return repr(value)


def _over_limits(connection: Connection, key: StudyKey, study: Study, allowed: ValueFilter) -> NDArray[np.int64]:
    """Primary keys of the evaluations that break a limit, of an objective or of what is only limited."""
    goals = {objective.key: objective.goal for objective in study.objectives}
    goals |= {str(name): "max" for name in cast("list[str]", study.settings.get(LIMITED_FROM_BELOW, []))}
    limited = [Objective(name=name, unit="", goal=goals.get(name, "min")) for name in study.constraints]
    if not limited:
        return np.empty(0, dtype=np.int64)
    keys_N, costs_NM = _cost_matrix(connection, key, limited, allowed)
    limits_M = [
        signed(objective, study.constraints[name]) for objective, name in zip(limited, study.constraints, strict=True)
    ]
    over_NM = costs_NM > np.array(limits_M)  # NaN is over nothing
    return keys_N[over_NM.any(axis=1)]


def _cost_matrix(
    connection: Connection, study: StudyKey, objectives: Sequence[Objective], allowed: ValueFilter
) -> tuple[NDArray[np.int64], Costs]:
    """Primary keys [N] and costs [N, M] of the evaluations that have a value for any objective, NaN where not."""
    column_of = {objective.key: m for m, objective in enumerate(objectives)}
    query = (
        select(
            ObjectiveValueRow.evaluation_id,
            case(column_of, value=ObjectiveValueRow.objective),
            ObjectiveValueRow.number,
        )
        .join(EvaluationRow, EvaluationRow.id == ObjectiveValueRow.evaluation_id)
        .where(
            EvaluationRow.study_id == study.id,
            EvaluationRow.status == "done",
            ObjectiveValueRow.objective.in_(column_of),
            ObjectiveValueRow.provenance.in_(sorted(allowed.provenances)),
        )
        .order_by(ObjectiveValueRow.id)
    )
    if allowed.device is not None:
        query = query.where(ObjectiveValueRow.device.in_(["", allowed.device]))
    if allowed.data_fraction is not None:
        is_comparable = ObjectiveValueRow.data_fraction == allowed.data_fraction
        query = query.where(or_(is_comparable, ObjectiveValueRow.data_hash == ""))
    cursor = connection.execute(query).cursor
    assert cursor is not None, "a SELECT has rows"
    values_V3 = np.array(cursor.fetchall(), dtype=np.float64).reshape(-1, 3)  # plain tuples: several times faster
    keys_N, row_V = np.unique(values_V3[:, 0].astype(np.int64), return_inverse=True)
    sign_M = np.array([signed(objective, 1.0) for objective in objectives])
    costs_NM = np.full((len(keys_N), len(objectives)), np.nan)
    column_V = values_V3[:, 1].astype(np.int64)
    costs_NM[row_V, column_V] = sign_M[column_V] * values_V3[:, 2]  # where cells repeat, the last, latest value stays
    return keys_N, costs_NM
