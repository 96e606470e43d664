"""The tables of the study store, typed; migrations create them, these classes describe them.

Conventions: text keys are empty, never NULL, when they do not apply, so that unique constraints hold; times are UTC;
a genotype is stored as its option indices joined by commas and found by its hash.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

VERSION_TABLE = "supernas_version"
"""Holds the revision; a database without it is not ours."""

REVISION = "v0_1_0_2"
"""Revision these classes describe."""

SMALL, HASH = String(64), String(64)
WORDS = Text().with_variant(String(64), "sqlite")
"""Of any length; SQLite, which checks none, keeps the column it had."""


class UtcDateTime(TypeDecorator[datetime]):
    """An aware time, kept in UTC on databases that store no zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Aware time in, UTC out."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """What the database holds is UTC."""
        if value is None or value.tzinfo is not None:
            return value
        return value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    """Parent of all tables; constraint names follow one pattern, so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {dict[str, Any]: JSON, list[Any]: JSON, datetime: UtcDateTime, str: Text}  # noqa: RUF012


def _owned(target: str, *, index: bool = True) -> Mapped[int]:
    """A foreign key whose row goes when the owner goes."""
    return mapped_column(ForeignKey(target, ondelete="CASCADE"), index=index)


class SearchSpaceRow(Base):
    """One search space; architectures are de-duplicated within it."""

    __tablename__ = "search_space"
    id: Mapped[int] = mapped_column(primary_key=True)
    fingerprint: Mapped[str] = mapped_column(HASH, unique=True)
    content: Mapped[dict[str, Any]]


class CheckpointRow(Base):
    """Weights that studies search; `uri` says where they were last seen."""

    __tablename__ = "checkpoint"
    id: Mapped[int] = mapped_column(primary_key=True)
    weights_hash: Mapped[str] = mapped_column(HASH, unique=True)
    uri: Mapped[str] = mapped_column(default="")


class StudyRow(Base):
    """One study; `objectives`, `constraints`, `settings` and `versions` as in `records.Study`."""

    __tablename__ = "study"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(255), unique=True)
    space_id: Mapped[int] = mapped_column(ForeignKey("search_space.id"))
    checkpoint_id: Mapped[int] = mapped_column(ForeignKey("checkpoint.id"))
    data_hash: Mapped[str] = mapped_column(WORDS)
    objectives: Mapped[list[Any]]
    constraints: Mapped[dict[str, Any]]
    algorithm: Mapped[str] = mapped_column(WORDS)
    seed: Mapped[int] = mapped_column(BigInteger)
    budget: Mapped[int]
    latency_table_hash: Mapped[str] = mapped_column(HASH)
    settings: Mapped[dict[str, Any]]
    versions: Mapped[dict[str, Any]]
    created_utc: Mapped[datetime]


class ArchitectureRow(Base):
    """One network of a space, once, however many studies evaluate it."""

    __tablename__ = "architecture"
    __table_args__ = (UniqueConstraint("space_id", "hash"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    space_id: Mapped[int] = mapped_column(ForeignKey("search_space.id"))
    hash: Mapped[str] = mapped_column(String(32))
    genotype: Mapped[str]


class EvaluationRow(Base):
    """One architecture in one study: its place, its state and who works on it.

    `lease_until` is in seconds since 1970 by the database's clock; `lease_token` grows with every claim.
    """

    __tablename__ = "evaluation"
    __table_args__ = (
        UniqueConstraint("study_id", "architecture_id", "fidelity"),
        UniqueConstraint("study_id", "number"),
        Index(None, "study_id", "status", "lease_until"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = _owned("study.id", index=False)
    architecture_id: Mapped[int] = mapped_column(ForeignKey("architecture.id"), index=True)
    fidelity: Mapped[str] = mapped_column(SMALL, default="")
    number: Mapped[int]
    status: Mapped[str] = mapped_column(String(8))
    failure: Mapped[str] = mapped_column(default="")
    attempt: Mapped[int] = mapped_column(default=0)
    worker: Mapped[str] = mapped_column(default="")
    lease_until: Mapped[float | None] = mapped_column(default=None)
    lease_token: Mapped[int] = mapped_column(default=0)


class ObjectiveValueRow(Base):
    """One number for one objective, as in `records.Value`; never updated, the last one counts."""

    __tablename__ = "objective_value"
    id: Mapped[int] = mapped_column(primary_key=True)
    evaluation_id: Mapped[int] = _owned("evaluation.id")
    objective: Mapped[str] = mapped_column(String(255))
    number: Mapped[float]
    provenance: Mapped[str] = mapped_column(String(16))
    spread: Mapped[float | None]
    n: Mapped[int]
    weights_hash: Mapped[str] = mapped_column(HASH)
    data_hash: Mapped[str] = mapped_column(HASH)
    data_fraction: Mapped[float]
    device: Mapped[str] = mapped_column(HASH)
    context: Mapped[str]
    seed: Mapped[int] = mapped_column(BigInteger)


class PredictorRow(Base):
    """One fitted predictor: what it was trained on and how wrong it was there."""

    __tablename__ = "predictor"
    __table_args__ = (UniqueConstraint("study_id", "name", "training_hash"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = _owned("study.id", index=False)
    name: Mapped[str] = mapped_column(SMALL)
    training_hash: Mapped[str] = mapped_column(HASH)
    error: Mapped[dict[str, Any]]
    created_utc: Mapped[datetime]


class PredictionRow(Base):
    """What a predictor says about an architecture, evaluated or not; kept apart from real values."""

    __tablename__ = "prediction"
    __table_args__ = (UniqueConstraint("predictor_id", "architecture_id", "objective", "device"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    predictor_id: Mapped[int] = _owned("predictor.id", index=False)
    architecture_id: Mapped[int] = mapped_column(ForeignKey("architecture.id"))
    objective: Mapped[str] = mapped_column(String(255))
    device: Mapped[str] = mapped_column(HASH)
    number: Mapped[float]
    spread: Mapped[float | None]


class DeviceRow(Base):
    """A machine, described once."""

    __tablename__ = "device"
    fingerprint: Mapped[str] = mapped_column(HASH, primary_key=True)
    description: Mapped[dict[str, Any]]


class MeasurementRow(Base):
    """Latency of one operation on one device, as in `records.Measurement`."""

    __tablename__ = "measurement"
    __table_args__ = (UniqueConstraint("device", "op_key"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    device: Mapped[str] = mapped_column(HASH)
    op_key: Mapped[str] = mapped_column(String(512))
    seconds_median: Mapped[float]
    seconds_iqr: Mapped[float]
    seconds_p95: Mapped[float]
    repeats: Mapped[int]
    reference_seconds: Mapped[float]
    clock: Mapped[str] = mapped_column(String(16))
    load: Mapped[float]
    noisy: Mapped[bool]
    versions: Mapped[dict[str, Any]]


class FrontRow(Base):
    """A front as it stood when a study had so many evaluations."""

    __tablename__ = "front"
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = _owned("study.id")
    taken_utc: Mapped[datetime]
    evaluations: Mapped[int]
    objectives: Mapped[list[Any]]
    reference: Mapped[list[Any]]
    hypervolume: Mapped[float | None]


class FrontMemberRow(Base):
    """One evaluation on a front snapshot."""

    __tablename__ = "front_member"
    front_id: Mapped[int] = mapped_column(ForeignKey("front.id", ondelete="CASCADE"), primary_key=True)
    evaluation_id: Mapped[int] = mapped_column(
        ForeignKey("evaluation.id", ondelete="CASCADE"), primary_key=True, index=True
    )


class ArtifactRow(Base):
    """A file or directory made from an evaluation, such as an exported checkpoint."""

    __tablename__ = "artifact"
    __table_args__ = (UniqueConstraint("evaluation_id", "kind", "uri"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    evaluation_id: Mapped[int] = _owned("evaluation.id", index=False)
    kind: Mapped[str] = mapped_column(SMALL)
    uri: Mapped[str]
    sha256: Mapped[str] = mapped_column(HASH)
    description: Mapped[dict[str, Any]]
    created_utc: Mapped[datetime]


class StatisticsRow(Base):
    """Calibration statistics of a checkpoint's experts on some data; what reductions are planned from."""

    __tablename__ = "statistics"
    id: Mapped[int] = mapped_column(primary_key=True)
    hash: Mapped[str] = mapped_column(HASH, unique=True)
    checkpoint_id: Mapped[int] = mapped_column(ForeignKey("checkpoint.id"), index=True)
    data_hash: Mapped[str] = mapped_column(HASH)
    uri: Mapped[str]


class MoELayoutRow(Base):
    """The experts of one architecture in one checkpoint, planned from statistics where operators need them."""

    __tablename__ = "moe_layout"
    __table_args__ = (UniqueConstraint("architecture_id", "checkpoint_id"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    architecture_id: Mapped[int] = mapped_column(ForeignKey("architecture.id"))
    checkpoint_id: Mapped[int] = mapped_column(ForeignKey("checkpoint.id"), index=True)
    statistics_id: Mapped[int | None] = mapped_column(ForeignKey("statistics.id"), index=True)


class MoELayerRow(Base):
    """One layer of a layout, as in `layout_book.ExpertLayer`."""

    __tablename__ = "moe_layer"
    layout_id: Mapped[int] = mapped_column(ForeignKey("moe_layout.id", ondelete="CASCADE"), primary_key=True)
    layer: Mapped[int] = mapped_column(primary_key=True)
    operator: Mapped[str] = mapped_column(SMALL)
    experts: Mapped[int]
    top_k: Mapped[int]
    width: Mapped[int]
    kept: Mapped[list[Any]]
    merged: Mapped[list[Any]]


class NoteRow(Base):
    """What a stage of a study wrote down for the next one."""

    __tablename__ = "note"
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    content: Mapped[Any] = mapped_column(JSON)
