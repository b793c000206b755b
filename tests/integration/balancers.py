"""Real nginx and HAProxy, with the configurations under deploy/, before real nodes.

What runs is the shipped file, with other addresses, ports and paths in the places that `Kind.places` names.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from conftest import ROOT, STEP, eventually, require_program
from redis_servers import free_port, make_certificates

DEPLOY = ROOT / "deploy"


def daemon(name: str) -> str:
    """The path of a program that Debian has where only root looks."""
    return shutil.which(name, path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin") or require_program(name)


class Kind:
    """A program, its shipped configuration, and how it is run."""

    name: str
    file: str
    reload: signal.Signals

    def command(self, config: Path) -> list[str]:
        raise NotImplementedError

    def check(self, config: Path) -> list[str]:
        raise NotImplementedError

    def places(self, directory: Path, port: int, tls_port: int, nodes: Sequence[str]) -> dict[str, str]:
        """What the test puts in place of what the shipped file says."""
        raise NotImplementedError


class Nginx(Kind):
    name = "nginx"
    file = "nginx.conf"
    reload = signal.SIGHUP

    def command(self, config: Path) -> list[str]:
        return [daemon("nginx"), "-c", str(config), "-g", "daemon off;"]

    def check(self, config: Path) -> list[str]:
        return [daemon("nginx"), "-t", "-c", str(config)]

    def places(self, directory: Path, port: int, tls_port: int, nodes: Sequence[str]) -> dict[str, str]:
        return {
            "/var/log/nginx/": f"{directory}/",
            "/run/nginx.pid": f"{directory}/nginx.pid",
            "listen 80;": f"listen 127.0.0.1:{port};",
            "listen [::]:80;": "",
            "listen 443 ssl": f"listen 127.0.0.1:{tls_port} ssl",
            "#listen [::]:443 ssl http2;  # TLS": "",
            "/etc/ssl/presence/fullchain.pem": f"{directory}/server.crt",
            "/etc/ssl/presence/privkey.pem": f"{directory}/server.key",
            "server 10.0.0.11:3000": f"server {nodes[0]}",
            "server 10.0.0.12:3000": f"server {nodes[1]}",
        }


class HAProxy(Kind):
    name = "haproxy"
    file = "haproxy.cfg"
    reload = signal.SIGUSR2

    def command(self, config: Path) -> list[str]:
        return [daemon("haproxy"), "-W", "-f", str(config)]

    def check(self, config: Path) -> list[str]:
        return [daemon("haproxy"), "-c", "-f", str(config)]

    def places(self, directory: Path, port: int, tls_port: int, nodes: Sequence[str]) -> dict[str, str]:
        places = {
            '"${BALANCER_LOG-/dev/log}"': "stdout",
            '"${BALANCER_LOG_FORMAT-local}"': "raw",
            "/run/haproxy/": f"{directory}/",
            "maxconn 50000": "maxconn 2000",
            "bind :80": f"bind 127.0.0.1:{port}",
            "bind [::]:80 v6only": "",
            "bind :443": f"bind 127.0.0.1:{tls_port}",
            "#bind [::]:443 v6only ssl crt /etc/haproxy/presence.pem alpn h2,http/1.1  # TLS": "",
            "/etc/haproxy/presence.pem": f"{directory}/presence.pem",
            "peer balancer 127.0.0.1:10000": f"peer balancer 127.0.0.1:{free_port()}",
            "server node1 10.0.0.11:3000": f"server node1 {nodes[0]}",
            "server node2 10.0.0.12:3000": f"server node2 {nodes[1]}",
        }
        if os.geteuid() != 0:
            places |= {"user haproxy": "", "group haproxy": "", "chroot /var/lib/haproxy": ""}
        return places


NGINX, HAPROXY = KINDS = (Nginx(), HAProxy())


@dataclass
class Balancer:
    """A running one."""

    kind: Kind
    url: str
    tls_url: str
    directory: Path
    process: asyncio.subprocess.Process

    @property
    def ws_url(self) -> str:
        return self.url.replace("http", "ws", 1)

    @property
    def logs(self) -> str:
        """Everything it has written anywhere."""
        return "\n".join(path.read_text() for path in sorted(self.directory.glob("*.log")))

    def statuses(self, path: str) -> list[tuple[str, int]]:
        """Method and status of each finished request of a path, from the access log."""
        nginx = rf'"(\S+) {re.escape(path)} \S+" (\d+)'
        found = re.findall(nginx, self.logs) if self.kind.name == "nginx" else []
        if self.kind.name == "haproxy":
            lines = re.findall(rf" (-?\d+) \d+ \S{{2,}} [\d/+]+ (\S+) {re.escape(path)} HTTP", self.logs)
            found = [(method, status) for status, method in lines]
        return [(method, int(status)) for method, status in found]

    async def admin(self, command: str) -> str:
        """Say something to HAProxy's socket, as README.md does."""
        reader, writer = await asyncio.open_unix_connection(self.directory / "admin.sock")
        writer.write(f"{command}\n".encode())
        answer = await reader.read()
        writer.close()
        return answer.decode()


def uncommented(text: str) -> str:
    """The file with its lines for TLS."""
    return re.sub(r"^( *)#(.*)  # TLS$", r"\1\2", text, flags=re.MULTILINE)


@asynccontextmanager
async def balancing(
    kind: Kind,
    directory: Path,
    nodes: Sequence[str],
    *,
    tls: bool = False,
    others: dict[str, str] | None = None,
) -> AsyncIterator[Balancer]:
    """Run a balancer before nodes.

    Args:
        kind: which.
        directory: for what it writes. Short, since a socket is in it.
        nodes: their URLs, two.
        tls: with the lines for TLS.
        others: further places to change.
    """
    port, tls_port = free_port(), free_port()
    make_certificates(directory)
    (directory / "presence.pem").write_text(
        (directory / "server.crt").read_text() + (directory / "server.key").read_text()
    )
    text = (DEPLOY / kind.file).read_text()
    places = kind.places(directory, port, tls_port, [urlsplit(node).netloc for node in nodes])
    for shipped, here in (places | (others or {})).items():
        assert shipped in text, shipped
        text = text.replace(shipped, here)
    config = directory / kind.file
    config.write_text(uncommented(text) if tls else text)
    with (directory / "output.log").open("wb") as output:
        process = await asyncio.create_subprocess_exec(*kind.command(config), stdout=output, stderr=output)
    balancer = Balancer(kind, f"http://127.0.0.1:{port}", f"https://127.0.0.1:{tls_port}", directory, process)
    try:
        await eventually(lambda: _listens(balancer, port))
        yield balancer
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STEP)
        except TimeoutError:
            process.kill()
            await process.wait()


def _listens(balancer: Balancer, port: int) -> bool:
    assert balancer.process.returncode is None, balancer.logs
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
