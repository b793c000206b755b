"""What a doctor finds, and says to change: keys and limits as they are given, Redis and ports as they really are."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from conftest import ROOT, gateway_process, make_settings
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm
from redis_servers import free_port, redis_cluster, redis_server

from gateway.__main__ import main
from gateway.operators.doctor import (
    OTHER_FILES,
    examine_files,
    examine_keys,
    examine_port,
    is_sound,
    weakness,
    words,
)
from gateway.operators.doctor_reach import examine_reach
from gateway.operators.doctor_redis import examine_redis, tries
from gateway.operators.findings import Finding, Level, error, ok, warning
from gateway.operators.tables import duration, inert, table

GOOD = "b3c1f0a98d7e4456c2e1908f7a6b5d4c"
OTHER = "0f9e8d7c6b5a49382716fedcba987654"


def said(found: list[Finding], level: Level) -> str:
    return "\n".join(f"{each.said} -> {each.advice}" for each in found if each.level is level)


# Keys


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("secret", "example"),
        ("Your-256-bit-secret", "example"),
        ("short", "fewer than 32 bytes"),
        ("ab" * 20, "2 different characters"),
        (GOOD, None),
        ("ключ-" * 5 + "abcdefgh", None),
    ],
)
def test_a_key_that_can_be_guessed_is_named_weak(key: str, why: str | None) -> None:
    found = weakness(key, 32)
    assert (found is None) if why is None else (found is not None and why in found)


def test_good_keys_are_good() -> None:
    found = examine_keys(make_settings(jwt_secret=GOOD, service_api_keys=OTHER))
    assert [each.level for each in found] == [Level.OK]


@pytest.mark.parametrize(
    ("settings", "level", "words"),
    [
        ({"jwt_secret": "secret"}, Level.ERROR, "JWT_SECRET is one out of an example"),
        ({"service_api_keys": f"{OTHER},abc"}, Level.ERROR, "number 2 of SERVICE_API_KEYS can be guessed"),
        ({"service_api_keys_readonly": "read"}, Level.ERROR, "number 1 of SERVICE_API_KEYS_READONLY can be guessed"),
        (
            {"pusher_app_id": "1", "pusher_app_key": "k", "pusher_app_secret": "app-secret"},
            Level.ERROR,
            "PUSHER_APP_SECRET is one out of an example",
        ),
        ({"admin_ui_password": "admin"}, Level.ERROR, "ADMIN_UI_PASSWORD is one out of an example"),
        ({"service_api_keys": GOOD}, Level.ERROR, "number 1 of SERVICE_API_KEYS is the same as JWT_SECRET"),
        ({"service_api_keys": ""}, Level.WARNING, "SERVICE_API_KEYS is empty"),
        ({"dev": True}, Level.WARNING, "development mode"),
        ({"dev": True, "host": "0.0.0.0"}, Level.ERROR, "HOST is 0.0.0.0"),
        ({"dev": True, "redis_url": "redis://r/0"}, Level.ERROR, "REDIS_URL is set"),
        ({"jwt_require_exp": False}, Level.WARNING, "JWT_REQUIRE_EXP is false"),
        ({"cors_allowed_origins": "*"}, Level.WARNING, "CORS_ALLOWED_ORIGINS is *"),
    ],
)
def test_what_is_open_is_said_and_no_key_is(settings: dict[str, Any], level: Level, words: str) -> None:
    found = examine_keys(make_settings(**({"jwt_secret": GOOD, "service_api_keys": OTHER} | settings)))
    assert words in said(found, level)
    assert GOOD not in str(found)
    assert OTHER not in str(found)


# Where it runs


@pytest.mark.parametrize(
    ("limits", "level", "advice"),
    [
        ((1000 + OTHER_FILES, 1 << 20), Level.OK, ""),
        ((1024, 1 << 20), Level.ERROR, f"LimitNOFILE={1000 + OTHER_FILES}"),
        ((1024, 1024), Level.ERROR, "the hard limit is 1024"),
    ],
)
def test_the_limit_of_files_is_held_against_the_connections(limits: tuple[int, int], level: Level, advice: str) -> None:
    (found,) = examine_files(1000, limits)
    assert found.level is level
    assert advice in (found.advice or "")


async def test_a_port_is_free_or_a_gateway_s_or_another_s() -> None:
    port = free_port()
    (found,) = await examine_port("127.0.0.1", port)
    assert (found.level, found.said) == (Level.OK, f"127.0.0.1:{port} is free")
    async with gateway_process() as process:
        (found,) = await examine_port("127.0.0.1", int(process.url.rpartition(":")[2]))
    assert found.level is Level.OK
    assert "a gateway listens" in found.said
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", port)
    async with server:
        (found,) = await examine_port("127.0.0.1", port)
    assert found.level is Level.ERROR
    assert "stop what has it" in str(found.advice)
    (found,) = await examine_port("192.0.2.1", port)  # which no machine has
    assert found.level is Level.ERROR


# Redis


async def look(url: str, **settings: Any) -> list[Finding]:
    return await examine_redis(make_settings(redis_url=url, **settings))


def test_every_command_of_the_gateway_is_tried() -> None:
    known = set(tries("k:"))
    package = ROOT / "gateway"
    given: set[str] = set()
    for path in package.rglob("*.lua"):
        given |= {name.upper() for name in re.findall(r"call\(\s*['\"]([A-Za-z]+)['\"]", path.read_text())}
    for path in package.rglob("*.py"):
        if path.parent.name != "operators":
            given |= set(re.findall(r"(?:send|enqueue)\(\s*\"([A-Z]{3,})\"", path.read_text()))
    assert given >= {"XADD", "HVALS", "SSCAN", "ZREVRANGE"}
    assert given - known == set()


async def test_a_redis_as_it_should_be_is_sound() -> None:
    async with redis_server(extra=["--maxmemory-policy", "noeviction", "--appendonly", "yes"]) as server:
        found = await look(server.url)
        assert is_sound(found)
        kept = await server.cli("DBSIZE")
    whole = said(found, Level.OK)
    for expected in ("answers", "version 7", "a round trip takes", "appendonly", "evicts nothing", "apart", "commands"):
        assert expected in whole
    assert kept == 0  # what was tried is gone


async def test_what_is_wrong_with_a_redis_is_said_with_what_to_change() -> None:
    extra = ["--maxmemory-policy", "allkeys-lru", "--maxmemory", "100mb", "--save", "", "--appendonly", "no"]
    async with redis_server(extra=extra) as server:
        found = await look(server.url)
    assert "allkeys-lru" in said(found, Level.ERROR)
    assert "CONFIG SET maxmemory-policy noeviction" in said(found, Level.ERROR)
    assert "keeps nothing over a restart" in said(found, Level.WARNING)


async def test_a_redis_that_is_not_there_or_wants_a_password_is_said_to_be_so() -> None:
    (found,) = await look(f"redis://127.0.0.1:{free_port()}/0")
    assert (found.level, "does not serve" in found.said) == (Level.ERROR, True)
    async with redis_server(password="a-password-of-the-tests") as server:
        assert is_sound(await look(server.url))
        for url in (f"redis://127.0.0.1:{server.port}/0", f"redis://:wrong@127.0.0.1:{server.port}/0"):
            (found,) = await look(url)
            assert found.level is Level.ERROR
            assert "redis://user:password@" in str(found.advice)
            assert "wrong" not in found.said.lower().replace("wrongpass", "")


async def test_a_redis_that_speaks_tls_or_does_not_is_said_with_what_to_write() -> None:
    async with redis_server(tls=True) as server:
        (plain,) = await look(f"redis://127.0.0.1:{server.port}/0")
        (unknown,) = await look(f"rediss://127.0.0.1:{server.port}/0")
        assert is_sound(await look(server.url))
    assert "rediss:// and not redis://" in str(plain.advice)
    assert "ssl_ca_certs" in str(unknown.advice)
    async with redis_server() as server:
        (found,) = await look(f"rediss://127.0.0.1:{server.port}/0")
    assert "redis:// and not rediss://" in str(found.advice)


async def test_a_redis_whose_disk_fails_or_whose_memory_is_full_is_said_to_be_so() -> None:
    async with redis_server(extra=["--save", "3600 1000", "--dbfilename", "taken"]) as server:
        _, folder = await server.cli("CONFIG", "GET", "dir")
        (Path(folder) / "taken" / "by another").mkdir(parents=True)
        await server.cli("SET", "key", "value")
        await server.cli("BGSAVE")
        for _ in range(100):
            if "rdb_last_bgsave_status:err" in str(await server.cli("INFO", "persistence")):
                break
            await asyncio.sleep(0.05)
        problem = said(await look(server.url), Level.ERROR)
        assert "its last snapshot failed" in problem
        assert "a full disk" in problem
        assert "it refuses" in problem
        assert "it takes no writes" in problem
    async with redis_server(extra=["--maxmemory", "600kb", "--maxmemory-policy", "noeviction"]) as server:
        found = await look(server.url)
    assert "raise maxmemory" in said(found, Level.WARNING)
    assert "it takes no writes" in said(found, Level.ERROR)


# What else it asks


async def test_keys_that_are_published_are_fetched_and_what_fails_is_said(tmp_path: Path) -> None:
    key: dict[str, str] = json.loads(RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 2048).public_key()))

    async def answer(request: web.Request) -> web.Response:
        match request.path:
            case "/keys":
                return web.json_response({"keys": [key | {"kid": "one", "use": "sig"}]})
            case "/none":
                return web.json_response({"keys": []})
            case "/page":
                return web.Response(text="<html>", content_type="text/html")
        raise web.HTTPNotFound

    app = web.Application()
    app.router.add_get("/{path}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    try:
        found = {path: await reach(jwt_jwks_url=f"http://127.0.0.1:{port}/{path}") for path in ("keys", "none", "page")}
        found["lost"] = await reach(jwt_jwks_url=f"http://127.0.0.1:{port}/lost?secret=1")
    finally:
        await runner.cleanup()
    found["away"] = await reach(jwt_jwks_url=f"http://127.0.0.1:{port}/keys")
    assert [each.said for each in found.pop("keys")] == ["JWT_JWKS_URL gives 1 keys"]
    for [each] in found.values():
        assert each.level is Level.ERROR
        assert "nobody would be let in" in each.said
        assert "secret" not in each.said
    assert "404" in found["lost"][0].said


async def reach(**values: Any) -> list[Finding]:
    secret = None if "jwt_jwks_url" in values else GOOD
    return await examine_reach(make_settings(jwt_secret=secret, **values))


async def test_what_it_tells_and_asks_is_looked_for_and_no_password_is_said(tmp_path: Path) -> None:
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    there, away = server.sockets[0].getsockname()[1], free_port()
    values = {
        "presence_webhook_url": f"http://user:pass-word@127.0.0.1:{there}/hook",
        "presence_webhook_secret": "whsec_" + "QUJD" * 8,
        "channel_auth_url": f"http://127.0.0.1:{away}/auth",
        "export_database_url": f"postgresql+psycopg://user:pass-word@127.0.0.1:{away}/presence",
    }
    async with server:
        found = await reach(**values)
    assert said(found, Level.OK) == f"the webhook endpoint default: 127.0.0.1:{there} takes connections -> None"
    for name in ("CHANNEL_AUTH_URL", "EXPORT_DATABASE_URL"):
        assert f"{name}: 127.0.0.1:{away} takes no connection" in said(found, Level.WARNING)
    assert "pass-word" not in str(found)
    assert await reach(export_database_url=f"sqlite:///{tmp_path}/presence.db") == []


async def test_commands_that_are_not_allowed_are_named_scripts_among_them() -> None:
    async with redis_server() as server:
        await server.cli("ACL", "SETUSER", "worker", "on", ">password", "~*", "+@all", "-@scripting", "-xadd", "-info")
        found = await look(f"redis://worker:password@127.0.0.1:{server.port}/0")
        await server.cli("ACL", "SETUSER", "keyless", "on", ">password", "~other:*", "+@all")
        elsewhere = await look(f"redis://keyless:password@127.0.0.1:{server.port}/0")
    problem = said(found, Level.ERROR)
    assert "it refuses EVAL, EVALSHA, XADD" in problem
    assert "+eval +evalsha +xadd" in problem
    assert "its version is not to be had" in said(found, Level.WARNING)
    assert "HSET" in said(elsewhere, Level.ERROR)


async def test_a_replica_takes_no_writes() -> None:
    async with redis_server() as master, redis_server(extra=["--replicaof", f"127.0.0.1 {master.port}"]) as replica:
        found = await look(replica.url)
    assert "is a replica" in said(found, Level.ERROR)


async def test_a_cluster_is_looked_at_as_well() -> None:
    async with redis_cluster() as cluster:
        found = await look(cluster.url)
    assert is_sound(found), found
    assert "commands that the gateway gives are allowed" in said(found, Level.OK)


async def test_without_redis_it_says_what_that_means() -> None:
    (found,) = await examine_redis(make_settings())
    assert (found.level, "REDIS_URL" in found.said) == (Level.WARNING, True)


# The command


@pytest.fixture
def doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Run the command in this process, with these variables; return its exit status and what it printed."""

    def examine(*arguments: str, **variables: str) -> tuple[int, str]:
        monkeypatch.chdir(tmp_path)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        status = main(["doctor", "--port", "0", "--connections", "10", *arguments])
        return status, capsys.readouterr().out

    return examine


def test_the_exit_status_says_whether_something_is_wrong(doctor: Callable[..., tuple[int, str]]) -> None:
    status, output = doctor(JWT_SECRET=GOOD, SERVICE_API_KEYS=OTHER)
    assert status == 0, output
    assert "warning" in output  # there is no Redis
    assert doctor("--strict")[0] == 1
    status, output = doctor("--connections", "100000000")
    assert status == 1
    assert "LimitNOFILE=100000256" in output


def test_wrong_settings_are_what_it_finds(doctor: Callable[..., tuple[int, str]]) -> None:
    status, output = doctor(JWT_SECRET=GOOD, PRESENCE_TTL="soon", LOG_FORMAT="xml")
    assert status == 1
    assert re.search("^error +settings +PRESENCE_TTL: takes", output, re.MULTILINE)
    assert re.search("^error +settings +LOG_FORMAT: takes", output, re.MULTILINE)
    assert GOOD not in output


def test_it_prints_json(doctor: Callable[..., tuple[int, str]]) -> None:
    status, output = doctor("--json", JWT_SECRET="secret", SERVICE_API_KEYS=OTHER)
    found = json.loads(output)
    assert (status, found["ok"]) == (1, False)
    (wrong,) = [each for each in found["findings"] if each["level"] == "error"]
    assert wrong["about"] == "keys"
    assert wrong["advice"]


def test_what_is_printed_has_each_finding_and_the_sum() -> None:
    found = [ok("port", "free"), warning("redis", "slow", "move it"), error("keys", "weak", "set another")]
    lines = words(found).splitlines()
    assert lines[0] == "ok      port      free"
    assert lines[2].endswith("-> move it")
    assert lines[-1] == "1 error and 1 warning"
    assert words(found[:1]).endswith("nothing is wrong")


# Tables


def test_a_table_is_as_wide_as_what_is_in_it_and_inert() -> None:
    assert table(("A", "LONG"), [("1", "x"), ("\x1b[2J\u202e", "é")]) == "A      LONG\n1      x\n?[2J?  é"
    assert inert("a\nb\u2028c") == "a?b?c"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.0123, "12 ms"), (3.4, "3 s"), (60, "1 min"), (95, "1 min 35 s"), (3700, "1 h 1 min"), (90000, "1 d 1 h")],
)
def test_a_duration_has_two_units_at_the_most(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected
