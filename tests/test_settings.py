from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import SECRET

from gateway.access.limits import Rate
from gateway.errors import ConfigurationError
from gateway.presence.model import Retention, Timing
from gateway.settings import Settings

PEM = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA\n-----END PUBLIC KEY-----\n"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of the machine's own, and no .env but the test's."""
    for name, field in Settings.model_fields.items():
        monkeypatch.delenv(str(field.validation_alias or name).upper(), raising=False)
    monkeypatch.chdir(tmp_path)


def load(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return Settings.load()


def refusal(monkeypatch: pytest.MonkeyPatch, **variables: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(monkeypatch, **variables)
    return str(caught.value)


def test_the_defaults_are_the_contract_s(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, JWT_SECRET=SECRET)
    assert settings.model_dump(exclude={"jwt_secret"}, exclude_none=True) == {
        "dev": False,
        "host": "127.0.0.1",
        "port": 3000,
        "redis_prefix": "presence",
        "jwt_algorithms": (),
        "jwt_require_exp": True,
        "jwt_tenant_claim": "tenant",
        "service_api_keys": (),
        "cors_allowed_origins": (),
        "presence_away_after": 90,
        "presence_ttl": 120,
        "presence_offline_grace": 5,
        "presence_audience": "everyone",
        "presence_flush_interval": 0.02,
        "node_lease": 10,
        "trusted_proxies": (),
        "echo_anonymous": False,
        "session_history": 20,
        "session_history_ttl": 2_592_000,
        "visibility_ttl": 60,
        "visibility_cache": 100_000,
        "max_watched_users": 1000,
        "channel_history": 100,
        "channel_history_ttl": 86_400,
        "message_resend_ttl": 3600,
        "message_budget": 16_777_216,
        "service_api_keys_readonly": (),
        "admin_page": True,
        "admin_ui_user": "admin",
        "admin_ui_mode": "production",
        "max_channels_per_connection": 1000,
        "pusher_max_data": 10_240,
        "revocation_ttl": 2_592_000,
        "max_payload": 65536,
        "max_send_buffer": 1_048_576,
        "recovery_window": 120,
        "recovery_buffer": 262_144,
        "recovery_memory": 67_108_864,
        "presence_webhooks": (),
        "webhook_timeout": 10,
        "webhook_concurrency": 8,
        "webhook_retry_for": 900,
        "webhook_queue_size": 50_000,
        "webhook_dead_letters": 10_000,
        "notification_queue_size": 100,
        "notification_queue_bytes": 262_144,
        "notification_ttl": 604_800,
        "rate_limit_events": Rate(100, 1),
        "rate_limit_heartbeat": Rate(60, 60),
        "rate_limit_messages": Rate(10, 1),
        "connect_rate": Rate(300, 1),
        "gateway_engine": "fast",
        "ping_interval": 25,
        "ping_timeout": 20,
        "handshake_timeout": 10,
        "keepalive_timeout": 75,
        "shutdown_timeout": 10,
        "metrics_tenants": 20,
        "tracing": False,
        "drain_rate": Rate(300, 1),
        "drain_delay": 0,
        "log_format": "console",
        "log_level": "info",
    }


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("HOST", "0.0.0.0", "0.0.0.0"),
        ("PORT", "0", 0),
        ("JWT_ALGORITHMS", "HS256, HS512", ("HS256", "HS512")),
        ("JWT_ISSUER", "https://issuer.example", "https://issuer.example"),
        ("JWT_AUDIENCE", "gateway", "gateway"),
        ("JWT_REQUIRE_EXP", "false", False),
        ("JWT_TENANT_CLAIM", "org", "org"),
        (
            "CORS_ALLOWED_ORIGINS",
            "https://a.example, http://b.example:81/",
            ("https://a.example", "http://b.example:81"),
        ),
        ("CORS_ALLOWED_ORIGINS", "*", ("*",)),
        ("PRESENCE_AWAY_AFTER", "0.5", 0.5),
        ("PRESENCE_TTL", "60", 60),
        ("PRESENCE_OFFLINE_GRACE", "0", 0),
        ("PRESENCE_AUDIENCE", "Everyone", "everyone"),
        ("PRESENCE_AUDIENCE", "Watchers", "watchers"),
        ("PRESENCE_FLUSH_INTERVAL", "0", 0),
        ("NODE_LEASE", "1", 1),
        ("LAST_SEEN_TTL", "86400.5", 86_400.5),
        ("SESSION_HISTORY", "0", 0),
        ("SESSION_HISTORY_TTL", "3600", 3600),
        ("MAX_CONNECTIONS_PER_USER", "3", 3),
        ("MAX_CONNECTIONS_PER_TENANT", "1000", 1000),
        ("MAX_PAYLOAD", "1024", 1024),
        ("MAX_SEND_BUFFER", "65536", 65536),
        ("RATE_LIMIT_EVENTS", "10/min", Rate(10, 60)),
        ("RATE_LIMIT_HEARTBEAT", "1000/h", Rate(1000, 3600)),
        ("PING_INTERVAL", "1.5", 1.5),
        ("PING_TIMEOUT", "1.5", 1.5),
        ("HANDSHAKE_TIMEOUT", "1.5", 1.5),
        ("KEEPALIVE_TIMEOUT", "1.5", 1.5),
        ("SHUTDOWN_TIMEOUT", "1.5", 1.5),
        ("LOG_FORMAT", "JSON", "json"),
        ("LOG_LEVEL", "Debug", "debug"),
    ],
)
def test_each_variable_is_read(monkeypatch: pytest.MonkeyPatch, variable: str, text: str, value: Any) -> None:
    settings = load(monkeypatch, JWT_SECRET=SECRET, **{variable: text})
    assert getattr(settings, variable.lower()) == value


BAD = [
    ("PORT", "65536"),
    ("PORT", "-1"),
    ("PORT", "http"),
    ("JWT_ALGORITHMS", "none"),
    ("JWT_ALGORITHMS", "RS256"),
    ("JWT_REQUIRE_EXP", "perhaps"),
    ("CORS_ALLOWED_ORIGINS", "app.example"),
    ("CORS_ALLOWED_ORIGINS", "https://app.example/path"),
    ("PRESENCE_AWAY_AFTER", "0"),
    ("PRESENCE_AWAY_AFTER", "90s"),
    ("PRESENCE_AWAY_AFTER", "inf"),
    ("PRESENCE_TTL", "-1"),
    ("PRESENCE_TTL", "nan"),
    ("PRESENCE_OFFLINE_GRACE", "-0.1"),
    ("PRESENCE_OFFLINE_GRACE", "inf"),
    ("PRESENCE_AUDIENCE", "nobody"),
    ("VISIBILITY_TTL", "0"),
    ("VISIBILITY_CACHE", "0"),
    ("MAX_WATCHED_USERS", "0"),
    ("PRESENCE_FLUSH_INTERVAL", "6"),
    ("NODE_LEASE", "0.5"),
    ("NODE_LEASE", "inf"),
    ("LAST_SEEN_TTL", "0"),
    ("LAST_SEEN_TTL", "inf"),
    ("SESSION_HISTORY", "-1"),
    ("SESSION_HISTORY", "1001"),
    ("SESSION_HISTORY", "many"),
    ("SESSION_HISTORY_TTL", "0.5"),
    ("MAX_CONNECTIONS_PER_USER", "0"),
    ("MAX_CONNECTIONS_PER_TENANT", "0"),
    ("MAX_PAYLOAD", "64k"),
    ("MAX_PAYLOAD", "1023"),
    ("MAX_SEND_BUFFER", "1"),
    ("RATE_LIMIT_EVENTS", "100"),
    ("RATE_LIMIT_HEARTBEAT", "0/min"),
    ("PING_INTERVAL", "0"),
    ("PING_TIMEOUT", "0"),
    ("HANDSHAKE_TIMEOUT", "0"),
    ("KEEPALIVE_TIMEOUT", "0"),
    ("SHUTDOWN_TIMEOUT", "0"),
    ("LOG_FORMAT", "xml"),
    ("LOG_LEVEL", "loud"),
    ("PRESENCE_DEV", "perhaps"),
]


@pytest.mark.parametrize(("variable", "text"), BAD)
def test_a_bad_value_stops_the_start_and_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str
) -> None:
    assert variable in refusal(monkeypatch, JWT_SECRET=SECRET, **{variable: text})


def test_every_wrong_variable_is_named_with_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(monkeypatch, JWT_SECRET=SECRET, PORT="70000", RATE_LIMIT_EVENTS="fast", LOG_FORMAT="xml")
    assert message.splitlines() == [
        "PORT: takes a whole number from 0 to 65535",
        "RATE_LIMIT_EVENTS: a rate reads 100/s, 60/min or 1000/h",
        "LOG_FORMAT: takes console or json",
    ]


# Keys


def test_without_a_key_it_refuses_to_start_and_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(monkeypatch) == (
        "no key to verify tokens with: set JWT_SECRET (openssl rand -hex 32 makes one; or"
        " JWT_PUBLIC_KEY, or JWT_JWKS_URL), or start with --dev (in process: Settings(dev=True)) to try it out"
    )
    assert refusal(monkeypatch, JWT_SECRET="").startswith("no key to verify tokens with: set JWT_SECRET")


def test_development_mode_needs_no_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.load(dev=True).dev
    assert load(monkeypatch, PRESENCE_DEV="true").dev


def test_a_public_key_is_a_pem_or_the_path_of_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert load(monkeypatch, JWT_PUBLIC_KEY=PEM).jwt_public_key == PEM
    path = tmp_path / "key.pem"
    path.write_text(PEM)
    assert load(monkeypatch, JWT_PUBLIC_KEY=str(path)).jwt_public_key == PEM
    missing = refusal(monkeypatch, JWT_PUBLIC_KEY=str(tmp_path / "missing.pem"))
    assert missing == "JWT_PUBLIC_KEY: takes a PEM, or the path of one: No such file or directory"


@pytest.mark.parametrize("algorithms", ["HS256", "RS256,HS256", "none", "rs256"])
@pytest.mark.parametrize("key", [{"JWT_PUBLIC_KEY": PEM}, {"JWT_JWKS_URL": "https://issuer.example/jwks"}])
def test_a_public_key_takes_no_algorithm_of_a_secret(
    monkeypatch: pytest.MonkeyPatch, key: dict[str, str], algorithms: str
) -> None:
    assert refusal(monkeypatch, **key, JWT_ALGORITHMS=algorithms).startswith("JWT_ALGORITHMS takes ES256, ES384,")


def test_a_public_key_takes_the_algorithms_of_its_family(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, JWT_PUBLIC_KEY=PEM, JWT_ALGORITHMS="RS256,ES256,EdDSA")
    assert settings.jwt_algorithms == ("RS256", "ES256", "EdDSA")


def test_of_several_keys_none_is_chosen_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(monkeypatch, JWT_SECRET=SECRET, JWT_PUBLIC_KEY=PEM)
    assert message == "set one of JWT_SECRET, JWT_PUBLIC_KEY, not several"


# Secrets


def test_secrets_are_in_no_text_of_the_settings_and_of_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, JWT_SECRET="hush-jwt", SERVICE_API_KEYS="hush-one,hush-two")
    assert [key.get_secret_value() for key in settings.service_api_keys] == ["hush-one", "hush-two"]
    for text in (repr(settings), str(settings), str(settings.model_dump())):
        assert "hush" not in text
    message = refusal(
        monkeypatch, PORT="x", PUSHER_APP_SECRET="hush", PRESENCE_WEBHOOK_SECRET="hush", REDIS_URL="redis://:hush@h:x"
    )
    assert "hush" not in message


# Redis


@pytest.mark.parametrize(
    ("variables", "url"),
    [
        ({}, None),
        ({"REDIS_URL": "redis://one:6379/0"}, "redis://one:6379/0"),
        ({"REDIS_HOST": "one"}, "redis://one:6379/0"),
        ({"REDIS_HOST": "one", "REDIS_PORT": "7000"}, "redis://one:7000/0"),
        ({"REDIS_HOST": "::1"}, "redis://[::1]:6379/0"),
        ({"REDIS_PORT": "7000"}, "redis://127.0.0.1:7000/0"),
        ({"REDIS_URL": "redis://one", "REDIS_HOST": "two"}, "redis://one"),
        # What Kubernetes sets in every container beside a service called redis.
        ({"REDIS_PORT": "tcp://10.0.0.1:6379"}, None),
        ({"REDIS_HOST": "one", "REDIS_PORT": "tcp://10.0.0.1:7000"}, "redis://one:7000/0"),
    ],
)
def test_where_redis_is(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], url: str | None) -> None:
    assert load(monkeypatch, JWT_SECRET=SECRET, **variables).redis == url


@pytest.mark.parametrize(
    ("variable", "text", "says"),
    [
        ("REDIS_URL", "http://one", "takes redis://"),
        ("REDIS_URL", "redis+sentinel://one:1/0", "service"),
        ("REDIS_HOST", "one:6379", "without a port"),
        ("REDIS_HOST", "one/0", "without a port"),
        ("REDIS_PORT", "many", "takes a port, 1 to 65535"),
        ("REDIS_PORT", "0", "takes a port, 1 to 65535"),
        ("REDIS_PREFIX", "{tag}", "takes 1 to 64"),
        ("REDIS_PREFIX", "x" * 65, "takes 1 to 64"),
    ],
)
def test_a_wrong_redis_stops_the_start(monkeypatch: pytest.MonkeyPatch, variable: str, text: str, says: str) -> None:
    message = refusal(monkeypatch, JWT_SECRET=SECRET, **{variable: text})
    assert message.startswith(f"{variable}: ")
    assert says in message


# Webhooks

HOOK = "https://app.example/hook"
TWIN = '{"name": "a", "url": "http://x", "secret": "hush"}'


def test_no_webhook_is_configured_unless_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(monkeypatch, JWT_SECRET=SECRET).webhook_endpoints() == ()


def test_webhooks_go_to_one_endpoint_or_to_several(monkeypatch: pytest.MonkeyPatch) -> None:
    further = '[{"name": "crm", "url": "http://crm:8000/", "secret": "whsec_aGk=", "events": ["user.offline"]}]'
    settings = load(
        monkeypatch,
        JWT_SECRET=SECRET,
        PRESENCE_WEBHOOK_URL=HOOK,
        PRESENCE_WEBHOOK_SECRET="one two",
        PRESENCE_WEBHOOKS=further,
    )
    first, second = settings.webhook_endpoints()
    assert (first.name, first.url, first.keys, len(first.types)) == ("default", HOOK, (b"one", b"two"), 7)
    assert (second.name, second.url, second.keys) == ("crm", "http://crm:8000/", (b"hi",))
    assert second.types == {"user.offline"}


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"PRESENCE_WEBHOOK_URL": HOOK}, "PRESENCE_WEBHOOK_URL is set without PRESENCE_WEBHOOK_SECRET"),
        ({"PRESENCE_WEBHOOK_SECRET": "hush"}, "PRESENCE_WEBHOOK_SECRET is set without PRESENCE_WEBHOOK_URL"),
        ({"PRESENCE_WEBHOOK_URL": "ftp://x", "PRESENCE_WEBHOOK_SECRET": "hush"}, "PRESENCE_WEBHOOK_URL: takes"),
        ({"PRESENCE_WEBHOOK_URL": "http://", "PRESENCE_WEBHOOK_SECRET": "hush"}, "PRESENCE_WEBHOOK_URL: takes"),
        ({"PRESENCE_WEBHOOK_URL": "http://x:y", "PRESENCE_WEBHOOK_SECRET": "hush"}, "PRESENCE_WEBHOOK_URL: takes"),
        ({"PRESENCE_WEBHOOK_URL": HOOK, "PRESENCE_WEBHOOK_SECRET": "whsec_hush!"}, "PRESENCE_WEBHOOK_SECRET: takes"),
        ({"PRESENCE_WEBHOOKS": "hush"}, "PRESENCE_WEBHOOKS: takes a JSON array"),
        ({"PRESENCE_WEBHOOKS": '{"name": "hush"}'}, "PRESENCE_WEBHOOKS: takes a JSON array"),
        (
            {"PRESENCE_WEBHOOKS": '[{"name": "a", "url": "http://x"}]'},
            "PRESENCE_WEBHOOKS: number 1: takes a secret, or",
        ),
        (
            {"PRESENCE_WEBHOOKS": '[{"name": "a", "url": "http://x", "secret": "hush", "format": "pusher"}]'},
            "PRESENCE_WEBHOOKS: number 1: takes a secret, or the format pusher",
        ),
        (
            {"PRESENCE_WEBHOOKS": '[{"name": "a", "url": "http://x", "format": "other"}]'},
            "PRESENCE_WEBHOOKS: format of number 1: ",
        ),
        (
            {"PRESENCE_WEBHOOKS": '[{"name": "a", "url": "http://x", "format": "pusher", "events": ["user.*"]}]'},
            "of the format pusher there are the events channel.occupied, ",
        ),
        (
            {"PRESENCE_WEBHOOKS": '[{"name": "a", "url": "http://x", "format": "pusher"}]'},
            "PRESENCE_WEBHOOKS has a in the format pusher: set PUSHER_APP_SECRET",
        ),
        (
            {"PRESENCE_WEBHOOKS": '[{"name": "a", "url": "hush", "secret": "hush"}]'},
            "PRESENCE_WEBHOOKS: url of number 1: takes an address",
        ),
        (
            {"PRESENCE_WEBHOOKS": '[{"name": "a", "url": "http://x", "secret": "hush", "events": ["room.*"]}]'},
            "events of number 1: events takes user.online, ",
        ),
        (
            {"PRESENCE_WEBHOOKS": '[{"name": "a", "url": "http://x", "secret": "hush", "events": []}]'},
            "events of number 1: events takes user.online, ",
        ),
        (
            {"PRESENCE_WEBHOOKS": f"[{', '.join(2 * [TWIN])}]"},
            "PRESENCE_WEBHOOKS has the name a twice",
        ),
        ({"WEBHOOK_RETRY_FOR": "299"}, "WEBHOOK_RETRY_FOR: "),
    ],
)
def test_a_wrong_webhook_stops_the_start_and_tells_no_secret(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], says: str
) -> None:
    message = refusal(monkeypatch, JWT_SECRET=SECRET, **variables)
    assert says in message
    assert "hush" not in message


# Channels


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"CHANNEL_AUTH_URL": "/broadcasting/auth"}, "CHANNEL_AUTH_URL: takes an address such as https://app.example/"),
        ({"CHANNEL_AUTH_URL": "ftp://app.example"}, "CHANNEL_AUTH_URL: takes an address"),
        ({"CHANNEL_AUTH_URL": "https://me:hush@app.example/"}, "CHANNEL_AUTH_URL: takes no user and password"),
        ({"PUSHER_APP_ID": "1"}, "PUSHER_APP_KEY and PUSHER_APP_SECRET is not set"),
        ({"PUSHER_APP_KEY": "key", "PUSHER_APP_SECRET": "hush"}, "PUSHER_APP_ID is not set"),
        ({"PUSHER_APP_ID": "a/b", "PUSHER_APP_KEY": "key", "PUSHER_APP_SECRET": "hush"}, "PUSHER_APP_ID: "),
        ({"PUSHER_APP_ID": "1", "PUSHER_APP_KEY": "a:b", "PUSHER_APP_SECRET": "hush"}, "PUSHER_APP_KEY: "),
        ({"PUSHER_MAX_DATA": "0"}, "PUSHER_MAX_DATA: "),
        (
            {"PUSHER_ENCRYPTION_MASTER_KEY_BASE64": "hush"},
            "PUSHER_ENCRYPTION_MASTER_KEY_BASE64: takes 32 bytes in base64: openssl rand -base64 32 makes them",
        ),
        ({"PUSHER_ENCRYPTION_MASTER_KEY_BASE64": "hush!"}, "PUSHER_ENCRYPTION_MASTER_KEY_BASE64: takes 32 bytes"),
        (
            {"PUSHER_ENCRYPTION_MASTER_KEY_BASE64": "aHVzaA=="},
            "PUSHER_ENCRYPTION_MASTER_KEY_BASE64: takes 32 bytes",
        ),
        (
            {"PUSHER_ENCRYPTION_MASTER_KEY_BASE64": f"{43 * 'A'}="},
            "PUSHER_ENCRYPTION_MASTER_KEY_BASE64 is set without a Pusher application",
        ),
    ],
)
def test_what_channels_and_a_pusher_application_take(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], says: str
) -> None:
    message = refusal(monkeypatch, JWT_SECRET=SECRET, **variables)
    assert says in message
    assert "hush" not in message


# Where values come from


def test_arguments_come_before_the_environment_and_that_before_the_env_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text(f"JWT_SECRET={SECRET}\nPORT=1001\nHOST=file\nLOG_LEVEL=error\nUNKNOWN=1\n")
    monkeypatch.setenv("PORT", "1002")
    monkeypatch.setenv("HOST", "environment")
    settings = Settings.load(host="argument")
    assert (settings.host, settings.port, settings.log_level) == ("argument", 1002, "error")


def test_a_variable_set_to_nothing_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, JWT_SECRET=SECRET, PORT="", REDIS_URL="", MAX_CONNECTIONS_PER_USER="")
    assert (settings.port, settings.redis_url, settings.max_connections_per_user) == (3000, None, None)


def test_durations_are_milliseconds_to_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(
        monkeypatch,
        JWT_SECRET=SECRET,
        PRESENCE_AWAY_AFTER="0.0015",
        PRESENCE_TTL="1.2",
        PRESENCE_OFFLINE_GRACE="0.3",
        NODE_LEASE="2",
    )
    assert settings.timing().retention == Retention(sessions=20, sessions_ttl=2_592_000_000, last_seen_ttl=None)
    kept = load(monkeypatch, JWT_SECRET=SECRET, LAST_SEEN_TTL="1.5", SESSION_HISTORY="3", SESSION_HISTORY_TTL="2.5")
    assert kept.timing().retention == Retention(sessions=3, sessions_ttl=2_500, last_seen_ttl=1_500)
    assert settings.timing() == Timing(away_after=2, ttl=1_200, grace=300, drain_grace=30_000, lease=2_000)


@pytest.mark.parametrize(
    "url", ["postgresql://u:secret@db/presence", "postgres://u:secret@db:5433/presence", "sqlite:///presence.db"]
)
def test_a_database_to_export_to(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    settings = load(monkeypatch, JWT_SECRET=SECRET, EXPORT_DATABASE_URL=url)
    assert settings.export_database_url is not None
    assert settings.export_database_url.get_secret_value() == url
    assert "secret@" not in repr(settings)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("mysql://u:hunter2@db/presence", "takes postgresql://"),
        ("postgresql+asyncpg://u:hunter2@db/presence", "takes postgresql://"),
        ("hunter2", "takes postgresql://"),
        ("postgresql://u:hunter2@db:99999/presence", "a port is a number"),
        ("postgresql://u:hunter2@db:x/presence", "a port is a number"),
        ("postgresql://u:hunter2@[::1/presence", "takes postgresql://"),
        ("sqlite://", "three slashes"),
        ("sqlite:///:memory:", "three slashes"),
        ("sqlite://presence.db", "three slashes"),
        ("sqlite:////no/such/hunter2/presence.db", "folder of the SQLite file does not exist"),
    ],
)
def test_a_database_that_cannot_be_exported_to(monkeypatch: pytest.MonkeyPatch, url: str, why: str) -> None:
    message = refusal(monkeypatch, JWT_SECRET=SECRET, EXPORT_DATABASE_URL=url)
    assert message.startswith("EXPORT_DATABASE_URL: ")
    assert why in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("module", "name", "url"),
    [
        ("sqlalchemy", "SQLAlchemy", "sqlite:///presence.db"),
        ("sqlalchemy", "SQLAlchemy", "postgresql://db/presence"),
        ("psycopg", "psycopg", "postgresql://db/presence"),
    ],
)
def test_what_an_export_needs_is_said_where_it_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, module: str, name: str, url: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    message = refusal(monkeypatch, JWT_SECRET=SECRET, EXPORT_DATABASE_URL=url)
    assert message == (
        f"EXPORT_DATABASE_URL: needs {name}, which is not installed: pip install 'presence-gateway[sql]'"
    )
