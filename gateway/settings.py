"""The environment, checked at start: every variable of the contract's section 1, its default and what it takes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PlainValidator, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gateway.errors import ConfigurationError
from gateway.limits import Rate
from gateway.presence.model import Timing
from gateway.redis.connection import check_url

HMAC_ALGORITHMS = frozenset({"HS256", "HS384", "HS512"})
KEY_ALGORITHMS = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"})

_NOT_YET = {
    "presence_webhook_url": "webhooks are not in this version",
    "presence_webhook_secret": "webhooks are not in this version",
    "channel_auth_url": "channels are not in this version",
    "pusher_app_id": "the Pusher protocol is not in this version",
    "pusher_app_key": "the Pusher protocol is not in this version",
    "pusher_app_secret": "the Pusher protocol is not in this version",
}
"""Variables of the contract whose part is still to come. Set, they stop the start: what was asked for and does not
happen is worse than a start that says so."""

_KUBERNETES = "tcp://"
"""What Kubernetes has ``REDIS_PORT`` begin with, in every container beside a service that is called redis."""

_RateSetting = Annotated[Rate, PlainValidator(lambda value: value if isinstance(value, Rate) else Rate.parse(value))]
_Commas = Annotated[tuple[str, ...], NoDecode]


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
    service_api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    cors_allowed_origins: _Commas = ()
    """Origins such as ``https://app.example``; empty allows the same origin only, ``*`` any."""

    presence_away_after: float = Field(default=90, gt=0)
    presence_ttl: float = Field(default=120, gt=0)
    presence_offline_grace: float = Field(default=5, ge=0)
    presence_audience: Literal["everyone", "watchers"] = "everyone"
    presence_flush_interval: float = Field(default=0.02, ge=0, le=1)
    node_lease: float = Field(default=10, ge=1)

    presence_webhook_url: str | None = None
    presence_webhook_secret: SecretStr | None = None
    channel_auth_url: str | None = None
    pusher_app_id: str | None = None
    pusher_app_key: str | None = None
    pusher_app_secret: SecretStr | None = None

    max_connections_per_user: int | None = Field(default=None, ge=1)
    max_connections_per_tenant: int | None = Field(default=None, ge=1)
    max_payload: int = Field(default=65536, ge=1024)
    max_send_buffer: int = Field(default=1_048_576, ge=65536)
    """Bytes that wait for a client that does not read; past it the connection is closed with 4008."""
    recovery_window: float = Field(default=120, ge=0, le=3600)
    """How long a client that lost its connection may be away and go on where it was; 0 switches it off."""
    recovery_buffer: int = Field(default=262_144, ge=1024)
    """Bytes that it may have missed; past it, it starts from a snapshot."""
    recovery_memory: int = Field(default=67_108_864, ge=65536)
    """Bytes that are kept for all of them; past it, those that are away the longest start from a snapshot."""
    rate_limit_events: _RateSetting = Rate(100, 1.0)
    rate_limit_heartbeat: _RateSetting = Rate(60, 60.0)
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

    log_format: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("jwt_algorithms", "service_api_keys", "cors_allowed_origins", mode="before")
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
            if origin not in {"*", "null"} and ("://" not in origin or origin.rstrip("/").count("/") != 2):  # noqa: PLR2004
                raise ValueError(f"takes origins such as https://app.example, or *; not {origin!r}")
        return tuple(origin.rstrip("/") for origin in value)

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            check_url(value.get_secret_value())
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
        for name, why in _NOT_YET.items():
            if getattr(self, name) is not None:
                raise ValueError(f"{name.upper()} is set, and {why}; unset it to start")
        if self.presence_audience == "watchers":
            raise ValueError("PRESENCE_AUDIENCE=watchers needs watch lists, which are not in this version; unset it")
        self._check_keys()
        return self

    def _check_keys(self) -> None:
        keys = [name for name in ("jwt_secret", "jwt_public_key", "jwt_jwks_url") if getattr(self, name)]
        if not keys and not self.dev:
            raise ValueError(
                "no key to verify tokens with: set JWT_SECRET (or JWT_PUBLIC_KEY, or JWT_JWKS_URL),"
                " or start with --dev (in process: Settings(dev=True)) to try it out"
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
            raise ConfigurationError(
                "\n".join(_describe(problem["loc"], problem["msg"]) for problem in error.errors())
            ) from None


def _describe(location: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    return f"{str(location[0]).upper()}: {message}" if location else message
