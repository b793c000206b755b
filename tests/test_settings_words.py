"""Settings: what is wrong with one is said in our words, and what is no setting is told of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SECRET

from gateway.errors import ConfigurationError
from gateway.settings import Settings

KNOWN = {str(field.validation_alias or name).upper() for name, field in Settings.model_fields.items()}


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of the machine's own, and no .env but the test's."""
    for name in KNOWN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("variable", "text", "says"),
    [
        ("PORT", "http", "takes a whole number from 0 to 65535"),
        ("PORT", "70000", "takes a whole number from 0 to 65535"),
        ("SESSION_HISTORY", "1.5", "takes a whole number from 0 to 1000"),
        ("MAX_PAYLOAD", "64k", "takes a whole number, 1024 at least"),
        ("MAX_CONNECTIONS_PER_USER", "0", "takes a whole number, 1 at least"),
        ("PRESENCE_TTL", "2m", "takes a number of seconds, more than 0"),
        ("LAST_SEEN_TTL", "inf", "takes a number of seconds, 1 at least"),
        ("WEBHOOK_TIMEOUT", "61", "takes a number of seconds, more than 0, 60 at the most"),
        ("PRESENCE_FLUSH_INTERVAL", "2", "takes a number of seconds from 0 to 1"),
        ("JWT_REQUIRE_EXP", "perhaps", "takes true or false"),
        ("PRESENCE_DEV", "perhaps", "takes true or false"),
        ("LOG_LEVEL", "loud", "takes debug, info, warning or error"),
        ("GATEWAY_ENGINE", "turbo", "takes fast or stock"),
        ("PUSHER_APP_ID", "a/b", "takes 1 to 64 letters, digits, _ and -"),
        ("RATE_LIMIT_EVENTS", "5", "a rate reads 100/s, 60/min or 1000/h"),
        ("PRESENCE_WEBHOOKS", '[{"url": "http://x", "secret": "s"}]', "name of number 1: is missing"),
        (
            "PRESENCE_WEBHOOKS",
            '[{"name": "a", "url": "http://x", "secret": "s", "event": "*"}]',
            "event of number 1: is unknown",
        ),
        ("PRESENCE_WEBHOOKS", "[5]", 'number 1: takes an object, as {"name": "crm", '),
        (
            "PRESENCE_WEBHOOKS",
            '[{"name": "a b", "url": "http://x", "secret": "s"}]',
            "name of number 1: takes 1 to 64 letters, digits, _ and -",
        ),
        (
            "PRESENCE_WEBHOOKS",
            '[{"name": "a", "url": "http://x", "format": "slack"}]',
            "format of number 1: takes standard or pusher",
        ),
        (
            "PRESENCE_WEBHOOKS",
            '[{"name": "a", "url": "http://x", "secret": "s", "events": "*"}]',
            "events of number 1: takes an array",
        ),
        ("PRESENCE_WEBHOOKS", '[{"name": 5, "url": "http://x", "secret": "s"}]', "name of number 1: takes a text"),
    ],
)
def test_what_a_variable_takes_is_said_in_words_of_ours(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, says: str
) -> None:
    monkeypatch.setenv("JWT_SECRET", SECRET)
    monkeypatch.setenv(variable, text)
    with pytest.raises(ConfigurationError) as caught:
        Settings.load()
    assert str(caught.value).startswith(f"{variable}: {says}")


# What is no setting


def test_a_slip_in_a_name_is_told_with_the_setting_it_was_to_be(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"JWT_SECRET={SECRET}\nPRESENCE_OFLINE_GRACE=1\nredis_prefx=a\n")
    assert Settings.strangers() == [
        ".env has PRESENCE_OFLINE_GRACE, which is no setting: is it to be PRESENCE_OFFLINE_GRACE?",
        ".env has REDIS_PREFX, which is no setting: is it to be REDIS_PREFIX?",
    ]


def test_a_slip_that_keeps_it_from_starting_is_told_with_the_refusal(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("JWT_SECRT=hush\n")
    with pytest.raises(ConfigurationError) as caught:
        Settings.load()
    refusal, hint = str(caught.value).splitlines()
    assert refusal.startswith("no key to verify tokens with: set JWT_SECRET")
    assert hint == ".env has JWT_SECRT, which is no setting: is it to be JWT_SECRET?"


def test_other_names_of_the_file_are_told_in_one_line_and_no_values(tmp_path: Path) -> None:
    names = [f"MAIL_{letter}" for letter in "ABCDEFGHIJ"]
    (tmp_path / ".env").write_text("".join(f"{name}=hush\n" for name in names))
    assert Settings.strangers() == [
        f".env has names that are no settings, and are ignored: {', '.join(names[:8])} and 2 more"
    ]


def test_of_the_environment_only_what_is_nearly_a_setting_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.strangers() == []
    monkeypatch.setenv("SERVICE_API_KEY", "hush")
    monkeypatch.setenv("REDIS_PORT_6379_TCP", "tcp://10.0.0.1:6379")
    monkeypatch.setenv("EDITOR", "vi")
    assert Settings.strangers() == [
        "the environment has SERVICE_API_KEY, which is no setting: is it to be SERVICE_API_KEYS?"
    ]


def test_what_is_set_by_its_own_name_is_not_what_another_was_to_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("PUSHER_APP_KEY=key\nVITE_PUSHER_APP_KEY=key\n")
    monkeypatch.setenv("SERVICE_API_KEYS", "a")
    monkeypatch.setenv("SERVICE_API_KEY", "b")
    assert Settings.strangers() == [".env has names that are no settings, and are ignored: VITE_PUSHER_APP_KEY"]


def test_a_node_that_starts_says_so_in_its_log(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("EXPORT_DATABASE_ULR=sqlite:///x.db\nPORT=0\nHOST=203.0.113.1\n")
    started = subprocess.run(  # an address of nobody's: it ends at once
        [sys.executable, "-m", "gateway", "serve", "--dev"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ".env has EXPORT_DATABASE_ULR, which is no setting: is it to be EXPORT_DATABASE_URL?" in started.stderr
