"""Expert layouts belong to architectures, with an operator per layer; no version before wrote any."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "v0_1_0_1"
down_revision = "v0_1_0"

SMALL = sa.String(64)


def upgrade() -> None:
    """Replace both tables."""
    op.drop_table("moe_layer")
    op.drop_table("moe_layout")
    op.create_table(
        "moe_layout",
        sa.Column("id", sa.Integer, primary_key=True),
        _link("architecture_id", "architecture.id"),
        _link("checkpoint_id", "checkpoint.id", index=True),
        sa.Column("statistics_id", sa.Integer, sa.ForeignKey("statistics.id"), index=True),
        sa.UniqueConstraint("architecture_id", "checkpoint_id"),
    )
    op.create_table(
        "moe_layer",
        sa.Column(
            "layout_id",
            sa.Integer,
            sa.ForeignKey("moe_layout.id", ondelete="CASCADE"),
            nullable=False,
            primary_key=True,
        ),
        sa.Column("layer", sa.Integer, primary_key=True),
        sa.Column("operator", SMALL, nullable=False),
        sa.Column("experts", sa.Integer, nullable=False),
        sa.Column("top_k", sa.Integer, nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("kept", sa.JSON, nullable=False),
        sa.Column("merged", sa.JSON, nullable=False),
    )


def _link(name: str, target: str, *, index: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, sa.ForeignKey(target), nullable=False, index=index)
