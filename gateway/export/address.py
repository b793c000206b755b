"""``EXPORT_DATABASE_URL``: what it takes, and what must be installed for it."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

EXTRA = "pip install 'presence-gateway[sql]'"

_FORMS = "takes postgresql://user:password@host:port/database, or sqlite:///path/to/file.db"
_POSTGRESQL = frozenset({"postgresql", "postgres", "postgresql+psycopg"})
_SQLITE = frozenset({"sqlite", "sqlite+pysqlite"})


def check_url(url: str) -> None:
    """Refuse a URL that is of no known form, or for which something is not installed. Nothing is connected to.

    Raises:
        ValueError: what is wrong with it and what it takes, with nothing in it that may be secret.
    """
    scheme = _scheme(url)
    try:
        import sqlalchemy  # noqa: F401, PLC0415 - the extra's
    except ImportError:
        raise ValueError(f"needs SQLAlchemy, which is not installed: {EXTRA}") from None
    if scheme in _SQLITE:
        _check_file(url)
        return
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - reads it
    except ValueError:
        raise ValueError(f"{_FORMS}; a port is a number up to 65535") from None
    try:
        import psycopg  # noqa: F401, PLC0415 - likewise; it looks for its C library as it is imported
    except ImportError:
        raise ValueError(f"needs psycopg, which is not installed: {EXTRA}") from None


def dialect_of(url: str) -> str:
    """The database and its driver, as SQLAlchemy names them."""
    return "sqlite+pysqlite" if is_file(url) else "postgresql+psycopg"


def is_file(url: str) -> bool:
    """Whether it is SQLite's, which is one machine's."""
    return _scheme(url) in _SQLITE


def describe(url: str) -> str:
    """The URL for a line of the log: without user, password and parameters."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{_scheme(url)}://{host}{parts.path}"


def _scheme(url: str) -> str:
    scheme, found, _rest = url.partition("://")
    if not found or scheme not in _POSTGRESQL | _SQLITE:
        raise ValueError(_FORMS)
    return scheme


def _check_file(url: str) -> None:
    parts = urlsplit(url)
    path = unquote(parts.path.removeprefix("/"))
    if parts.netloc or path in {"", ":memory:"}:
        raise ValueError(f"{_FORMS}: three slashes before a relative path, four before an absolute one")
    if not Path(path).parent.is_dir():
        raise ValueError("the folder of the SQLite file does not exist")
