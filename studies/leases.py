"""Handing evaluations to many workers on one database, so that none is lost and none is finished twice.

A worker *claims* evaluations for some time, *renews* its claim while it works and *finishes*. Every claim raises the
evaluation's token, and a result counts only with the current token: a worker that stalled past its lease, or came back
from a paused machine, cannot overwrite what its successor found (fencing tokens; Kleppmann, "Designing Data-Intensive
Applications", chapter 8). All times are the database's, so the clocks of the workers do not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Double, and_, or_, select, tuple_, update
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from studies.database import Database
from studies.records import Evaluation, Genotype
from studies.rows import (
    check_results,
    chunks,
    decode_genotype,
    find_evaluations,
    find_study,
    finish,
    insert_evaluations,
)
from studies.schema import ArchitectureRow, EvaluationRow


class database_now(FunctionElement[float]):
    """Seconds since 1970 by the database's clock, which goes on within a transaction."""

    type = Double()
    inherit_cache = True


@compiles(database_now, "sqlite")
def _sqlite_now(_element: database_now, _compiler: SQLCompiler, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(database_now, "postgresql")
def _postgresql_now(_element: database_now, _compiler: SQLCompiler, **_: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """The right to finish one evaluation.

    Attributes:
        key: primary key of the evaluation.
        number: its `Evaluation.number`.
        attempt: 1 for the first claim.
        token: what proves the claim.
    """

    key: int
    number: int
    genotype: Genotype
    attempt: int
    token: int


class WorkQueue:
    """The open evaluations of one study.

    Laws:
        1. An evaluation is finished once, by the worker with the latest claim on it.
        2. An evaluation whose worker is gone is claimed again when its lease has run out, up to `max_attempts` times;
           then it is failed, with that reason.
        3. A result that comes without a valid lease changes nothing and is reported as refused.
    """

    def __init__(
        self, database: Database, study_name: str, *, lease_seconds: float = 60.0, max_attempts: int = 3
    ) -> None:
        if lease_seconds <= 0 or max_attempts < 1:
            raise ValueError(
                f"a lease needs more than 0 seconds and 1 attempt or more, got {lease_seconds} and {max_attempts}"
            )
        self._database = database
        self._study_name = study_name
        self._lease_seconds = lease_seconds
        self._max_attempts = max_attempts

    def enqueue(self, genotypes: Sequence[Genotype]) -> list[int]:
        """Number of every genotype in the study, in the same order; those new to it wait for a worker from now on."""
        with self._database.writing() as connection:
            study = find_study(connection, self._study_name, lock=True)
            known = find_evaluations(connection, study, genotypes)
            new = [Evaluation(genotype=g, status="pending") for g in dict.fromkeys(genotypes) if g not in known]
            known |= insert_evaluations(connection, study, new)
        return [known[genotype].number for genotype in genotypes]

    def claim(self, worker: str, limit: int = 1) -> list[Lease]:
        """Take up to `limit` evaluations, lowest numbers first, that wait or whose lease has run out."""
        with self._database.writing() as connection:
            study = find_study(connection, self._study_name)
            expired = and_(EvaluationRow.status == "running", EvaluationRow.lease_until < database_now())
            self._give_up(connection, _lock(connection, study.id, expired, EvaluationRow.attempt >= self._max_attempts))
            again = and_(expired, EvaluationRow.attempt < self._max_attempts)  # others may have run out since
            keys = _lock(connection, study.id, or_(EvaluationRow.status == "pending", again), limit=limit)
            taken = update(EvaluationRow).where(EvaluationRow.id.in_(keys))
            connection.execute(
                taken.values(
                    status="running",
                    worker=worker,
                    attempt=EvaluationRow.attempt + 1,
                    lease_token=EvaluationRow.lease_token + 1,
                    lease_until=database_now() + self._lease_seconds,
                )
            )
            return _read_leases(connection, keys)

    def renew(self, leases: Sequence[Lease]) -> list[Lease]:
        """Extend leases by `lease_seconds` from now; returns those that are still held, the rest is lost."""
        with self._database.writing() as connection:
            held: set[tuple[int, int]] = set()
            for chunk in chunks(leases):
                statement = (
                    update(EvaluationRow)
                    .where(_held(chunk))
                    .values(lease_until=database_now() + self._lease_seconds)
                    .returning(EvaluationRow.id, EvaluationRow.lease_token)
                )
                held.update((key, token) for key, token in connection.execute(statement))
        return [lease for lease in leases if (lease.key, lease.token) in held]

    def finish(self, results: Sequence[tuple[Lease, Evaluation]]) -> list[Lease]:
        """Store results in one transaction; returns the leases whose results were accepted.

        The others had been claimed again, finished or deleted meanwhile. A lease that has run out but was not claimed
        again still counts. Sending a result twice changes nothing.
        """
        check_results([evaluation for _, evaluation in results])
        for lease, evaluation in results:
            if lease.genotype != evaluation.genotype:
                raise ValueError(f"the lease is for {lease.genotype}, the result for {evaluation.genotype}")
        latest: dict[int, tuple[Lease, Evaluation]] = {}
        for lease, evaluation in results:
            if lease.key not in latest or latest[lease.key][0].token < lease.token:
                latest[lease.key] = (lease, evaluation)
        accepted: set[int] = set()
        with self._database.writing() as connection:
            for chunk in chunks(latest.values()):
                by_key = {lease.key: evaluation for lease, evaluation in chunk}
                accepted |= finish(connection, by_key, _held([lease for lease, _ in chunk]))
        return [lease for lease, _ in latest.values() if lease.key in accepted]

    def _give_up(self, connection: Connection, keys: Sequence[int]) -> None:
        reason = f"gave up after {self._max_attempts} attempts: no worker finished it before its lease ran out"
        overdue = update(EvaluationRow).where(EvaluationRow.id.in_(keys))
        connection.execute(overdue.values(status="failed", failure=reason, lease_until=None))


def _lock(
    connection: Connection, study_id: int, *conditions: ColumnElement[bool], limit: int | None = None
) -> Sequence[int]:
    """Primary keys of evaluations, lowest numbers first, that no other transaction is changing right now."""
    query = select(EvaluationRow.id).where(EvaluationRow.study_id == study_id, *conditions)
    query = query.order_by(EvaluationRow.number).limit(limit).with_for_update(skip_locked=True)
    return connection.scalars(query).all()


def _held(leases: Sequence[Lease]) -> ColumnElement[bool]:
    """Whether a row still runs under one of these leases."""
    pairs = [(lease.key, lease.token) for lease in leases]
    return and_(EvaluationRow.status == "running", tuple_(EvaluationRow.id, EvaluationRow.lease_token).in_(pairs))


def _read_leases(connection: Connection, keys: Sequence[int]) -> list[Lease]:
    query = (
        select(
            EvaluationRow.id,
            EvaluationRow.number,
            ArchitectureRow.genotype,
            EvaluationRow.attempt,
            EvaluationRow.lease_token,
        )
        .join(ArchitectureRow, ArchitectureRow.id == EvaluationRow.architecture_id)
        .where(EvaluationRow.id.in_(keys))
        .order_by(EvaluationRow.number)
    )
    return [
        Lease(key=key, number=number, genotype=decode_genotype(text), attempt=attempt, token=token)
        for key, number, text, attempt, token in connection.execute(query)
    ]
