"""A real PostgreSQL for tests: on a free port of the loopback, its data in a temporary directory, ended by its pid."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from redis_servers import HOST, _end_with_parent, free_port

PASSWORD = "a-password-nobody-may-log"
_WITHIN = 20.0
"""Seconds that a server may take to start, on a busy machine."""


def programs() -> Path:
    """Where PostgreSQL's programs are; in CI it is a failure to lack them, elsewhere a reason to skip."""
    found = shutil.which("initdb")
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found is None and not folders:
        message = "postgresql is not installed: .ci/run shows how"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return (folders[-1] if found is None else Path(found)).parent


def _as_user() -> dict[str, Any]:
    """Arguments of `subprocess` for a user who is not root, whom PostgreSQL refuses."""
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam("postgres")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


@dataclass
class PostgresServer:
    """One server, which can be stopped, killed, and started again on the same port and data."""

    port: int
    directory: Path
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://gateway:{PASSWORD}@{HOST}:{self.port}/{database}"

    def start(self) -> None:
        arguments = ["-D", "data", "-p", str(self.port), "-c", f"listen_addresses={HOST}", "-c", "fsync=off"]
        arguments += ["-c", f"unix_socket_directories={self.directory}", "-c", "max_connections=30"]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(programs() / "postgres"), *arguments],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - tests have no threads
                **_as_user(),
            )
        deadline = time.monotonic() + _WITHIN
        while not self._answers():
            assert self.process.poll() is None, (self.directory / "log").read_text()
            assert time.monotonic() < deadline, f"not there within {_WITHIN} s"
            time.sleep(0.05)

    def stop(self, sent: signal.Signals = signal.SIGQUIT) -> None:
        """End it at once, as a crash would: SIGQUIT, for which it leaves no shared memory behind."""
        if self.process is not None:
            self.process.send_signal(sent)
            self.process.wait()
            self.process = None

    def hang(self, *, hanging: bool) -> None:
        """Let it keep its connections and say nothing, or go on: the server, and the processes of its connections."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for pid in (self.process.pid, *map(int, children)):
            os.kill(pid, signal.SIGSTOP if hanging else signal.SIGCONT)

    def make_database(self) -> str:
        """A new database, and its URL."""
        import psycopg  # noqa: PLC0415 - for these tests only

        name = f"test_{secrets.token_hex(6)}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self.url(name)

    def _answers(self) -> bool:
        import psycopg  # noqa: PLC0415

        try:
            psycopg.connect(self.url(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Run a server that is the caller's own."""
    bin_folder, user = programs(), _as_user()
    with tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as temporary:
        directory = Path(temporary)
        (directory / "password").write_text(PASSWORD)
        if user:
            for path in (directory, directory / "password"):
                os.chown(path, user["user"], user["group"])
        subprocess.run(
            [
                *(str(bin_folder / "initdb"), "-D", "data", "-U", "gateway", "-A", "scram-sha-256"),
                *("--pwfile=password", "-E", "UTF8", "--locale=C", "--no-sync"),
            ],
            cwd=directory,
            check=True,
            stdout=subprocess.DEVNULL,
            **user,
        )
        server = PostgresServer(free_port(), directory)
        try:
            server.start()
            yield server
        finally:
            if server.process is not None:
                server.hang(hanging=False)
            server.stop()


@pytest.fixture(scope="session")
def shared_postgres() -> Iterator[PostgresServer]:
    """A server for all tests of this process. Never stop it."""
    with postgres_server() as server:
        yield server


DATABASES = ("sqlite", "postgresql")
MakeDatabase = Callable[[str], str]


@pytest.fixture
def make_database(request: pytest.FixtureRequest, tmp_path: Path) -> MakeDatabase:
    """Make an empty database of a kind of `DATABASES`, and return its URL."""

    def make(kind: str) -> str:
        if kind == "sqlite":
            return f"sqlite:///{tmp_path}/{secrets.token_hex(6)}.db"
        server: PostgresServer = request.getfixturevalue("shared_postgres")
        return server.make_database()

    return make
