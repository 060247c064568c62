"""The tables of v0.1.0, which that program made without Alembic. Never changed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

tables = sa.MetaData()
sa.Table(
    "site",
    tables,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("keys", sa.String(8192), nullable=False),
    sa.Column("node_key", sa.String(1024), nullable=False),
    sa.Column("contact", sa.String(200), nullable=False),
    sa.Column("enrolled", sa.DateTime, nullable=False),
    sa.Column("accepted_sequence", sa.Integer, nullable=False),
    sa.Column("accepted_digest", sa.String(64), nullable=False),
    sa.Column("result_digest", sa.String(64), nullable=False),
    sa.Column("known_keys", sa.String(1024), nullable=False),
    sa.Column("withdrawn", sa.DateTime),
)
sa.Table(
    "site_key",
    tables,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("site", sa.String(32), sa.ForeignKey("site.name"), nullable=False),
    sa.Column("keys", sa.String(8192), nullable=False),
    sa.Column("since", sa.DateTime, nullable=False),
    sa.Column("until", sa.DateTime),
    sa.Column("revoked", sa.DateTime),
)
sa.Table(
    "round",
    tables,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("call", sa.LargeBinary, nullable=False),
    sa.Column("opened", sa.DateTime, nullable=False),
    sa.Column("expires", sa.DateTime, nullable=False),
)
sa.Table(
    "submission",
    tables,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("round", sa.String(32), sa.ForeignKey("round.name"), nullable=False),
    sa.Column("site", sa.String(32), sa.ForeignKey("site.name"), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("detail", sa.String(2000), nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("manifest_digest", sa.String(64), nullable=False),
    sa.Column("envelope_digest", sa.String(64), nullable=False),
    sa.Column("ledger_head", sa.String(64), nullable=False),
    sa.Column("signer", sa.String(64), nullable=False),
    sa.Column("received", sa.DateTime, nullable=False),
    sa.UniqueConstraint("round", "site"),
)
sa.Table(
    "published",
    tables,
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("round", sa.String(32), sa.ForeignKey("round.name"), nullable=False),
    sa.Column("manifest_digest", sa.String(64), nullable=False),
    sa.Column("fitted_with", sa.String(100_000), nullable=False),
    sa.Column("created", sa.DateTime, nullable=False),
    sa.Column("withdrawn", sa.DateTime),
    sa.Column("erased", sa.Boolean, nullable=False),
)
sa.Table(
    "delivery",
    tables,
    sa.Column("version", sa.Integer, sa.ForeignKey("published.version"), primary_key=True),
    sa.Column("site", sa.String(32), sa.ForeignKey("site.name"), primary_key=True),
    sa.Column("receipt", sa.String(20_000), nullable=False),
    sa.Column("received", sa.DateTime, nullable=False),
)
sa.Table(
    "review_record",
    tables,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("signed", sa.LargeBinary, nullable=False),
)
sa.Table(
    "review_head",
    tables,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
)
sa.Table(
    "access_token",
    tables,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False, unique=True),
    sa.Column("created", sa.DateTime, nullable=False),
    sa.Column("expires", sa.DateTime),
    sa.Column("revoked", sa.DateTime),
)
sa.Table(
    "withdrawal",
    tables,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("site", sa.String(32), sa.ForeignKey("site.name"), nullable=False),
    sa.Column("reason", sa.String(2000), nullable=False),
    sa.Column("at", sa.DateTime, nullable=False),
    sa.Column("node_key", sa.String(1024), nullable=False),
    sa.Column("node_denied", sa.Boolean, nullable=False),
    sa.Column("erase_versions", sa.Boolean, nullable=False),
    sa.Column("affected_rounds", sa.String(100_000), nullable=False),
    sa.Column("affected_sums", sa.String(100_000), nullable=False),
    sa.Column("affected_versions", sa.String(100_000), nullable=False),
    sa.Column("affected_fits", sa.String(100_000), nullable=False),
    sa.Column("reviewed", sa.String(1_000_000), nullable=False),
    sa.Column("refit_round", sa.String(32), nullable=False),
    sa.Column("step", sa.String(16), nullable=False),
    sa.Column("erased_bytes", sa.Integer, nullable=False),
    sa.Column("new_version", sa.Integer, nullable=False),
    sa.Column("outcome", sa.String(2000), nullable=False),
)


def upgrade() -> None:
    """Only what is missing is made: all of it, or nothing, or what v0.1.0 was killed before."""
    tables.create_all(op.get_bind())
