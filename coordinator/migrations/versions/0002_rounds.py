"""How far a round is, what happened to it, and which sites it does without."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """A round that is there gets an event that says where it stood, since none were kept before."""
    with op.batch_alter_table("round") as table:
        table.add_column(sa.Column("days", sa.Integer, nullable=False, server_default="30"))
        table.add_column(sa.Column("by_file", sa.Boolean, nullable=False, server_default=sa.false()))
        table.add_column(sa.Column("step", sa.String(200), nullable=False, server_default=""))
        table.add_column(sa.Column("share", sa.Double, nullable=False, server_default="0"))
    with op.batch_alter_table("withdrawal") as table:
        # More than 2 GiB: SQLite's integers have room for it, PostgreSQL's have not.
        table.alter_column(
            "erased_bytes", type_=sa.BigInteger, existing_type=sa.Integer, existing_nullable=False
        )
    event = op.create_table(
        "round_event",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("round", sa.String(32), sa.ForeignKey("round.name"), nullable=False),
        sa.Column("at", sa.DateTime, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("detail", sa.String(2000), nullable=False),
    )
    op.create_index("ix_round_event_round", "round_event", ["round"])
    op.create_table(
        "exclusion",
        sa.Column("round", sa.String(32), sa.ForeignKey("round.name"), primary_key=True),
        sa.Column("site", sa.String(32), sa.ForeignKey("site.name"), primary_key=True),
        sa.Column("because", sa.String(500), nullable=False),
        sa.Column("at", sa.DateTime, nullable=False),
    )
    op.create_table(
        "old_node_key",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("site", sa.String(32), sa.ForeignKey("site.name"), nullable=False),
        sa.Column("node_key", sa.String(1024), nullable=False),
        sa.Column("at", sa.DateTime, nullable=False),
        sa.Column("denied", sa.Boolean, nullable=False),
    )
    rounds = sa.table("round", sa.column("name"), sa.column("state"), sa.column("opened"))
    now = datetime.now(UTC).replace(tzinfo=None)
    detail = "Its events are kept from here on"
    rows = op.get_bind().execute(sa.select(rounds.c.name, rounds.c.state).order_by(rounds.c.opened)).all()
    found = [{"round": name, "at": now, "state": state, "detail": detail} for name, state in rows]
    if found:
        op.bulk_insert(event, found)
