"""Alembic's entry: migrations run on the connection that state.db.upgrade opened and locked."""

from alembic import context

from state.models import Base

connection = context.config.attributes.get("connection")
if connection is None:
    from state.db import engine

    connection = engine().connect()
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
