"""Where Alembic gets its connection: from `coordinator.migrations`, or on its own command line by `-x url=`."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from coordinator.tables import Base


def _run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        compare_server_default=connection.dialect.name != "sqlite",  # it takes an empty text for a difference
        render_as_batch=True,  # SQLite changes a table by making it anew
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()


given: Connection | None = context.config.attributes.get("connection")
if given is not None:
    _run(given)
else:
    from coordinator.database import connect, parse_url

    with connect(parse_url(context.get_x_argument(as_dictionary=True)["url"])).connect() as opened:
        _run(opened)
