"""The Dockerfile's own steps, done one by one in an empty folder, and the gateway that comes of them.

No daemon is needed for that: what is left out is the base image, its Debian packages, and its users.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import aiohttp
import pytest
from conftest import ROOT, SECRET, STEP, make_token, require_program
from redis_servers import free_port

from gateway.version import __version__

SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))
HOOK = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]
PLACES = ("/opt/presence-gateway", "/source", "/tools", "/wheels")
"""Where the Dockerfile puts things; here each is in the folder of the test."""

pytestmark = [
    pytest.mark.xdist_group("image"),  # it is built once
    pytest.mark.timeout(900),  # the compiler is not fast, and the machine may be busy
]


@dataclass
class Stage:
    """What a stage of the Dockerfile comes to."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    user: str = "0:0"
    healthcheck: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    """The words of its instructions."""

    def here(self, text: str) -> str:
        for place in PLACES:
            text = re.sub(rf"(?<![\w.$]){re.escape(place)}\b", f"{self.root}{place}", text)
        return text

    def variables(self) -> dict[str, str]:
        return {name: self.here(value).replace("$PATH", os.environ["PATH"]) for name, value in self.environment.items()}


def instructions() -> list[list[tuple[str, str]]]:
    """The stages, each as instructions and what follows them."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    stages: list[list[tuple[str, str]]] = []
    for line in filter(None, text.splitlines()):
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            stages.append([])
        stages[-1].append((word, rest))
    return stages


def ignored(folder: str, names: list[str]) -> set[str]:
    """Which of a folder's files .dockerignore keeps out."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line.removeprefix("**/") for line in lines if line.startswith("**/")]
    return {name for name in names if any(fnmatch(name, pattern) for pattern in patterns)}


def carry_out(stage: Stage, word: str, rest: str) -> None:
    """Do one instruction, as a builder would."""
    stage.done.append(word)
    match word:
        case "ENV":
            stage.environment |= dict(each.split("=", 1) for each in rest.split())
        case "COPY" if not rest.startswith("--from"):
            *sources, to = rest.split()
            for name in sources:
                if (ROOT / name).is_dir():
                    shutil.copytree(ROOT / name, stage.root / "source" / to, ignore=ignored)
                else:
                    shutil.copy(ROOT / name, stage.root / "source" / to)
        case "RUN" if not rest.startswith(("apt-get", "groupadd")):
            variables = {name: value for name, value in stage.variables().items() if name != "PIP_NO_CACHE_DIR"}
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            done = subprocess.run(
                ["/bin/sh", "-euc", stage.here(rest)],
                cwd=stage.root / "source",
                env={**os.environ, "PATH": path} | variables,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{rest}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        case "USER":
            stage.user = rest
        case "HEALTHCHECK":
            stage.healthcheck = json.loads(rest.partition("CMD ")[2])
        case "ENTRYPOINT" | "CMD":
            stage.command += json.loads(rest)
        case "FROM" | "COPY" | "RUN" | "WORKDIR" | "EXPOSE" | "STOPSIGNAL":
            pass
        case _:
            raise AssertionError(f"this test does not know {word}")


@pytest.fixture(scope="module")
def image() -> Iterator[Stage]:
    """What the last stage comes to, with all that the first one made."""
    with tempfile.TemporaryDirectory(prefix="image-") as temporary:
        root = Path(temporary)
        root.chmod(0o755)  # for one who is not root
        (root / "source").mkdir()
        build, last = Stage(root), Stage(root)
        for stage, lines in zip((build, last), instructions(), strict=True):
            for word, rest in lines:
                carry_out(stage, word, rest)
        assert build.done.count("RUN") == 3
        assert last.done.count("COPY") == 1  # of what was installed, and of no compiler
        shutil.rmtree(root / "source")  # what was built does without
        yield last


def test_the_wheel_has_all_that_is_served_and_compiled(image: Stage) -> None:
    (wheel,) = (image.root / "wheels").glob("presence_gateway-*.whl")
    assert wheel.name.startswith(f"presence_gateway-{__version__}-cp")
    names = set(zipfile.ZipFile(wheel).namelist())
    hook = HOOK["custom"]
    compiled = {str(Path(name).with_suffix(SUFFIX)) for name in (*hook["modules"], *hook["sources"])}
    assert compiled <= names
    assert "gateway/py.typed" in names
    static = {f"gateway/pages/static/{path.name}" for path in (ROOT / "static").iterdir()}
    assert {"gateway/pages/test-presence.html", *static} <= names
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "gateway").rglob("*.py")}
    assert sources <= names
    assert not [name for name in names if name.startswith("tests") or ".env" in name]
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_what_is_installed_fits_together_and_has_no_installer(image: Stage) -> None:
    python = image.root / "opt" / "presence-gateway" / "bin" / "python"
    checking = [image.root / "tools" / "bin" / "python", "-m", "pip", "--python", python, "check"]
    done = subprocess.run([str(word) for word in checking], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    done = subprocess.run([python, "-m", "pip"], capture_output=True, text=True, check=False)
    assert "No module named pip" in done.stderr


def test_its_command_says_its_version(image: Stage) -> None:
    for command in (["presence-gateway"], ["python", "-m", "gateway"]):
        program = image.root / "opt" / "presence-gateway" / "bin" / command[0]
        done = subprocess.run(
            [program, *command[1:], "--version"], cwd="/", capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (0, f"{__version__}\n"), done.stderr


def as_its_user(user: str) -> list[str]:
    """What runs a command as the image's user: who reads what this machine's root reads, and writes nothing of it."""
    if os.geteuid() != 0:
        return []
    uid, gid = user.split(":")
    read = "+dac_read_search"  # Python may be in root's own folder here
    ids = [f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
    limits = ["--no-new-privs", f"--inh-caps=-all,{read}", f"--ambient-caps=-all,{read}", f"--bounding-set=-all,{read}"]
    return [require_program("setpriv"), *ids, *limits]


async def test_it_serves_as_its_user_is_healthy_and_stops(image: Stage) -> None:
    port = free_port()
    environment = image.variables() | {"HOST": "127.0.0.1", "PORT": str(port), "JWT_SECRET": SECRET}
    process = await asyncio.create_subprocess_exec(
        *as_its_user(image.user),
        shutil.which(image.command[0], path=environment["PATH"]) or image.command[0],
        *image.command[1:],
        cwd="/",
        env=environment,
        stderr=asyncio.subprocess.PIPE,
    )
    lines: list[bytes] = []

    assert process.stderr is not None
    try:
        entry: dict[str, object] = {}
        while entry.get("event") != "listening":
            line = await asyncio.wait_for(process.stderr.readline(), 6 * STEP)
            assert line, lines
            lines.append(line)
            entry = json.loads(line)
        assert (entry["compiled"], entry["version"]) == (True, __version__)
        if os.geteuid() == 0:
            assert runs_as(process.pid) == image.user
        assert await healthy(image, environment) == 0
        paths = ("/test-presence.html", "/static/test-presence.js", "/docs", "/openapi.json", "/metrics")
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            for path in paths:
                async with session.get(path) as response:
                    assert response.status == 200, path
            token = {"Authorization": f"Bearer {make_token()}"}
            async with session.post("/presence/heartbeat", headers=token) as response:
                assert response.status == 200
    finally:
        process.send_signal(signal.SIGTERM)
        code = await asyncio.wait_for(process.wait(), 4 * STEP)
    assert code == 0
    assert await healthy(image, environment) != 0


def runs_as(pid: int) -> str:
    return ":".join(re.findall(r"^[UG]id:\t(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE))


async def healthy(image: Stage, environment: dict[str, str]) -> int:
    """The exit status of the image's own check."""
    program, *words = image.healthcheck
    path = shutil.which(program, path=environment["PATH"])
    assert path is not None
    assert Path(path).is_relative_to(image.root)
    checking = await asyncio.create_subprocess_exec(path, *words, env=environment, stderr=asyncio.subprocess.DEVNULL)
    return await asyncio.wait_for(checking.wait(), 6 * STEP)
