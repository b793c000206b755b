"""The environment, checked at start: every variable of the contract's section 1, its default and what it takes."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, PlainValidator, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, DotEnvSettingsSource, NoDecode, SettingsConfigDict

from gateway.access.addresses import Addresses
from gateway.access.limits import Rate
from gateway.channels.log import Kept
from gateway.delivery.queue import Limits
from gateway.errors import ConfigurationError
from gateway.export.address import check_url as check_database_url
from gateway.presence.model import Retention, Timing
from gateway.pusher.signature import Signer, master_key_of
from gateway.redis.connection import check_url
from gateway.settings_words import strangers, worded
from gateway.webhooks.courier import Policy
from gateway.webhooks.endpoint import DEFAULT, Endpoint, keys_of, types_of
from gateway.webhooks.outbox import Bounds
from gateway.webhooks.pusher import NAMES
from gateway.wire import UNPRINTABLE

HMAC_ALGORITHMS = frozenset({"HS256", "HS384", "HS512"})
KEY_ALGORITHMS = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"})

_KUBERNETES = "tcp://"
"""What Kubernetes has ``REDIS_PORT`` begin with, in every container beside a service that is called redis."""

_RateSetting = Annotated[Rate, PlainValidator(lambda value: value if isinstance(value, Rate) else Rate.parse(value))]
_Commas = Annotated[tuple[str, ...], NoDecode]


class WebhookEndpoint(BaseModel):
    """One of ``PRESENCE_WEBHOOKS``."""

    model_config = {"extra": "forbid", "frozen": True, "hide_input_in_errors": True}

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    """What its queue and its dead letters are kept under: it outlives a change of the URL."""
    url: SecretStr
    """``http://`` or ``https://``; secret, since some have a key in them."""
    secret: SecretStr | None = None
    """What signs; None for one of Pusher's form, which ``PUSHER_APP_SECRET`` signs."""
    format: Literal["standard", "pusher"] = "standard"
    """``pusher`` is sent what channels tell, as Pusher has it."""
    events: tuple[str, ...] = ("*",)
    """The types it wants."""

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: SecretStr) -> SecretStr:
        _check_webhook_url(value.get_secret_value())
        return value

    @field_validator("secret")
    @classmethod
    def _check_secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            keys_of(value.get_secret_value())
        return value

    @field_validator("events")
    @classmethod
    def _check_events(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        types_of(value or [""])
        return value

    @model_validator(mode="after")
    def _check_format(self) -> Self:
        if (self.secret is None) != (self.format == "pusher"):
            raise ValueError("takes a secret, or the format pusher, which PUSHER_APP_SECRET signs")
        if self.format == "pusher" and not types_of(self.events) & NAMES.keys():
            raise ValueError(f"of the format pusher there are the events {', '.join(NAMES)}")
        return self

    def endpoint(self, signer: Signer | None) -> Endpoint:
        """What it is to a sender.

        Args:
            signer: what knows the Pusher application's secret, for one of that format.
        """
        types, url = types_of(self.events), self.url.get_secret_value()
        if self.secret is None:
            return Endpoint(self.name, url, (), types & NAMES.keys(), signer)
        return Endpoint(self.name, url, keys_of(self.secret.get_secret_value()), types)


class Settings(BaseSettings):
    """Every setting, from the arguments, then the environment, then a ``.env`` file, then the default.

    A field's name in capitals is its variable. Durations are seconds, sizes bytes.

    Raises:
        pydantic.ValidationError: a value is not what its variable takes; `load` words it for a person.
    """

    model_config = SettingsConfigDict(
        env_file=".env",
        env_ignore_empty=True,
        allow_inf_nan=False,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        populate_by_name=True,
    )

    dev: bool = Field(default=False, validation_alias="PRESENCE_DEV")
    """Development mode: a random secret where none is set, and ``GET /dev/token`` from loopback."""
    host: str = "127.0.0.1"
    port: int = Field(default=3000, ge=0, le=65535)
    """0 takes a free port, and says which."""

    redis_url: SecretStr | None = None
    """Where many nodes meet; None keeps presence in this process, for one."""
    redis_host: str | None = None
    """With `redis_port`, understood where `redis_url` is unset."""
    redis_port: str | None = None
    redis_prefix: str = "presence"
    """What the keys in Redis begin with: gateways of one prefix are one gateway."""
    export_database_url: SecretStr | None = None
    """Where presence is exported to, for questions about the past; None exports nothing."""

    jwt_secret: SecretStr | None = None
    jwt_public_key: str | None = None
    """A PEM, or the path of one."""
    jwt_jwks_url: str | None = None
    jwt_algorithms: _Commas = ()
    """Empty chooses by the key: HS256 for a secret, RS256, ES256 and EdDSA for a public key."""
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    jwt_require_exp: bool = True
    jwt_tenant_claim: str = "tenant"
    revocation_ttl: float = Field(default=2_592_000, gt=0)
    """How long a revoked token is remembered where its expiry is not given: as long as tokens live at the most."""
    service_api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    service_api_keys_readonly: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """Keys that read over HTTP what the others do, and change nothing."""
    admin_page: bool = True
    """Whether the operators' page is at ``/admin``; not where the application has another page there."""
    admin_ui_password: SecretStr | None = None
    """What lets Socket.IO's Admin UI in, by the namespace ``/admin``; None lets nobody in."""
    admin_ui_user: str = "admin"
    admin_ui_origin: str | None = None
    """Where the Admin UI's page comes from, such as ``https://admin.socket.io``; None for this gateway's own origin and
    those of `cors_allowed_origins`."""
    admin_ui_mode: Literal["production", "development"] = "production"
    """What the Admin UI shows: how the servers are, or also each client of Socket.IO and its rooms, which it may then
    disconnect."""
    gateway_url: str | None = None
    """Which gateway the commands for operators ask, who look at it: it stops no start. None for the one on this machine
    that `host` and `port` name."""
    gateway_api_key: SecretStr | None = None
    """The service key that they ask it with; None for the first of `service_api_keys`, or of those that read."""
    cors_allowed_origins: _Commas = ()
    """Origins such as ``https://app.example``; empty allows the same origin only, ``*`` any."""

    presence_away_after: float = Field(default=90, gt=0)
    presence_ttl: float = Field(default=120, gt=0)
    presence_offline_grace: float = Field(default=5, ge=0)
    presence_audience: Literal["everyone", "watchers"] = "everyone"
    """Whom a connection hears of that never watched anybody: everyone of its tenant, or nobody."""
    presence_flush_interval: float = Field(default=0.02, ge=0, le=1)
    node_lease: float = Field(default=10, ge=1)
    last_seen_ttl: float | None = Field(default=None, ge=1)
    """How long it is known when a user who is offline was last active; None for ever."""
    session_history: int = Field(default=20, ge=0, le=1000)
    """How many of each user's sessions are kept; 0 keeps none."""
    session_history_ttl: float = Field(default=2_592_000, ge=1)
    """How long one is kept after its end."""

    presence_webhook_url: SecretStr | None = None
    """Where every event is sent; None sends none, unless `presence_webhooks` does."""
    presence_webhook_secret: SecretStr | None = None
    """What it is signed with: ``whsec_`` and base64, or any text; several are separated by spaces."""
    presence_webhooks: Annotated[tuple[WebhookEndpoint, ...], NoDecode] = ()
    """Further endpoints, as a JSON array: ``[{"name", "url", "secret", "events"?}]``."""
    webhook_timeout: float = Field(default=10, gt=0, le=60)
    """How long an endpoint may take to answer."""
    webhook_concurrency: int = Field(default=8, ge=1, le=100)
    """How many requests one endpoint gets at once."""
    webhook_retry_for: float = Field(default=900, ge=300)
    """How long an event is sent again from its first attempt on, before it is a dead letter."""
    webhook_queue_size: int = Field(default=50_000, ge=1)
    """How many events wait for one endpoint; past it the oldest become dead letters."""
    webhook_dead_letters: int = Field(default=10_000, ge=0)
    """How many dead letters of one endpoint are kept; past it the oldest go."""
    channel_auth_url: str | None = None
    """What is asked, as Laravel's ``/broadcasting/auth`` is, who may be in a channel; None leaves it to what is built
    in."""
    channel_history: int = Field(default=100, ge=0, le=10_000)
    """How many events of each channel are kept; 0 keeps none."""
    channel_history_ttl: float = Field(default=86_400, ge=1)
    """How long one is kept."""
    message_resend_ttl: float = Field(default=3600, ge=1)
    """How long a message is known by its ``clientId``."""
    message_budget: int = Field(default=16_777_216, ge=1_048_576)
    """Bytes, about, of a user's messages that may be kept at once; as many again come to it in a history's time."""
    max_channels_per_connection: int = Field(default=1000, ge=1)
    """How many channels one connection may be in."""
    pusher_app_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | None = None
    """Set with the key and the secret, it is the Pusher application that this gateway is."""
    pusher_app_key: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,128}$")] | None = None
    pusher_app_secret: SecretStr | None = None
    pusher_encryption_master_key_base64: SecretStr | None = None
    """What makes the secrets of its encrypted channels, the same that its backend has; None where only that has it."""
    pusher_max_data: int = Field(default=10_240, ge=1024)
    """Bytes of the data of one event over Pusher's HTTP API."""

    echo_anonymous: bool = False
    """Whether a page that uses Laravel Echo may be in public channels without saying whose it is."""

    visibility_ttl: float = Field(default=60, gt=0)
    """How long an answer of the application's visibility rule is good for."""
    visibility_cache: int = Field(default=100_000, ge=1)
    """How many such answers are kept, each of one pair of users."""

    max_connections_per_user: int | None = Field(default=None, ge=1)
    max_connections_per_tenant: int | None = Field(default=None, ge=1)
    max_connections_per_address: int | None = Field(default=None, ge=1)
    trusted_proxies: _Commas = ()
    """Addresses and networks whose ``X-Forwarded-For`` says where a client comes from; ``unix`` for a local socket."""
    max_watched_users: int = Field(default=1000, ge=1)
    """How many users one connection may watch."""
    max_watched_users_per_user: int | None = Field(default=None, ge=1)
    max_watched_users_per_address: int | None = Field(default=None, ge=1)
    max_watched_users_per_tenant: int | None = Field(default=None, ge=1)
    max_payload: int = Field(default=65536, ge=1024)
    max_send_buffer: int = Field(default=1_048_576, ge=65536)
    """Bytes that wait for a client that does not read; past it the connection is closed with 4008."""
    recovery_window: float = Field(default=120, ge=0, le=3600)
    """How long a client that lost its connection may be away and go on where it was; 0 switches it off."""
    recovery_buffer: int = Field(default=262_144, ge=1024)
    """Bytes that it may have missed; past it, it starts from a snapshot."""
    recovery_memory: int = Field(default=67_108_864, ge=65536)
    """Bytes that are kept for all of them; past it, those that are away the longest start from a snapshot."""
    notification_queue_size: int = Field(default=100, ge=1, le=1000)
    """How many notifications wait for one user who is not there; past it the oldest go."""
    notification_queue_bytes: int = Field(default=262_144, ge=1024)
    """Bytes of these."""
    notification_ttl: float = Field(default=604_800, gt=0)
    """How long one waits."""
    rate_limit_events: _RateSetting = Rate(100, 1.0)
    rate_limit_events_per_user: _RateSetting | None = None
    """Of all of a user's connections to this node, and requests over HTTP; likewise the next two."""
    rate_limit_events_per_address: _RateSetting | None = None
    rate_limit_events_per_tenant: _RateSetting | None = None
    rate_limit_heartbeat: _RateSetting = Rate(60, 60.0)
    rate_limit_messages: _RateSetting = Rate(10, 1.0)
    """Messages that a user sends by this node, over any door; of ``typing`` as many again."""
    connect_rate: _RateSetting = Rate(300, 1.0)
    """How many connections this node lets in; past a burst of the count they wait, or are asked to come back."""

    gateway_engine: Literal["fast", "stock"] = "fast"
    """What serves WebSockets: ``fast`` is picows, ``stock`` aiohttp and python-socketio as they come. Where picows is
    not installed it is the stock one, unless the other was asked for."""

    ping_interval: float = Field(default=25, gt=0)
    ping_timeout: float = Field(default=20, gt=0)
    handshake_timeout: float = Field(default=10, gt=0)
    """How long a connection may take from its first byte to being a user's."""
    keepalive_timeout: float = Field(default=75, gt=0)
    """How long an HTTP connection may stay without a whole request; longer than a proxy in front keeps it."""
    shutdown_timeout: float = Field(default=10, gt=0)
    """How long clients have to leave after SIGTERM before they are cut off."""
    drain_rate: _RateSetting = Rate(300, 1.0)
    """How many clients are sent to other nodes after SIGTERM; faster where that takes half of `shutdown_timeout`."""
    drain_delay: float = Field(default=0, ge=0, le=300)
    """How long, after SIGTERM, clients are still let in while ``/health/ready`` says 503: until balancers have seen it.
    It comes before `shutdown_timeout`."""

    tracing: bool = False
    """Whether commands are traced by OpenTelemetry, which the ``OTEL_…`` of its SDK configure."""
    metrics_tenants: int = Field(default=20, ge=0, le=1000)
    """Of how many tenants ``/metrics`` says how many users are online: the largest."""
    log_format: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator(
        "jwt_algorithms",
        "service_api_keys",
        "service_api_keys_readonly",
        "cors_allowed_origins",
        "trusted_proxies",
        mode="before",
    )
    @classmethod
    def _split_at_commas(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("gateway_engine", "log_format", "log_level", "presence_audience", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("jwt_public_key")
    @classmethod
    def _read_key(cls, value: str | None) -> str | None:
        if value is None or value.lstrip().startswith("-----BEGIN"):
            return value
        try:
            return Path(value).read_text()
        except OSError as error:
            raise ValueError(f"takes a PEM, or the path of one: {error.strerror}") from error

    @field_validator("cors_allowed_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin not in {"*", "null"} and not _is_origin(origin):
                raise ValueError(f"takes origins such as https://app.example, or *; not {origin!r}")
        return tuple(origin.rstrip("/") for origin in value)

    @field_validator("admin_ui_origin")
    @classmethod
    def _check_admin_origin(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not _is_origin(value):
            raise ValueError(f"takes an origin such as https://admin.socket.io; not {value!r}")
        return value.rstrip("/")

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            Addresses(value)
        except ValueError as error:
            raise ValueError(f"takes addresses, networks such as 10.0.0.0/8, and unix: {error}") from error
        return value

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            check_url(value.get_secret_value())
        return value

    @field_validator("presence_webhooks", mode="before")
    @classmethod
    def _parse_webhooks(cls, value: Any) -> Any:
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                value = None
        if not isinstance(value, (list, tuple)):
            raise ValueError('takes a JSON array such as [{"name": "crm", "url": "https://…", "secret": "whsec_…"}]')  # noqa: TRY004 - pydantic words it
        return tuple(value)

    @field_validator("channel_auth_url")
    @classmethod
    def _check_channel_auth_url(cls, value: str | None) -> str | None:
        if value is not None:
            _check_webhook_url(value, "https://app.example/broadcasting/auth")
            if "@" in urlsplit(value).netloc:
                raise ValueError("takes no user and password: whoever asks is shown by their own Authorization header")
        return value

    @field_validator("pusher_encryption_master_key_base64")
    @classmethod
    def _check_master_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            master_key_of(value.get_secret_value())
        return value

    @field_validator("presence_webhook_url")
    @classmethod
    def _check_webhook_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            _check_webhook_url(value.get_secret_value())
        return value

    @field_validator("presence_webhook_secret")
    @classmethod
    def _check_webhook_secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            keys_of(value.get_secret_value())
        return value

    @field_validator("export_database_url")
    @classmethod
    def _check_export_database_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            check_database_url(value.get_secret_value())
        return value

    @field_validator("redis_host")
    @classmethod
    def _check_redis_host(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:]*:[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*", value):
            raise ValueError("takes a name or an address, without a port: that is REDIS_PORT")
        return value

    @field_validator("redis_port")
    @classmethod
    def _check_redis_port(cls, value: str | None) -> str | None:
        port = None if value is None else value.removeprefix(_KUBERNETES).rpartition(":")[2]
        if port is not None and not (port.isascii() and port.isdigit() and 0 < int(port) <= 65535):  # noqa: PLR2004
            raise ValueError("takes a port, 1 to 65535")
        return value

    @field_validator("redis_prefix")
    @classmethod
    def _check_redis_prefix(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,64}", value):
            raise ValueError("takes 1 to 64 letters, digits, and _ . : -")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        self._check_keys()
        self._check_pusher()
        self._check_webhooks()
        return self

    def _check_pusher(self) -> None:
        names = ("pusher_app_id", "pusher_app_key", "pusher_app_secret")
        missing = [name.upper() for name in names if getattr(self, name) is None]
        if 0 < len(missing) < len(names):
            raise ValueError(f"{' and '.join(missing)} is not set: a Pusher application has an id, a key and a secret")
        if self.pusher_app_secret is not None and not self.pusher_app_secret.get_secret_value():
            raise ValueError("PUSHER_APP_SECRET is empty: openssl rand -hex 32 makes one")
        if self.pusher_encryption_master_key_base64 is not None and missing:
            raise ValueError(
                "PUSHER_ENCRYPTION_MASTER_KEY_BASE64 is set without a Pusher application: set PUSHER_APP_ID,"
                " PUSHER_APP_KEY and PUSHER_APP_SECRET, too"
            )

    def _check_webhooks(self) -> None:
        if self.presence_webhook_url is None and self.presence_webhook_secret is not None:
            raise ValueError("PRESENCE_WEBHOOK_SECRET is set without PRESENCE_WEBHOOK_URL: set both, or none")
        if self.presence_webhook_url is not None and self.presence_webhook_secret is None:
            raise ValueError(
                "PRESENCE_WEBHOOK_URL is set without PRESENCE_WEBHOOK_SECRET, by which its receiver knows who sends:"
                ' echo "whsec_$(openssl rand -base64 32)" makes one'
            )
        pushers = [endpoint.name for endpoint in self.presence_webhooks if endpoint.format == "pusher"]
        if pushers and self.pusher_app_secret is None:
            raise ValueError(
                f"PRESENCE_WEBHOOKS has {pushers[0]} in the format pusher: set PUSHER_APP_SECRET to sign it"
            )
        names = [endpoint.name for endpoint in self.webhook_endpoints()]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            why = f"{DEFAULT} is that of PRESENCE_WEBHOOK_URL" if DEFAULT in twice else "each is another queue"
            raise ValueError(f"PRESENCE_WEBHOOKS has the name {', '.join(twice)} twice; {why}")

    def _check_keys(self) -> None:
        if set(self.service_api_keys) & set(self.service_api_keys_readonly):
            raise ValueError(
                "SERVICE_API_KEYS_READONLY has a key of SERVICE_API_KEYS: one that reads may not write, too"
            )
        keys = [name for name in ("jwt_secret", "jwt_public_key", "jwt_jwks_url") if getattr(self, name)]
        if not keys and not self.dev:
            raise ValueError(
                "no key to verify tokens with: set JWT_SECRET (openssl rand -hex 32 makes one; or JWT_PUBLIC_KEY, or"
                " JWT_JWKS_URL), or start with --dev (in process: Settings(dev=True)) to try it out"
            )
        if len(keys) > 1:
            raise ValueError(f"set one of {', '.join(name.upper() for name in keys)}, not several")
        family = HMAC_ALGORITHMS if keys in ([], ["jwt_secret"]) else KEY_ALGORITHMS
        strangers = [name for name in self.jwt_algorithms if name not in family]
        if strangers:
            raise ValueError(
                f"JWT_ALGORITHMS takes {', '.join(sorted(family))} with this key; not {', '.join(strangers)}"
            )

    @property
    def redis(self) -> str | None:
        """The URL of Redis, however it was given; None where there is none."""
        if self.redis_url is not None:
            return self.redis_url.get_secret_value()
        port = self.redis_port or "6379"
        if self.redis_host is None and (self.redis_port is None or port.startswith(_KUBERNETES)):
            return None
        host = self.redis_host or "127.0.0.1"
        return f"redis://{f'[{host}]' if ':' in host else host}:{port.rpartition(':')[2]}/0"

    def timing(self) -> Timing:
        """The durations of presence, in milliseconds."""
        return Timing(
            away_after=round(self.presence_away_after * 1000),
            ttl=round(self.presence_ttl * 1000),
            grace=round(self.presence_offline_grace * 1000),
            lease=round(self.node_lease * 1000),
            retention=Retention(
                sessions=self.session_history,
                sessions_ttl=round(self.session_history_ttl * 1000),
                last_seen_ttl=None if self.last_seen_ttl is None else round(self.last_seen_ttl * 1000),
            ),
        )

    def channel_kept(self) -> Kept:
        """How much is kept of what is said in channels."""
        return Kept(
            events=self.channel_history,
            ttl=round(self.channel_history_ttl * 1000),
            again=round(self.message_resend_ttl * 1000),
            budget=self.message_budget,
        )

    def webhook_endpoints(self) -> tuple[Endpoint, ...]:
        """Where webhooks are sent; none where none are."""
        signer = self.pusher_signer()
        endpoints = tuple(endpoint.endpoint(signer) for endpoint in self.presence_webhooks)
        url, secret = self.presence_webhook_url, self.presence_webhook_secret
        if url is None or secret is None:
            return endpoints
        return (Endpoint(DEFAULT, url.get_secret_value(), keys_of(secret.get_secret_value())), *endpoints)

    def pusher_signer(self) -> Signer | None:
        """What signs for the Pusher application that this gateway is; None where it is none."""
        if self.pusher_app_key is None or self.pusher_app_secret is None:
            return None
        given = self.pusher_encryption_master_key_base64
        master_key = None if given is None else master_key_of(given.get_secret_value())
        return Signer(self.pusher_app_key, self.pusher_app_secret.get_secret_value(), master_key)

    def webhook_policy(self) -> Policy:
        """How they are sent."""
        return Policy(
            timeout=self.webhook_timeout, retry_for=self.webhook_retry_for, concurrency=self.webhook_concurrency
        )

    def webhook_bounds(self) -> Bounds:
        """How much of them is kept."""
        return Bounds(queue=self.webhook_queue_size, dead=self.webhook_dead_letters)

    def queue_limits(self) -> Limits:
        """How much waits for a user."""
        # What a client is sent at once must not make it count as too slow; it may also be told what it missed.
        most = min(self.notification_queue_bytes, self.max_send_buffer // 4)
        return Limits(
            size=self.notification_queue_size,
            bytes=most,
            ttl=round(self.notification_ttl * 1000),
            largest=min(self.max_payload, most),
        )

    @classmethod
    def load(cls, **values: Any) -> Settings:
        """As the constructor, with errors worded for the person who set the variables.

        Raises:
            ConfigurationError: each wrong variable, by name, with what it takes.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            problems = [worded(problem, cls.model_fields) for problem in error.errors()]
            raise ConfigurationError("\n".join([*problems, *cls.strangers()])) from None

    @classmethod
    def strangers(cls) -> list[str]:
        """What ``.env`` and the environment set that is no setting, a sentence each: see `settings_words.strangers`."""
        known = {str(field.validation_alias or name).upper() for name, field in cls.model_fields.items()}
        return strangers(known, DotEnvSettingsSource(cls).env_vars, os.environ)


def _is_origin(text: str) -> bool:
    return "://" in text and text.rstrip("/").count("/") == 2  # noqa: PLR2004


def _check_webhook_url(url: str, example: str = "https://app.example/hooks/presence") -> None:
    try:
        parts = urlsplit(url)
        known = parts.scheme in {"http", "https"} and parts.hostname and (parts.port is None or parts.port)
    except ValueError:
        known = False
    if not known or UNPRINTABLE.search(url) or " " in url:
        raise ValueError(f"takes an address such as {example}")
