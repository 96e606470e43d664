"""What a study was asked may be longer than 64 characters; SQLite, which checks no lengths, takes that as it is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "v0_1_0_2"
down_revision = "v0_1_0_1"


def upgrade() -> None:
    """Widen two columns where their length is a limit."""
    if op.get_context().dialect.name == "sqlite":
        return
    for name in ("algorithm", "data_hash"):
        op.alter_column("study", name, type_=sa.Text(), existing_type=sa.String(64), existing_nullable=False)
