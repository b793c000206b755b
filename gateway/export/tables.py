"""The tables of an export. What is in each column stands in docs/reference/export.md."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Float,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    TypeDecorator,
)

if TYPE_CHECKING:
    from sqlalchemy import Dialect

SCHEMA = 1
"""Grows with each change of what is below; a database of a later one is left alone."""

_Number = BigInteger().with_variant(Integer(), "sqlite")
"""SQLite counts up an INTEGER only, which has 64 bits there as well."""


class Instant(TypeDecorator[datetime]):
    """An aware datetime. PostgreSQL keeps the zone; SQLite has text, which is in UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """On the way in."""
        if value is None or dialect.name != "sqlite":
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's
        """On the way out."""
        if value is None:
            return None
        found: datetime = value
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


metadata = MetaData()

# The names begin with presence_: an application's own database has its own `sessions`.

transitions = Table(
    "presence_transitions",
    metadata,
    Column("position", BigInteger, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("event", Text, nullable=False),
    Column("previous_status", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("status_text", Text),
    Column("reason", Text, nullable=False),
    Column("at", Instant, nullable=False),
    Column("last_active", Instant),
    # After a gap, several users have changed at one position.
    PrimaryKeyConstraint("position", "tenant", "user_id"),
    Index("presence_transitions_user", "tenant", "user_id", "position"),
    Index("presence_transitions_at", "tenant", "at"),
)

sessions = Table(
    "presence_sessions",
    metadata,
    Column("id", _Number, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("began_at", Instant, nullable=False),
    Column("began_by", Text, nullable=False),
    Column("ended_at", Instant),
    Column("ended_by", Text),
    Column("seconds", Float),
    Index("presence_sessions_user", "tenant", "user_id", "began_at"),
    Index("presence_sessions_began_at", "tenant", "began_at"),
    Index("presence_sessions_ended_at", "tenant", "ended_at"),
)
_goes_on = sessions.c.ended_at.is_(None)
Index(
    "presence_sessions_open",
    sessions.c.tenant,
    sessions.c.user_id,
    unique=True,
    sqlite_where=_goes_on,
    postgresql_where=_goes_on,
)

gaps = Table(
    "presence_gaps",
    metadata,
    Column("id", _Number, primary_key=True),
    Column("began_at", Instant, nullable=False),
    Column("ended_at", Instant, nullable=False),
    Column("position_before", BigInteger, nullable=False),
    Column("position_after", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
)

progress = Table(
    "presence_export",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("schema", Integer, nullable=False),
    Column("source", Text, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("at", Instant, nullable=False),
    Column("revision", BigInteger, nullable=False),
)
"""One row. `revision` grows with each transaction, and whoever writes names the one that they have seen."""
