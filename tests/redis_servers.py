"""Real Redis servers for tests: alone, with TLS, with sentinels, as a cluster.

Each listens on a free port of the loopback, keeps its data in a temporary directory, and ends with its context. The
handles belong to no event loop: a server may be shared by tests whose loops differ.
"""

from __future__ import annotations

import asyncio
import ctypes
import ipaddress
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import RedisError

HOST = "127.0.0.1"
SERVICE = "mymaster"
SLOTS = 16384
_WITHIN = 30.0
"""Seconds that a server may take for what takes milliseconds, on a busy machine."""


@dataclass
class RedisServer:
    """One server process, which can be killed and started again on the same port and data."""

    port: int
    directory: Path
    """Its data, its log, and the socket ``redis.sock``."""
    arguments: Sequence[str]
    password: str | None = None
    ca_path: Path | None = None
    """The certificate to verify it with; None where it speaks without TLS."""
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        user = f":{self.password}@" if self.password else ""
        if self.ca_path:
            return f"rediss://{user}{HOST}:{self.port}/0?ssl_ca_certs={self.ca_path}"
        return f"redis://{user}{HOST}:{self.port}/0"

    @property
    def socket_path(self) -> Path:
        return self.directory / "redis.sock"

    def launch(self) -> None:
        """Start the process, and return at once."""
        from conftest import require_program  # noqa: PLC0415 - which imports this module's fixtures

        self.socket_path.unlink(missing_ok=True)
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [require_program("redis-server"), *self.arguments],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - tests have no threads
            )

    def answers(self) -> bool:
        """Whether it serves; it is asked over its Unix socket, where neither TLS nor a busy network is in the way."""
        if self.process is None or self.process.poll() is not None:
            raise AssertionError(f"redis-server ended:\n{(self.directory / 'log').read_text()}")
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_WITHIN)
            try:
                connection.connect(str(self.socket_path))
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
            except OSError:
                return False

    def stop(self) -> None:
        """End the process, if there is one. Nothing is saved."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    async def start(self) -> None:
        """Start it, again on the same port and data, and return when it answers."""
        self.launch()
        await _until(self.answers)

    async def kill(self) -> None:
        """End it with SIGKILL."""
        self.stop()

    async def pause(self) -> None:
        """Let it hang: it keeps its connections, and says nothing. `kill` and `resume` end that."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    async def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Delete its data while it is down, as the loss of its disk would."""
        assert self.process is None or self.process.poll() is not None
        for path in (self.directory / "dump.rdb", self.directory / "appendonlydir"):
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)

    async def cli(self, *command: Any) -> Any:
        """Send one command over a connection of its own; replies are text."""
        client = Redis(
            unix_socket_path=str(self.socket_path),
            password=self.password,
            decode_responses=True,
            socket_timeout=_WITHIN,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            driver_info=None,
        )
        async with client:
            return await client.execute_command(*command)  # type: ignore[no-untyped-call]


def free_port() -> int:
    """A port that nobody listens on, outside the range that outgoing connections take theirs from."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port


def make_server(
    directory: Path,
    *,
    port: int | None = None,
    save: bool = False,
    certificates: Path | None = None,
    password: str | None = None,
    extra: Sequence[str] = (),
) -> RedisServer:
    """A server that is not started yet; with a folder of `make_certificates`, it speaks TLS only."""
    directory.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    arguments = ["--bind", HOST, "--protected-mode", "yes", "--daemonize", "no", "--unixsocket", "redis.sock"]
    arguments += ["--save", "", "--appendonly", "yes" if save else "no"]
    arguments += ["--repl-diskless-sync-delay", "0"]  # a replica gets its data at once, not after 5 s
    if password:
        arguments += ["--requirepass", password, "--masterauth", password]
    if certificates:
        arguments += ["--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no"]
        arguments += ["--tls-replication", "yes", "--tls-cluster", "yes"]
        for option, name in (("ca-cert", "ca.crt"), ("cert", "server.crt"), ("key", "server.key")):
            arguments += [f"--tls-{option}-file", str(certificates / name)]
    else:
        arguments += ["--port", str(port)]
    ca_path = certificates / "ca.crt" if certificates else None
    return RedisServer(port, directory, [*arguments, *extra], password, ca_path)


@asynccontextmanager
async def redis_server(
    *,
    port: int | None = None,
    directory: Path | None = None,
    save: bool = False,
    tls: bool = False,
    password: str | None = None,
    extra: Sequence[str] = (),
) -> AsyncIterator[RedisServer]:
    """Run a server.

    Args:
        port: where it listens; None takes a free one.
        directory: where its data is; None makes one that is deleted at the end. Short, since a socket is in it.
        save: keep an append-only file, so that the data is there after `kill` and `start`.
        tls: speak TLS only; `RedisServer.ca_path` verifies it.
        password: what its clients must know; `RedisServer.url` has it.
        extra: further arguments of redis-server.
    """
    with tempfile.TemporaryDirectory(prefix="redis-") as temporary:
        certificates = make_certificates(Path(temporary)) if tls else None
        server = make_server(
            directory or Path(temporary, "data"),
            port=port,
            save=save,
            certificates=certificates,
            password=password,
            extra=extra,
        )
        try:
            await server.start()
            yield server
        finally:
            server.stop()


@dataclass
class SentinelServers:
    """A master, its replica, and the sentinels that watch them."""

    master: RedisServer
    replica: RedisServer
    sentinels: list[RedisServer]

    @property
    def url(self) -> str:
        user = f":{self.master.password}@" if self.master.password else ""
        hosts = ",".join(f"{HOST}:{sentinel.port}" for sentinel in self.sentinels)
        if self.master.ca_path:
            return f"rediss+sentinel://{user}{hosts}/0/{SERVICE}?ssl_ca_certs={self.master.ca_path}"
        return f"redis+sentinel://{user}{hosts}/0/{SERVICE}"

    async def kill_master(self) -> None:
        await self.master.kill()

    async def switch(self) -> None:
        """Have master and replica change places while both are alive; it takes about a second."""
        await self.sentinels[0].cli("SENTINEL", "FAILOVER", SERVICE)
        await self.wait_for_new_master()

    async def wait_for_new_master(self) -> None:
        """Return when the replica has become the master and the sentinels say so; the handles change places then."""

        async def promoted() -> bool:
            addresses = [await s.cli("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE) for s in self.sentinels]
            return all(int(port) == self.replica.port for _host, port in addresses) and (
                (await self.replica.cli("ROLE"))[0] == "master"
            )

        await _until(promoted)
        self.master, self.replica = self.replica, self.master


@asynccontextmanager
async def redis_sentinel(
    *, quorum: int = 2, sentinels: int = 3, tls: bool = False, password: str | None = None
) -> AsyncIterator[SentinelServers]:
    """Run a master with a replica, and sentinels that put the replica in its place within seconds.

    Args:
        quorum: sentinels that must agree that the master is down.
        sentinels: how many there are.
        tls: speak TLS only, everywhere.
        password: what clients of the data nodes must know; the sentinels ask for none.
    """
    with tempfile.TemporaryDirectory(prefix="redis-") as temporary:
        folder = Path(temporary)
        certificates = make_certificates(folder) if tls else None
        master = make_server(folder / "master", certificates=certificates, password=password)
        replicaof = ["--replicaof", f"{HOST} {master.port}"]
        replica = make_server(folder / "replica", certificates=certificates, password=password, extra=replicaof)
        watchers = [make_server(folder / f"sentinel-{i}", certificates=certificates) for i in range(sentinels)]
        servers = SentinelServers(master, replica, watchers)
        try:
            await _start([master, replica])
            await _until(lambda: _is_replicating(replica))
            _configure(watchers, master, quorum)
            await _start(watchers)
            for watcher in watchers:
                # What makes a failover last seconds; servers before 7.0 do not know it, and take longer.
                await watcher.cli("SENTINEL", "DEBUG", *_QUICK)
            await _until(lambda: _is_watching(watchers))
            yield servers
        finally:
            for server in (master, replica, *watchers):
                server.stop()


# While it fails over, a sentinel asks the replica only once a second. Its answer counts for five pings, and after four
# publications the other sentinels would take the promotion back: both must be longer than that second.
_QUICK = ("INFO-PERIOD", 200, "PING-PERIOD", 300, "ASK-PERIOD", 100, "PUBLISH-PERIOD", 500, "ELECTION-TIMEOUT", 1000)


def _configure(sentinels: Sequence[RedisServer], master: RedisServer, quorum: int) -> None:
    """Give each a configuration in which it knows the others; to find them takes seconds."""
    ids = [secrets.token_hex(20) for _ in sentinels]
    for index, (sentinel, own) in enumerate(zip(sentinels, ids, strict=True)):
        # Were they all to find it out at once, each might vote for itself, and the next election is seconds later.
        down_after = 500 if index < quorum else 1500
        lines = [
            f"sentinel myid {own}",
            f"sentinel monitor {SERVICE} {HOST} {master.port} {quorum}",
            f"sentinel down-after-milliseconds {SERVICE} {down_after}",
            f"sentinel failover-timeout {SERVICE} 2000",
            f"sentinel parallel-syncs {SERVICE} 1",
        ]
        if master.password:
            lines.append(f"sentinel auth-pass {SERVICE} {master.password}")
        lines += [
            f"sentinel known-sentinel {SERVICE} {HOST} {other.port} {other_id}"
            for other, other_id in zip(sentinels, ids, strict=True)
            if other is not sentinel
        ]
        (sentinel.directory / "sentinel.conf").write_text("\n".join(lines) + "\n")
        sentinel.arguments = ["sentinel.conf", "--sentinel", *_without_data(sentinel.arguments)]


def _without_data(arguments: Sequence[str]) -> list[str]:
    """Of a server's arguments, those that a sentinel takes as well."""
    pairs = zip(arguments[::2], arguments[1::2], strict=True)
    foreign = {"--save", "--appendonly", "--repl-diskless-sync-delay"}
    return [part for pair in pairs if pair[0] not in foreign for part in pair]


async def _is_replicating(replica: RedisServer) -> bool:
    role = await replica.cli("ROLE")
    return bool(role[0] == "slave" and role[3] == "connected")


async def _is_watching(sentinels: Sequence[RedisServer]) -> bool:
    """Whether each sentinel would carry out a failover, and has found the replica."""
    for sentinel in sentinels:
        try:
            await sentinel.cli("SENTINEL", "CKQUORUM", SERVICE)
        except RedisError:
            return False
        replicas = await sentinel.cli("SENTINEL", "REPLICAS", SERVICE)
        if len(replicas) != 1 or "ok" not in _link_status(replicas[0]):
            return False
    return True


def _link_status(replica: Any) -> str:
    fields = replica if isinstance(replica, dict) else dict(zip(replica[::2], replica[1::2], strict=True))
    return str(fields["master-link-status"])


@dataclass
class ClusterServers:
    """Masters that share the slots."""

    nodes: list[RedisServer]

    @property
    def url(self) -> str:
        first = self.nodes[0]
        user = f":{first.password}@" if first.password else ""
        hosts = ",".join(f"{HOST}:{node.port}" for node in self.nodes)
        if first.ca_path:
            return f"rediss+cluster://{user}{hosts}?ssl_ca_certs={first.ca_path}"
        return f"redis+cluster://{user}{hosts}"

    async def owner(self, key: str) -> RedisServer:
        """The node that serves a key."""
        slot = key_slot(key.encode())
        for first, last, (_host, port, *_), *_replicas in await self.nodes[0].cli("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == port)
        raise AssertionError(f"slot {slot} is not served")

    async def move_slot(
        self, key: str, to: RedisServer, *, halfway: Callable[[], Awaitable[Any]] | None = None
    ) -> None:
        """Move the slot of a key to another node while both serve, as resharding does.

        Args:
            key: any key of the slot.
            to: the node to move it to.
            halfway: awaited when half of the keys are moved, and the slot belongs to the old node still.
        """
        slot, source = key_slot(key.encode()), await self.owner(key)
        if source is to:
            return
        source_id, target_id = await source.cli("CLUSTER", "MYID"), await to.cli("CLUSTER", "MYID")
        await to.cli("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        await source.cli("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        count = await source.cli("CLUSTER", "COUNTKEYSINSLOT", slot)
        await self._migrate(slot, source, to, (count + 1) // 2)
        if halfway:
            await halfway()
        while await self._migrate(slot, source, to, 100):
            pass
        for node in (to, source, *self.nodes):  # first the new owner: in between, the old one would send clients back
            await node.cli("CLUSTER", "SETSLOT", slot, "NODE", target_id)

    async def _migrate(self, slot: int, source: RedisServer, to: RedisServer, count: int) -> int:
        keys = await source.cli("CLUSTER", "GETKEYSINSLOT", slot, count)
        if keys:
            auth = ("AUTH", to.password) if to.password else ()
            await source.cli("MIGRATE", HOST, to.port, "", 0, round(_WITHIN * 1000), *auth, "KEYS", *keys)
        return len(keys)


@asynccontextmanager
async def redis_cluster(
    *, masters: int = 3, tls: bool = False, password: str | None = None, extra: Sequence[str] = ()
) -> AsyncIterator[ClusterServers]:
    """Run a cluster without replicas. It takes two seconds: that long a node waits before it serves.

    Args:
        masters: how many nodes share the slots.
        tls: speak TLS only, everywhere.
        password: what its clients must know.
        extra: further arguments of each redis-server.
    """
    with tempfile.TemporaryDirectory(prefix="redis-") as temporary:
        certificates = make_certificates(Path(temporary)) if tls else None
        buses = [free_port() for _ in range(masters)]
        nodes = [
            make_server(
                Path(temporary, f"node-{bus}"),
                certificates=certificates,
                password=password,
                extra=[
                    "--cluster-enabled",
                    "yes",
                    "--cluster-node-timeout",
                    "1000",
                    "--cluster-port",
                    str(bus),
                    *extra,
                ],
            )
            for bus in buses
        ]
        try:
            await _start(nodes)
            for index, node in enumerate(nodes):
                await node.cli("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
                first, last = SLOTS * index // masters, SLOTS * (index + 1) // masters - 1
                await node.cli("CLUSTER", "ADDSLOTSRANGE", first, last)
            for node, bus in zip(nodes[1:], buses[1:], strict=True):
                await nodes[0].cli("CLUSTER", "MEET", HOST, node.port, bus)
            await _until(lambda: _is_whole(nodes))
            yield ClusterServers(nodes)
        finally:
            for node in nodes:
                node.stop()


async def _is_whole(nodes: Sequence[RedisServer]) -> bool:
    for node in nodes:
        info = await node.cli("CLUSTER", "INFO")
        fields = info if isinstance(info, dict) else dict(line.split(":", 1) for line in info.split())
        if fields["cluster_state"] != "ok" or int(fields["cluster_known_nodes"]) != len(nodes):
            return False
    return True


async def _start(servers: Sequence[RedisServer]) -> None:
    for server in servers:
        server.launch()
    for server in servers:
        await _until(server.answers)


async def _until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait until a condition holds; unlike `conftest.eventually`, it may be asked for with I/O."""
    deadline = time.monotonic() + _WITHIN
    while True:
        result = condition()
        if result if isinstance(result, bool) else await result:
            return
        assert time.monotonic() < deadline, f"not so within {_WITHIN} s"
        await asyncio.sleep(0.005)


def _end_with_parent() -> None:
    """Have the kernel end the server when the tests' process is killed; `finally` does it in every other case."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def make_certificates(directory: Path) -> Path:
    """Write ``server.crt`` and ``server.key`` for the loopback, and the ``ca.crt`` that verifies them; return where."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "CA of the tests")])
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "server of the tests")])
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST)), x509.DNSName("localhost")])

    ca = _certificate(ca_name, ca_key, ca_name, ca_key, x509.BasicConstraints(ca=True, path_length=None))
    (directory / "ca.crt").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    certificate = _certificate(name, key, ca_name, ca_key, names)
    (directory / "server.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (directory / "server.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return directory


def _certificate(
    name: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    extension: x509.ExtensionType,
) -> x509.Certificate:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        .sign(issuer_key, hashes.SHA256())
    )


def fresh_prefix() -> str:
    """A prefix for keys that no other test has: a shared server need never be flushed."""
    return f"test-{secrets.token_hex(6)}"


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    """A server for all tests of this process, started with the first that asks for it. Never kill or flush it."""
    with tempfile.TemporaryDirectory(prefix="redis-") as temporary:
        server = make_server(Path(temporary))
        try:
            server.launch()
            deadline = time.monotonic() + _WITHIN
            while not server.answers():
                assert time.monotonic() < deadline, f"not there within {_WITHIN} s"
                time.sleep(0.005)
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def redis_url(shared_redis: RedisServer) -> str:
    """The URL of `shared_redis`; take keys under a `fresh_prefix` of your own."""
    return shared_redis.url
