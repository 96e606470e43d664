"""Runs the revisions on the open connection that `studies.database` hands over, inside its transaction."""

from __future__ import annotations

from alembic import context

from studies.schema import VERSION_TABLE, Base

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, version_table=VERSION_TABLE
)
with context.begin_transaction():
    context.run_migrations()
