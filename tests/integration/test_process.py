"""The program, section 1 of the contract: how it starts, what it says, and how it ends."""

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from clients import Client, Plain, Polling, Raw, deaf_websocket, is_timestamp
from conftest import ROOT, SECRET, STEP, Process, make_token
from redis_servers import free_port

from gateway.__main__ import main

Spawn = Callable[..., Awaitable[Process]]

ENVIRONMENT = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "GATEWAY_ENGINE"}}


async def run(*arguments: str, directory: Path = ROOT, **variables: str) -> tuple[int, str, str]:
    """Run ``python -m gateway`` to its end; return its exit status, output and errors."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", *arguments),
        cwd=directory,
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)} | variables,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(4 * STEP):
        output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


# Starting


async def test_development_mode_needs_nothing_and_prints_the_pages_address(
    spawn: Spawn, closing: AsyncExitStack
) -> None:
    process = await spawn("--dev", JWT_SECRET="", SERVICE_API_KEYS="")
    page = (await process.logged(r"http://127\.0\.0\.1:\d+/test-presence\.html"))[0]
    session = await closing.enter_async_context(aiohttp.ClientSession())
    async with session.get(page) as response:
        assert response.status == 200
    async with session.get(f"{process.url}/dev/token?user=alice") as response:
        token = (await response.json())["token"]
    alice = await Client.connect(closing, process.url, auth={"token": token})
    assert alice.of("connected")[0]["userId"] == "alice"
    assert token not in process.log


async def test_without_a_key_it_does_not_start_and_says_what_to_set(tmp_path: Path) -> None:
    status, output, errors = await run("serve", "--port", "0", directory=tmp_path)
    assert (status, output) == (2, "")
    assert "JWT_SECRET" in errors
    assert "--dev" in errors
    assert len(errors.strip().splitlines()) == 1
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("PORT", "65536"),
        ("PRESENCE_TTL", "soon"),
        ("PRESENCE_AWAY_AFTER", "0"),
        ("PRESENCE_OFFLINE_GRACE", "-1"),
        ("PRESENCE_AUDIENCE", "nobody"),
        ("RATE_LIMIT_EVENTS", "100"),
        ("RATE_LIMIT_HEARTBEAT", "0/s"),
        ("MAX_PAYLOAD", "64K"),
        ("MAX_CONNECTIONS_PER_USER", "0"),
        ("JWT_ALGORITHMS", "none"),
        ("JWT_ALGORITHMS", "RS256"),
        ("JWT_PUBLIC_KEY", "/no/such/file.pem"),
        ("JWT_REQUIRE_EXP", "perhaps"),
        ("CORS_ALLOWED_ORIGINS", "app.example"),
        ("LOG_FORMAT", "xml"),
        ("LOG_LEVEL", "loud"),
        ("ADMIN_PAGE", "perhaps"),
        ("ADMIN_UI_ORIGIN", "admin.socket.io"),
    ],
)
def test_a_bad_value_stops_the_start_with_the_variables_name(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JWT_SECRET", SECRET)
    monkeypatch.setenv(name, value)
    assert main(["serve"]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert name in errors
    assert SECRET not in errors


async def test_several_bad_values_are_all_named_in_one_line_each(tmp_path: Path) -> None:
    status, output, errors = await run(
        "serve", directory=tmp_path, JWT_SECRET=SECRET, PRESENCE_TTL="soon", LOG_FORMAT="xml"
    )
    assert (status, output) == (2, "")
    assert "Traceback" not in errors
    assert [len([line for line in errors.splitlines() if name in line]) for name in ("PRESENCE_TTL", "LOG_FORMAT")] == [
        1,
        1,
    ]


async def test_a_port_in_use_stops_the_start(spawn: Spawn, tmp_path: Path) -> None:
    process = await spawn()
    port = process.url.rsplit(":", 1)[1]
    status, _output, errors = await run("serve", "--port", port, directory=tmp_path, JWT_SECRET=SECRET)
    assert status == 2
    assert port in errors
    assert "Traceback" not in errors


async def test_variables_come_from_a_file_too(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"JWT_SECRET={SECRET}\nLOG_FORMAT=xml\n")
    status, _output, errors = await run("serve", directory=tmp_path)
    assert status == 2
    assert "LOG_FORMAT" in errors
    assert "JWT_SECRET" not in errors


async def test_help_names_the_commands() -> None:
    status, output, errors = await run("--help")
    assert (status, errors) == (0, "")
    assert [word for word in ("serve", "token") if word not in output] == []


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("serve", ["--host", "--port", "--dev", "JWT_SECRET", ".env"]),
        ("token", ["USER", "--tenant", "--name", "--role", "--ttl", "JWT_SECRET"]),
        ("export", ["EXPORT_DATABASE_URL", "REDIS_URL", ".env"]),
        ("webhooks", ["list", "replay", "resume", "forget", "REDIS_URL"]),
        ("doctor", ["--connections", "--strict", "--json", "--host", "--port", ".env"]),
        ("nodes", ["--url", "--json", "GATEWAY_URL", "GATEWAY_API_KEY"]),
        ("explain", ["USER", "--tenant", "--url", "--json"]),
        ("kick", ["USER", "--tenant", "--url", "--json"]),
        ("drain", ["NODE", "--wait", "--url", "--json"]),
    ],
)
def test_help_of_a_command_names_what_it_takes(
    command: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    output, _errors = capsys.readouterr()
    assert [word for word in words if word not in output] == []


async def test_without_a_command_it_says_how_it_is_used() -> None:
    status, _output, errors = await run()
    assert status == 2
    assert "usage" in errors


async def test_a_printed_token_is_accepted(spawn: Spawn, closing: AsyncExitStack) -> None:
    process = await spawn()
    options = ["--tenant", "red", "--name", "Alice", "--role", "admin", "--ttl", "60"]
    status, output, errors = await run("token", "alice", *options, JWT_SECRET=SECRET)
    assert (status, errors) == (0, "")
    token = output.strip()
    alice = await Client.connect(closing, process.url, auth={"token": token})
    [user] = (await alice.ask("get-online-users"))["data"]["users"]
    assert (user["userId"], user["name"], user["role"]) == ("alice", "Alice", "admin")
    red = await Client.connect(closing, process.url, auth={"token": make_token("bob", tenant="red")})
    assert (await red.ask("get-online-users"))["data"]["count"] == 2


async def test_without_a_secret_no_token_is_printed(tmp_path: Path) -> None:
    status, output, errors = await run("token", "alice", directory=tmp_path)
    assert (status, output) == (2, "")
    assert "JWT_SECRET" in errors
    assert "/dev/token" in errors


@pytest.mark.parametrize("user", ["", "a\nb", "x" * 129])
def test_no_token_is_printed_for_what_is_no_user(
    user: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JWT_SECRET", SECRET)
    assert main(["token", user]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert "USER" in errors


@pytest.mark.parametrize(
    ("option", "value"), [("--ttl", "0"), ("--ttl", "-5"), ("--ttl", "nan"), ("--ttl", "1e300"), ("--tenant", "")]
)
def test_no_token_is_printed_that_no_gateway_would_take(
    option: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JWT_SECRET", SECRET)
    assert main(["token", "alice", f"{option}={value}"]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith(f"gateway: {option} takes ")


def test_a_token_of_a_short_secret_is_printed_with_a_warning_of_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JWT_SECRET", "short")
    assert main(["token", "alice"]) == 0  # and no warning of PyJWT's, which would be an error here
    output, errors = capsys.readouterr()
    assert output.count(".") == 2
    assert errors.startswith("gateway: JWT_SECRET can be guessed: ")


async def test_a_host_that_is_none_is_told_in_the_systems_words(tmp_path: Path) -> None:
    status, _output, errors = await run("serve", "--host", "no.host.invalid", directory=tmp_path, JWT_SECRET=SECRET)
    assert status == 2
    assert "gateway: cannot listen on no.host.invalid:3000: " in errors
    assert "Unknown error" not in errors
    assert "HOST and PORT, or --host and --port, say where to listen" in errors


# Logs


async def test_a_json_log_has_a_line_for_each_connection_and_none_has_a_token(
    spawn: Spawn, closing: AsyncExitStack
) -> None:
    process = await spawn(LOG_FORMAT="json", LOG_LEVEL="debug", PRESENCE_OFFLINE_GRACE="0.2")
    tokens = await connect_through_every_place(closing, process)
    assert await process.stop() == 0
    entries = [json.loads(line) for line in process.lines]
    assert all({"event", "level", "timestamp"} <= set(entry) for entry in entries)
    for user, door, reason in [
        ("by-auth", "socketio", "goodbye"),
        ("by-header", "socketio", "goodbye"),
        ("by-query", "socketio", "goodbye"),
        ("by-cookie", "socketio", "goodbye"),
        ("by-plain", "websocket", "goodbye"),
        ("lost", "websocket", "connection lost"),
    ]:
        mine = [entry for entry in entries if entry.get("user") == user]
        assert [entry["event"] for entry in mine] == ["connected", "disconnected"], user
        assert {entry["door"] for entry in mine} == {door}
        assert {entry["tenant"] for entry in mine} == {"default"}
        assert mine[1]["reason"] == reason
        assert isinstance(mine[1]["duration"], int | float)
        assert mine[0]["connection"] == mine[1]["connection"]
    assert [token for token in tokens if token in process.log] == []
    assert re.findall(r"eyJ[\w-]+", process.log) == []


async def test_a_console_log_has_a_line_for_each_connection_and_none_has_a_token(
    spawn: Spawn, closing: AsyncExitStack
) -> None:
    process = await spawn(LOG_FORMAT="console", LOG_LEVEL="debug", PRESENCE_OFFLINE_GRACE="0.2")
    tokens = await connect_through_every_place(closing, process)
    assert await process.stop() == 0
    for user in ("by-auth", "by-header", "by-query", "by-cookie", "by-plain", "lost"):
        [opened] = [line for line in process.lines if f"user={user}" in line and "disconnected" not in line]
        [closed] = [line for line in process.lines if f"user={user}" in line and "disconnected" in line]
        assert "connected" in opened
        assert re.search(r"reason='?(goodbye|connection lost)", closed)
        assert re.search(r"duration=\d+\.\d+", closed)
    assert [token for token in tokens if token in process.log] == []
    assert re.findall(r"eyJ[\w-]+", process.log) == []


async def connect_through_every_place(closing: AsyncExitStack, process: Process) -> list[str]:
    """Send tokens, good and bad, through every place of every door; return each token's telling part."""
    ws_url = process.url.replace("http", "ws", 1)
    sent: list[str] = []

    def token(user: str, *, ttl: float = 3600) -> str:
        made = make_token(user, ttl=ttl)
        sent.append(made.split(".")[2])
        return made

    places: list[tuple[str, str, dict[str, Any]]] = [
        ("by-auth", process.url, {"auth": {"token": token("by-auth")}}),
        ("by-header", process.url, {"headers": {"Authorization": f"Bearer {token('by-header')}"}}),
        ("by-query", f"{process.url}?token={token('by-query')}", {}),
        ("by-cookie", process.url, {"headers": {"Cookie": f"jwt={token('by-cookie')}"}, "transports": ["polling"]}),
    ]
    for user, url, options in places:
        client = Client()
        await client.try_to_connect(closing, url, **options)
        await client.hears("connected")
        answer = await client.ask("refresh-token", {"token": token(user)})
        assert answer["event"] == "token-refreshed"
        assert (await client.ask("refresh-token", {"token": token("another")}))["event"] == "error"
        await client.ask("check-user-status", {"userId": token(user), "token": token(user)})
        await client.leave()
    plain = await Plain.open(closing, f"{ws_url}/ws?token={token('by-plain')}")
    await plain.until("connected")
    await plain.ws.close()
    lost = await Plain.open(closing, f"{ws_url}/ws?token={token('lost')}")
    await lost.until("connected")
    lost.vanish()
    await process.logged(r"disconnected.*lost|lost.*disconnected")
    expired = token("expired", ttl=-60)
    assert await (await Plain.open(closing, f"{ws_url}/ws?token={expired}")).closed() == 4002
    assert await (await Plain.open(closing, f"{ws_url}/ws?token={expired}x")).closed() == 4001
    session = await closing.enter_async_context(aiohttp.ClientSession())
    for path in ("/presence/heartbeat", "/no/such/path", "/socket.io/", "/online-status"):
        for made in (token("caller"), expired, token("caller") + "x"):
            async with session.post(f"{process.url}{path}?token={made}", data=b"{") as response:
                await response.read()
            headers = {"Authorization": f"Bearer {made}", "Cookie": f"jwt={made}", "X-API-Key": made}
            async with session.get(f"{process.url}{path}?token={made}&ids=a", headers=headers) as response:
                await response.read()
    host, port = process.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET /ws?token={token('bad')} HTTP/9.9\r\nBad Header: {token('bad')}\r\n\r\n".encode())
    await reader.read()
    writer.close()
    return sent


# Stopping


async def refused(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    try:
        _reader, writer = await asyncio.open_connection(host, int(port))
    except ConnectionError:
        return True
    writer.close()
    return False


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_asked_to_stop_it_tells_its_clients_closes_them_and_ends_well(
    spawn: Spawn, closing: AsyncExitStack, sent: signal.Signals
) -> None:
    process = await spawn(SHUTDOWN_TIMEOUT="8")
    ws_url = process.url.replace("http", "ws", 1)
    websocket = await Client.connect(closing, process.url, "websocket")
    polling = await Client.connect(closing, process.url, "polling", transports=["polling"])
    plain = await Plain.connect(closing, ws_url, "plain")
    stopping = asyncio.create_task(process.stop(sent, within=8 + STEP))
    notice = (await plain.until("server-draining"))["data"]
    assert set(notice) == {"timestamp", "retryAfter"}
    assert is_timestamp(notice["timestamp"])
    assert notice["retryAfter"] > 0
    assert await plain.closed() == 1001
    for client in (websocket, polling):
        assert set(await client.hears("server-draining")) == {"timestamp", "retryAfter"}
        await client.closed()
    assert await refused(process.url)
    assert await stopping == 0
    assert "user-offline" not in websocket.names() + polling.names() + plain.names()
    assert "Traceback" not in process.log


async def test_while_it_drains_it_says_that_it_is_not_ready(spawn: Spawn, closing: AsyncExitStack) -> None:
    process = await spawn()
    session = await closing.enter_async_context(aiohttp.ClientSession(process.url))
    plain = await Plain.connect(closing, process.url.replace("http", "ws", 1))
    async with session.get("/health/ready") as response:
        assert response.status == 200
    stopping = asyncio.create_task(process.stop())
    try:
        await plain.until("server-draining")
        async with session.get("/health/ready") as response:
            assert response.status == 503
    finally:
        await stopping


async def sent_away(client: Plain) -> dict[str, Any]:
    """The notice that a client gets before it is closed."""
    notice: dict[str, Any] = (await client.until("server-draining"))["data"]
    assert await client.closed() == 1001
    return notice


async def test_clients_are_sent_away_at_the_rate_that_is_set(spawn: Spawn, closing: AsyncExitStack) -> None:
    process = await spawn(DRAIN_RATE="10/s", SHUTDOWN_TIMEOUT="20")
    ws_url = process.url.replace("http", "ws", 1)
    clients = [await Plain.connect(closing, ws_url, f"client-{number}") for number in range(20)]
    stopping = asyncio.create_task(process.stop(within=20 + STEP))
    notices = await asyncio.gather(*(sent_away(client) for client in clients))
    assert await stopping == 0
    told = [datetime.fromisoformat(notice["timestamp"]).timestamp() for notice in notices]
    assert max(told) - min(told) > 1.7  # two seconds' worth of clients, of whom the last go in the last eighth
    assert len(set(told)) >= 6
    assert len({notice["retryAfter"] for notice in notices}) > 10  # each comes back at a moment of its own


async def test_for_a_while_it_lets_clients_in_and_says_that_it_is_not_ready(
    spawn: Spawn, closing: AsyncExitStack
) -> None:
    process = await spawn(DRAIN_DELAY="60")
    ws_url = process.url.replace("http", "ws", 1)
    session = await closing.enter_async_context(aiohttp.ClientSession(process.url))
    early = await Plain.connect(closing, ws_url, "early")
    process.process.terminate()
    await process.logged("not ready any more")
    async with session.get("/health/ready") as response:
        assert response.status == 503
    async with session.get("/health/live") as response:
        assert response.status == 200
    late = await Plain.connect(closing, ws_url, "late")
    for client in (early, late):
        assert (await client.ask("heartbeat"))["event"] == "heartbeat-ack"
    process.process.terminate()  # again: whoever asks twice does not wait
    await asyncio.gather(sent_away(early), sent_away(late))
    assert await asyncio.wait_for(process.process.wait(), 3 * STEP) == 0


async def test_with_nobody_there_it_stops_too(spawn: Spawn) -> None:
    process = await spawn()
    assert await process.stop() == 0
    assert await refused(process.url)


async def test_clients_that_do_not_leave_are_cut_off_in_time(spawn: Spawn, closing: AsyncExitStack) -> None:
    process = await spawn(SHUTDOWN_TIMEOUT="3", MAX_SEND_BUFFER="65536")
    await deaf_websocket(closing, process.url, f"/ws?token={make_token('deaf')}")
    await deaf_websocket(closing, process.url, "/socket.io/?EIO=4&transport=websocket")
    await process.logged("user=deaf")
    session = await Polling.connect(closing, process.url, "poller")
    host, port = process.url.removeprefix("http://").split(":")
    _reader, idle = await asyncio.open_connection(host, int(port))
    closing.callback(idle.close)
    _reader, half = await asyncio.open_connection(host, int(port))
    closing.callback(half.close)
    half.write(b"POST /presence/heartbeat HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
    poll = asyncio.create_task(session.poll())
    started = time.monotonic()
    assert await process.stop(within=4 * STEP) == 0
    assert time.monotonic() - started < 3 + STEP  # SHUTDOWN_TIMEOUT, on a busy machine
    with contextlib.suppress(aiohttp.ClientError, AssertionError):
        await poll
    assert "Traceback" not in process.log


async def test_killed_it_leaves_a_port_that_can_be_used_again(spawn: Spawn, closing: AsyncExitStack) -> None:
    first = await spawn("--port", str(free_port()))
    ws_url = first.url.replace("http", "ws", 1)
    plain = await Plain.connect(closing, ws_url)
    assert await first.stop(signal.SIGKILL) == -signal.SIGKILL
    await plain.closed()
    second = await spawn("--port", first.url.rsplit(":", 1)[1])
    assert second.url == first.url
    again = await Plain.connect(closing, ws_url)
    assert (await again.ask("heartbeat"))["event"] == "heartbeat-ack"


async def test_the_procfile_starts_it_on_the_port_given(closing: AsyncExitStack) -> None:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "honcho", "start", "--no-prefix"),
        cwd=ROOT,
        env=ENVIRONMENT
        | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{ENVIRONMENT.get('PATH', '')}",
            "PORT": str(port),
            "JWT_SECRET": SECRET,
        },
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    session = await closing.enter_async_context(aiohttp.ClientSession())
    try:

        async def answers() -> bool:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                async with session.get(f"http://127.0.0.1:{port}/health/ready") as response:
                    return response.status == 200
            return False

        async with asyncio.timeout(4 * STEP):
            while not await answers():
                assert process.returncode is None
                await asyncio.sleep(0.05)
        assert f":{port:04X}" in _listening_on_any_address()
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(4 * STEP):
            await process.wait()
    assert await refused(f"http://127.0.0.1:{port}")


def _listening_on_any_address() -> set[str]:
    """The ports, as the system writes them, that are listened to on 0.0.0.0."""
    table = Path("/proc/net/tcp")
    if not table.exists():
        pytest.skip("needs Linux's /proc to see which address is bound")
    rows = [line.split() for line in table.read_text().splitlines()[1:]]
    return {row[1].removeprefix("00000000") for row in rows if row[3] == "0A" and row[1].startswith("00000000:")}


async def test_a_secret_that_can_be_guessed_is_said_so_once(spawn: Spawn, closing: AsyncExitStack) -> None:
    process = await spawn(JWT_SECRET="secret")
    with warnings.catch_warnings(action="ignore"):
        token = make_token(secret="secret")
    await Raw.open(closing, f"{process.url}/ws?token={token}".replace("http", "ws", 1))
    await process.logged("connected")
    assert process.log.count("JWT_SECRET can be guessed") == 1
    assert "InsecureKeyLengthWarning" not in process.log
