"""What is known of what the gateway is made of: a list of it, and whether any of it has a known vulnerability."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from redis_servers import free_port

from gateway.version import __version__

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = sorted(ROOT.glob("requirements*.lock"))
LOCK = """\
aiohttp==3.14.5 \\
    --hash=sha256:05b5dac11b9aeabe7f40a127cb7fe09f8c08c4bc8ff2a81d440d437e90cd98cd
yarl==1.25.1 \\
    --hash=sha256:09834c126e41b74d8a7cb8ec27c5b692c11480c77103df555d8c0a66a2ffde2c
"""


def tool(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@contextmanager
def database(vulnerable: str | None = None, *, status: int = 200) -> Iterator[tuple[str, list[str]]]:
    """A server that answers as OSV does, of which one package has a vulnerability; and whom it was asked about."""
    asked: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name = query["package"]["name"]
            asked.append(f"{name} {query['version']}")
            affected = {
                "package": query["package"],
                "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.0"}]}],
            }
            known = {"vulns": [{"id": "PYSEC-2026-1", "summary": "bad", "affected": [affected]}]}
            body = json.dumps(known if name == vulnerable else {}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query", asked
        server.shutdown()
        thread.join()


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "requirements.lock"
    path.write_text(LOCK)
    return path


def test_what_has_a_known_vulnerability_fails_the_audit(lock: Path) -> None:
    with database("yarl") as (url, asked):
        for lenient in ([], ["--if-reachable"]):
            done = tool("audit", "--osv-url", url, *lenient, lock)
            assert done.returncode == 1
            assert done.stdout == "audit: yarl 1.25.1: PYSEC-2026-1, fixed by 99.0\n"
    assert set(asked) == {"aiohttp 3.14.5", "yarl 1.25.1"}


def test_what_has_none_passes() -> None:
    with database() as (url, asked):
        done = tool("audit", "--osv-url", url)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"audit: \d+ packages, none with a known vulnerability\n", done.stdout)
    assert {"aiohttp", "redis", "hatchling", "mypy"} <= {each.split()[0] for each in asked}  # and what builds it


@pytest.mark.parametrize("there", [True, False], ids=["it fails", "nobody is there"])
def test_where_nobody_answers_it_was_not_checked_and_that_is_said(lock: Path, *, there: bool) -> None:
    with database(status=503) as (url, _asked):
        asked = url if there else f"http://127.0.0.1:{free_port()}/"
        strict = tool("audit", "--osv-url", asked, lock)
        lenient = tool("audit", "--osv-url", asked, "--if-reachable", lock)
    assert (strict.returncode, lenient.returncode) == (2, 0)
    for done in (strict, lenient):
        assert "NOT CHECKED" in done.stderr
        assert done.stdout == ""


def test_what_names_nothing_was_not_checked(tmp_path: Path) -> None:
    (tmp_path / "empty.lock").touch()
    with database() as (url, _asked):
        done = tool("audit", "--osv-url", url, tmp_path / "empty.lock")
    assert done.returncode == 2
    assert "NOT CHECKED" in done.stderr


def test_the_bill_of_materials_is_what_is_locked(tmp_path: Path) -> None:
    for name in ("first", "second"):
        done = tool("sbom", tmp_path / "dist" / name)
        assert done.returncode == 0, done.stderr
    first, second = ((tmp_path / "dist" / name).read_bytes() for name in ("first", "second"))
    assert first == second
    bom: dict[str, Any] = json.loads(first)
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
    whole = bom["metadata"]["component"]
    assert (whole["name"], whole["version"], whole["licenses"]) == (
        "presence-gateway",
        __version__,
        [{"license": {"id": "MIT"}}],
    )
    text = (ROOT / "requirements.lock").read_text()
    locked = dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))
    assert {each["name"]: each["version"] for each in bom["components"]} == locked
    assert {each["purl"] for each in bom["components"]} == {f"pkg:pypi/{name}@{at}" for name, at in locked.items()}
    hashes = [each["content"] for part in bom["components"] for each in part["hashes"]]
    assert sorted(hashes) == sorted(re.findall(r"sha256:(\w+)", text))
    (direct,) = (each["dependsOn"] for each in bom["dependencies"] if each["ref"] == whole["bom-ref"])
    assert len(direct) == len(PROJECT["project"]["dependencies"])
    assert "timestamp" not in bom["metadata"]
    marked = {part["name"]: part["properties"] for part in bom["components"] if "properties" in part}
    assert marked["uvloop"] == [{"name": "marker", "value": "sys_platform != 'win32'"}]


def test_a_lock_file_that_says_it_otherwise_makes_no_bill_of_materials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import sbom  # noqa: PLC0415 - a program, which is no package

    with pytest.raises(ValueError, match="not as `make lock` writes it: yarl"):
        sbom.components(LOCK.replace("yarl==", "yarl>="))


def test_what_builds_the_package_has_bounds_and_is_locked() -> None:
    requires = PROJECT["build-system"]["requires"]
    assert requires == PROJECT["dependency-groups"]["build"]
    locked = (ROOT / "requirements-build.lock").read_text()
    for each in requires:
        name = re.fullmatch(r"([a-z]+)>=[\d.]+,<\d+", each)[1]  # type: ignore[index]
        assert re.search(rf"^{name}==", locked, re.MULTILINE)


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_each_lock_file_has_hashes_and_names_no_host(path: Path) -> None:
    text = path.read_text()
    assert "://" not in text
    entries = re.split(r"\n(?=\S)", text.strip())
    assert len(entries) > 5
    assert all(re.match(r"[\w.\[\]-]+==\S+", each) and "--hash=sha256:" in each for each in entries)
