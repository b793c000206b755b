import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog
from aiohttp.http_exceptions import BadStatusLine

from gateway.telemetry import configure_logs


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """Puts back what configuring the logs changes in the whole process."""
    root, access, server = (logging.getLogger(name) for name in (None, "aiohttp.access", "aiohttp.server"))
    handlers, level, disabled, filters = root.handlers[:], root.level, access.disabled, server.filters[:]
    yield
    root.handlers, access.disabled, server.filters = handlers, disabled, filters
    root.setLevel(level)
    structlog.reset_defaults()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_of_json_is_one_event(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("json", "info")
    structlog.get_logger("gateway.x").info("connected", user="alice\nbob", count=2)
    (line,) = lines(capsys)
    written = datetime.fromisoformat(line.pop("timestamp"))
    assert written.tzinfo == UTC
    assert line == {"event": "connected", "level": "info", "logger": "gateway.x", "user": "alice\nbob", "count": 2}


def test_the_standard_library_s_loggers_write_the_same_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("json", "info")
    logging.getLogger("some.library").warning("%s of %d", "one", 2)
    (line,) = lines(capsys)
    assert (line["event"], line["level"], line["logger"]) == ("one of 2", "warning", "some.library")


def test_a_failure_is_one_line_with_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("json", "info")
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        structlog.get_logger("gateway.x").exception("failed")
    (line,) = lines(capsys)
    assert line["event"] == "failed"
    assert line["exception"].splitlines()[-1] == "RuntimeError: broken"


def test_less_than_the_level_is_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("json", "warning")
    structlog.get_logger("gateway.x").info("quiet")
    logging.getLogger("some.library").info("quiet")
    structlog.get_logger("gateway.x").warning("loud")
    assert [line["event"] for line in lines(capsys)] == ["loud"]


def test_for_people_a_line_reads_without_escapes_where_it_goes_to_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("console", "info")
    structlog.get_logger("gateway.x").info("connected", user="alice")
    (line,) = capsys.readouterr().err.splitlines()
    assert "\x1b" not in line
    assert all(part in line for part in ("info", "connected", "user=alice"))


@pytest.mark.parametrize(
    "user", ["eve\u202egpj", "eve\x1b[2J", "eve\u2028x", "eve\x9b2J", "eve\u2066x", "e\udc80", "a b\u202e"]
)
def test_nothing_that_a_client_chose_moves_the_terminal(capsys: pytest.CaptureFixture[str], user: str) -> None:
    configure_logs("console", "info")
    structlog.get_logger("gateway.x").info("connected", user=user, count=1)
    logging.getLogger("asyncio").warning("of %s\n2026-01-01T00:00:00Z [info     ] connected user=root", user)
    try:
        raise RuntimeError(f"{user}\n2026-01-01T00:00:00Z [info     ] connected user=root")
    except RuntimeError:
        structlog.get_logger("gateway.x").exception("failed")
    written = capsys.readouterr().err
    assert all(line.isprintable() for line in written.split("\n"))
    assert f" user={user!r}\n" in written
    assert written.count("\n2026-01-01") == 0
    assert written.count("\n  2026-01-01") == 2
    assert "\n  Traceback (most recent call last):\n" in written


def test_a_traceback_for_people_has_no_values_of_variables(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("console", "info")

    def verify(token: str) -> None:
        raise RuntimeError(f"broken after {len(token)} letters")

    try:
        verify("SECRET".lower())
    except RuntimeError:
        structlog.get_logger("gateway.x").exception("failed")
    written = capsys.readouterr().err
    assert "RuntimeError: broken after 6 letters" in written
    assert "secret" not in written


def test_the_access_log_that_would_write_tokens_is_off(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("json", "debug")
    logging.getLogger("aiohttp.access").info("GET /ws?token=secret")
    assert capsys.readouterr().err == ""


def test_what_was_no_http_is_no_failure_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("json", "info")
    for error in (BadStatusLine("nonsense"), RuntimeError("broken")):
        logging.getLogger("aiohttp.server").error("Error handling request", exc_info=error)
    (line,) = lines(capsys)
    assert "RuntimeError: broken" in line["exception"]
