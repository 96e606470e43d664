"""Evaluations, rows ↔ records: the statements that the store and the work queue share.

Every function runs inside the caller's transaction. Lists of any length are fine: they are sent in chunks.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from studies.records import Evaluation, Genotype, Value
from studies.schema import (
    ArchitectureRow,
    Base,
    EvaluationRow,
    ObjectiveValueRow,
    StudyRow,
)

CHUNK = 500
"""Items per list parameter; far below every database's limit."""

FINISHED = ("done", "failed")

VALUE_FIELDS = tuple(field.name for field in fields(Value))
VALUE_COLUMNS = tuple(getattr(ObjectiveValueRow, name) for name in VALUE_FIELDS)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StudyKey:
    """Primary keys of a study and of its space."""

    id: int
    space_id: int


@dataclass(frozen=True, slots=True)
class EvaluationKey:
    """Where an evaluation is stored, and whether it is over."""

    id: int
    number: int
    is_finished: bool


def chunks(items: Iterable[T], size: int = CHUNK) -> Iterator[list[T]]:
    """Lists of at most `size` items."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def upsert(connection: Connection, table: type[Base]) -> sqlite.Insert | postgresql.Insert:
    """An INSERT that understands ON CONFLICT on the connected database."""
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)


def encode_genotype(genotype: Genotype) -> str:
    """``3,0,1``."""
    return ",".join(map(str, genotype))


def decode_genotype(text: str) -> Genotype:
    """The inverse of `encode_genotype`."""
    return tuple(map(int, text.split(","))) if text else ()


def genotype_hash(genotype: Genotype) -> str:
    """What finds an architecture within its space: 16 bytes of BLAKE2b over the encoded genotype, as hex."""
    return hashlib.blake2b(encode_genotype(genotype).encode(), digest_size=16).hexdigest()


def find_study(connection: Connection, name: str, *, lock: bool = False) -> StudyKey:
    """Keys of a study; ValueError if there is none of that name.

    With `lock`, others that append to the study wait until this transaction ends (SQLite has one writer anyway).
    """
    query = select(StudyRow.id, StudyRow.space_id).where(StudyRow.name == name)
    row = connection.execute(query.with_for_update(key_share=True) if lock else query).first()
    if row is None:
        known = ", ".join(connection.scalars(select(StudyRow.name).order_by(StudyRow.name))) or "none yet"
        raise ValueError(f"there is no study named {name!r}; stored studies: {known}")
    return StudyKey(row.id, row.space_id)


def identity(connection: Connection, table: type[Base], key: Mapping[str, Any], rest: Mapping[str, Any]) -> int:
    """Primary key of the row with a unique `key`, inserted with `rest` if it is new."""
    statement = upsert(connection, table).values(**key, **rest).on_conflict_do_nothing(index_elements=list(key))
    connection.execute(statement)
    columns = table.__table__.c
    found = connection.scalar(select(columns.id).where(*(columns[name] == value for name, value in key.items())))
    assert isinstance(found, int)
    return found


def architecture_ids(connection: Connection, space_id: int, genotypes: Collection[Genotype]) -> dict[Genotype, int]:
    """Primary key of every architecture, inserted where it is new to the space."""
    if not genotypes:
        return {}
    by_hash = {genotype_hash(genotype): genotype for genotype in genotypes}
    statement = upsert(connection, ArchitectureRow).on_conflict_do_nothing(index_elements=["space_id", "hash"])
    rows = [
        {"space_id": space_id, "hash": key, "genotype": encode_genotype(genotype)}
        for key, genotype in sorted(by_hash.items())  # one order everywhere, or two writers could block each other
    ]
    inserted = connection.execute(statement.returning(ArchitectureRow.hash, ArchitectureRow.id), rows)
    ids = {by_hash[row.hash]: row.id for row in inserted}
    return ids | _known_architectures(connection, space_id, {k: g for k, g in by_hash.items() if g not in ids})


def _known_architectures(connection: Connection, space_id: int, by_hash: Mapping[str, Genotype]) -> dict[Genotype, int]:
    query = select(ArchitectureRow.hash, ArchitectureRow.id).where(ArchitectureRow.space_id == space_id)
    return {
        by_hash[row.hash]: row.id
        for chunk in chunks(by_hash)
        for row in connection.execute(query.where(ArchitectureRow.hash.in_(chunk)))
    }


def find_evaluations(
    connection: Connection, study: StudyKey, genotypes: Collection[Genotype]
) -> dict[Genotype, EvaluationKey]:
    """The evaluations a study already has among these genotypes."""
    by_hash = {genotype_hash(genotype): genotype for genotype in genotypes}
    query = (
        select(ArchitectureRow.hash, EvaluationRow.id, EvaluationRow.number, EvaluationRow.status)
        .join(EvaluationRow, EvaluationRow.architecture_id == ArchitectureRow.id)
        .where(ArchitectureRow.space_id == study.space_id, EvaluationRow.study_id == study.id)
    )
    return {
        by_hash[row.hash]: EvaluationKey(row.id, row.number, row.status in FINISHED)
        for chunk in chunks(by_hash)
        for row in connection.execute(query.where(ArchitectureRow.hash.in_(chunk)))
    }


def require_evaluation(connection: Connection, study: StudyKey, genotype: Genotype) -> EvaluationKey:
    """The stored evaluation of a genotype; ValueError if the study has none."""
    found = find_evaluations(connection, study, [genotype]).get(genotype)
    if found is None:
        raise ValueError(f"the study has no evaluation of {genotype}; append one first")
    return found


def insert_evaluations(
    connection: Connection, study: StudyKey, evaluations: Sequence[Evaluation]
) -> dict[Genotype, EvaluationKey]:
    """Number and insert evaluations that are new to the study, which must be locked, with their values."""
    if not evaluations:
        return {}
    architectures = architecture_ids(connection, study.space_id, [e.genotype for e in evaluations])
    last = connection.scalar(select(func.max(EvaluationRow.number)).where(EvaluationRow.study_id == study.id))
    first = 0 if last is None else last + 1
    rows = [
        {
            "study_id": study.id,
            "architecture_id": architectures[evaluation.genotype],
            "number": number,
            "status": evaluation.status,
            "failure": evaluation.failure,
        }
        for number, evaluation in enumerate(evaluations, first)
    ]
    inserted = connection.execute(insert(EvaluationRow).returning(EvaluationRow.id, EvaluationRow.number), rows)
    ids = {row.number: row.id for row in inserted}
    insert_values(connection, ((ids[n], e.values) for n, e in enumerate(evaluations, first)))
    return {e.genotype: EvaluationKey(ids[n], n, e.status in FINISHED) for n, e in enumerate(evaluations, first)}


def insert_values(connection: Connection, values: Iterable[tuple[int, Sequence[Value]]]) -> None:
    """Add values to evaluations by primary key; nothing is ever overwritten, the last one counts."""
    rows = [
        {"evaluation_id": key, **{name: getattr(value, name) for name in VALUE_FIELDS}}
        for key, group in values
        for value in group
    ]
    if rows:
        connection.execute(insert(ObjectiveValueRow), rows)


def finish(connection: Connection, results: Mapping[int, Evaluation], allowed: ColumnElement[bool]) -> set[int]:
    """End evaluations by primary key where `allowed` still holds; only those receive their values.

    The update and the insert must stay in this order and in one transaction: whoever lost the right to finish adds
    nothing. Returns the primary keys that were accepted.
    """
    endings: dict[tuple[str, str], list[int]] = {}
    for key, evaluation in sorted(results.items()):
        endings.setdefault((evaluation.status, evaluation.failure), []).append(key)
    accepted: set[int] = set()
    for (status, failure), keys in endings.items():
        for chunk in chunks(keys):
            statement = (
                update(EvaluationRow)
                .where(EvaluationRow.id.in_(chunk), allowed)
                .values(status=status, failure=failure, lease_until=None)
                .returning(EvaluationRow.id)
            )
            accepted.update(connection.scalars(statement))
    insert_values(connection, ((key, results[key].values) for key in sorted(accepted)))
    return accepted


def check_results(evaluations: Iterable[Evaluation]) -> None:
    """ValueError unless every evaluation is over and holds finite numbers."""
    for evaluation in evaluations:
        if evaluation.status not in FINISHED:
            raise ValueError(
                f"only finished evaluations are stored, {evaluation.genotype} is {evaluation.status!r}; "
                "hand out unfinished ones through studies.leases.WorkQueue"
            )
        check_values(evaluation.genotype, evaluation.values)


def check_values(genotype: Genotype, values: Iterable[Value]) -> None:
    """ValueError unless every number is finite."""
    for value in values:
        if not math.isfinite(value.number):
            raise ValueError(f"{value.objective} of {genotype} is {value.number}; store such an evaluation as failed")


def read_evaluations(connection: Connection, condition: ColumnElement[bool]) -> list[Evaluation]:
    """Evaluations with their values, by number."""
    values: dict[int, list[Value]] = {}
    query = select(ObjectiveValueRow.evaluation_id, *VALUE_COLUMNS).join(
        EvaluationRow, EvaluationRow.id == ObjectiveValueRow.evaluation_id
    )
    for key, *content in connection.execute(query.where(condition).order_by(ObjectiveValueRow.id)):
        values.setdefault(key, []).append(value_of(content))
    heads = (
        select(EvaluationRow.id, ArchitectureRow.genotype, *_HEAD)
        .join(ArchitectureRow, ArchitectureRow.id == EvaluationRow.architecture_id)
        .where(condition)
        .order_by(EvaluationRow.number)
    )
    return [
        Evaluation(
            genotype=decode_genotype(row.genotype),
            status=row.status,
            values=tuple(values.get(row.id, ())),
            failure=row.failure,
            number=row.number,
        )
        for row in connection.execute(heads)
    ]


_HEAD = (EvaluationRow.status, EvaluationRow.failure, EvaluationRow.number)


def read_evaluations_by_key(connection: Connection, keys: Iterable[int]) -> list[Evaluation]:
    """Evaluations by primary key, in order of number."""
    found = [e for chunk in chunks(keys) for e in read_evaluations(connection, EvaluationRow.id.in_(chunk))]
    return sorted(found, key=lambda evaluation: evaluation.number)


def value_of(content: Sequence[Any]) -> Value:
    """A value from its columns in the order of `VALUE_COLUMNS`."""
    return Value(**dict(zip(VALUE_FIELDS, content, strict=True)))
