"""The first tables: identities, studies and their evaluations, devices, predictions, fronts and artifacts."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "v0_1_0"
down_revision = None

HASH = sa.String(64)
SMALL = sa.String(64)
KEY = sa.String(255)


def upgrade() -> None:
    """Create everything; alembic names the constraints by the pattern in `studies.schema`."""
    _identities()
    _studies()
    _evaluations()
    _predictions()
    _fronts()
    _artifacts()


def _required(name: str, kind: sa.types.TypeEngine[Any] | type[sa.types.TypeEngine[Any]]) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=False)


def _json(name: str) -> sa.Column[Any]:
    return _required(name, sa.JSON)


def _id() -> sa.Column[int]:
    return sa.Column("id", sa.Integer, primary_key=True)


def _link(name: str, target: str, *, owned: bool = False, **options: Any) -> sa.Column[int]:
    key = sa.ForeignKey(target, ondelete="CASCADE" if owned else None)
    return sa.Column(name, sa.Integer, key, nullable=False, **options)


def _identities() -> None:
    op.create_table(
        "search_space", _id(), sa.Column("fingerprint", HASH, nullable=False, unique=True), _json("content")
    )
    op.create_table(
        "checkpoint", _id(), sa.Column("weights_hash", HASH, nullable=False, unique=True), _required("uri", sa.Text)
    )
    op.create_table(
        "architecture",
        _id(),
        _link("space_id", "search_space.id"),
        _required("hash", sa.String(32)),
        _required("genotype", sa.Text),
        sa.UniqueConstraint("space_id", "hash"),
    )
    op.create_table("device", sa.Column("fingerprint", HASH, primary_key=True), _json("description"))
    op.create_table(
        "measurement",
        _id(),
        _required("device", HASH),
        _required("op_key", sa.String(512)),
        *(_required(f"seconds_{name}", sa.Double) for name in ("median", "iqr", "p95")),
        _required("repeats", sa.Integer),
        _required("reference_seconds", sa.Double),
        _required("clock", sa.String(16)),
        _required("load", sa.Double),
        _required("noisy", sa.Boolean),
        _json("versions"),
        sa.UniqueConstraint("device", "op_key"),
    )


def _studies() -> None:
    op.create_table(
        "study",
        _id(),
        sa.Column("name", KEY, nullable=False, unique=True),
        _link("space_id", "search_space.id"),
        _link("checkpoint_id", "checkpoint.id"),
        _required("data_hash", HASH),
        _json("objectives"),
        _json("constraints"),
        _required("algorithm", SMALL),
        _required("seed", sa.BigInteger),
        _required("budget", sa.Integer),
        _required("latency_table_hash", HASH),
        _json("settings"),
        _json("versions"),
        _required("created_utc", sa.DateTime(timezone=True)),
    )
    op.create_table(
        "note",
        _link("study_id", "study.id", owned=True, primary_key=True),
        sa.Column("key", KEY, primary_key=True),
        _json("content"),
    )


def _evaluations() -> None:
    op.create_table(
        "evaluation",
        _id(),
        _link("study_id", "study.id", owned=True),
        _link("architecture_id", "architecture.id", index=True),
        _required("fidelity", SMALL),
        _required("number", sa.Integer),
        _required("status", sa.String(8)),
        _required("failure", sa.Text),
        _required("attempt", sa.Integer),
        _required("worker", sa.Text),
        sa.Column("lease_until", sa.Double),
        _required("lease_token", sa.Integer),
        sa.UniqueConstraint("study_id", "architecture_id", "fidelity"),
        sa.UniqueConstraint("study_id", "number"),
    )
    op.create_index(None, "evaluation", ["study_id", "status", "lease_until"])
    op.create_table(
        "objective_value",
        _id(),
        _link("evaluation_id", "evaluation.id", owned=True, index=True),
        _required("objective", KEY),
        _required("number", sa.Double),
        _required("provenance", sa.String(16)),
        sa.Column("spread", sa.Double),
        _required("n", sa.Integer),
        _required("weights_hash", HASH),
        _required("data_hash", HASH),
        _required("data_fraction", sa.Double),
        _required("device", HASH),
        _required("context", sa.Text),
        _required("seed", sa.BigInteger),
    )


def _predictions() -> None:
    op.create_table(
        "predictor",
        _id(),
        _link("study_id", "study.id", owned=True),
        _required("name", SMALL),
        _required("training_hash", HASH),
        _json("error"),
        _required("created_utc", sa.DateTime(timezone=True)),
        sa.UniqueConstraint("study_id", "name", "training_hash"),
    )
    op.create_table(
        "prediction",
        _id(),
        _link("predictor_id", "predictor.id", owned=True),
        _link("architecture_id", "architecture.id"),
        _required("objective", KEY),
        _required("device", HASH),
        _required("number", sa.Double),
        sa.Column("spread", sa.Double),
        sa.UniqueConstraint("predictor_id", "architecture_id", "objective", "device"),
    )


def _fronts() -> None:
    op.create_table(
        "front",
        _id(),
        _link("study_id", "study.id", owned=True, index=True),
        _required("taken_utc", sa.DateTime(timezone=True)),
        _required("evaluations", sa.Integer),
        _json("objectives"),
        _json("reference"),
        sa.Column("hypervolume", sa.Double),
    )
    op.create_table(
        "front_member",
        _link("front_id", "front.id", owned=True, primary_key=True),
        _link("evaluation_id", "evaluation.id", owned=True, primary_key=True, index=True),
    )


def _artifacts() -> None:
    op.create_table(
        "artifact",
        _id(),
        _link("evaluation_id", "evaluation.id", owned=True),
        _required("kind", SMALL),
        _required("uri", sa.Text),
        _required("sha256", HASH),
        _json("description"),
        _required("created_utc", sa.DateTime(timezone=True)),
        sa.UniqueConstraint("evaluation_id", "kind", "uri"),
    )
    op.create_table(
        "statistics",
        _id(),
        sa.Column("hash", HASH, nullable=False, unique=True),
        _link("checkpoint_id", "checkpoint.id", index=True),
        _required("data_hash", HASH),
        _required("uri", sa.Text),
    )
    op.create_table(
        "moe_layout",
        _id(),
        _link("artifact_id", "artifact.id", owned=True, unique=True),
        _link("statistics_id", "statistics.id", index=True),
        _required("operator", SMALL),
    )
    op.create_table(
        "moe_layer",
        _link("layout_id", "moe_layout.id", owned=True, primary_key=True),
        sa.Column("layer", sa.Integer, primary_key=True),
        _required("experts", sa.Integer),
        _required("top_k", sa.Integer),
        _json("kept"),
        _json("merged"),
    )
