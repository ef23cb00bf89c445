"""Alembic's entry: runs on the connection, and in the transaction, that `hie.core.schema` opened."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
context.run_migrations()
