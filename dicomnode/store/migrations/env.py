"""Alembic's entry: runs on the connection that `dicomnode.store.db.migrate` holds."""

from __future__ import annotations

from alembic import context

from dicomnode.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite cannot alter tables in place
    transactional_ddl=False,  # the caller's transaction covers everything
)
with context.begin_transaction():
    context.run_migrations()
