"""What a Pusher application's secret signs: channels, users, requests of its HTTP API, and webhooks.

Everything is HMAC-SHA256, in hexadecimal digits, of a text that the Pusher protocol lays down. What is said in an
encrypted channel is not signed but hidden, by what the application's master key makes of the channel's name.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import TYPE_CHECKING, Final

from gateway.errors import SignatureError

if TYPE_CHECKING:
    from collections.abc import Iterable

TOLERANCE: Final = 600.0
"""Seconds that a request's timestamp may be away from this node's clock, either way."""

MASTER_KEY: Final = 32
"""Bytes of an application's master key."""

LIST: Final = "[]"
"""What the names of parameters end with in a query that may come several times."""

_VERSION: Final = "1.0"
_MAX_DIGITS: Final = 12


class Signer:
    """Signs with an application's key and secret, and checks what others have signed with them.

    Args:
        key: the application's; no secret.
        secret: what is never sent.
        master_key: what makes the secrets of encrypted channels, never sent either; None where somebody else has it.
    """

    def __init__(self, key: str, secret: str, master_key: bytes | None = None) -> None:
        self.key = key
        self._secret = secret.encode()
        self._master_key = master_key

    # What a backend gives its clients

    def channel_auth(self, socket_id: str, channel: str, channel_data: str | None = None) -> str:
        """Sign a client's place in a private or presence channel.

        Args:
            socket_id: the client's connection.
            channel: which.
            channel_data: of a presence channel, who the client is, as the very text that goes with the signature.

        Returns:
            ``key:signature``, the ``auth`` that the client subscribes with.
        """
        return self._auth(_place(socket_id, channel, channel_data))

    def is_channel_auth(self, auth: str, socket_id: str, channel: str, channel_data: str | None = None) -> bool:
        """Whether `channel_auth` of the same would be this."""
        return self._is_auth(auth, _place(socket_id, channel, channel_data))

    def user_auth(self, socket_id: str, user_data: str) -> str:
        """Sign who a client is, as the very text that goes with the signature: the ``auth`` of ``pusher:signin``."""
        return self._auth(f"{socket_id}::user::{user_data}")

    def is_user_auth(self, auth: str, socket_id: str, user_data: str) -> bool:
        """Whether `user_auth` of the same would be this."""
        return self._is_auth(auth, f"{socket_id}::user::{user_data}")

    def shared_secret(self, channel: str) -> str | None:
        """What a client reads an encrypted channel with, in base64; None where there is no master key here."""
        if self._master_key is None:
            return None
        return base64.b64encode(hashlib.sha256(channel.encode() + self._master_key).digest()).decode()

    # The HTTP API

    def request_signature(self, method: str, path: str, query: Iterable[tuple[str, str]]) -> str:
        """Sign a request of the HTTP API.

        Args:
            method: GET or POST.
            path: as it is sent, from its first slash to before the question mark.
            query: its parameters, unescaped; ``auth_signature`` is left out if it is among them. Those of one name, as
                a list's are, stay in their order.
        """
        pairs = [(name.lower(), value) for name, value in query if name != "auth_signature"]
        pairs.sort(key=lambda pair: pair[0])
        return self._sign("\n".join((method.upper(), path, "&".join(f"{name}={value}" for name, value in pairs))))

    def check_request(self, method: str, path: str, query: Iterable[tuple[str, str]], body: bytes, now: float) -> None:
        """Take a request of the HTTP API for its application's, or not.

        Args:
            method: GET or POST.
            path: as it was sent, from its first slash to before the question mark.
            query: its parameters, unescaped.
            body: all of it; empty for none.
            now: seconds since 1970.

        Raises:
            SignatureError: it is not; the message says what is wrong with it.
        """
        query = list(query)
        parameters: dict[str, str] = {}
        for name, value in query:
            if name in parameters and not name.endswith(LIST):
                raise SignatureError(f"the query has {name!r} twice")
            parameters[name] = value
        if not _same(parameters.get("auth_key", ""), self.key):
            raise SignatureError("auth_key is not this application's; see PUSHER_APP_KEY")
        if parameters.get("auth_version") != _VERSION:
            raise SignatureError(f"auth_version must be {_VERSION}")
        digest = parameters.get("body_md5")
        if digest is None and body:
            raise SignatureError("a request with a body must have its body_md5")
        if digest is not None and not _same(digest.lower(), hashlib.md5(body, usedforsecurity=False).hexdigest()):
            raise SignatureError("body_md5 is not the body's")
        # Before the clock's, so that what says how wrong the clock is says so to nobody else.
        if not _same(parameters.get("auth_signature", ""), self.request_signature(method, path, query)):
            raise SignatureError("auth_signature is not what the application's secret makes of this request")
        timestamp = parameters.get("auth_timestamp", "")
        if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= _MAX_DIGITS):
            raise SignatureError("auth_timestamp must be seconds since 1970")
        if abs(now - int(timestamp)) > TOLERANCE:
            raise SignatureError(
                f"auth_timestamp is {int(timestamp) - now:+.0f} s away from this server's clock, "
                f"which is more than {TOLERANCE:g} s"
            )

    # Webhooks

    def webhook_headers(self, body: bytes) -> dict[str, str]:
        """What a webhook is sent with: ``X-Pusher-Key`` and ``X-Pusher-Signature``."""
        return {"X-Pusher-Key": self.key, "X-Pusher-Signature": self._sign(body)}

    # One step each

    def _auth(self, text: str) -> str:
        return f"{self.key}:{self._sign(text)}"

    def _is_auth(self, auth: str, text: str) -> bool:
        return _same(auth, self._auth(text))

    def _sign(self, text: str | bytes) -> str:
        return hmac.new(self._secret, text if isinstance(text, bytes) else _bytes(text), hashlib.sha256).hexdigest()


def master_key_of(text: str) -> bytes:
    """The master key that a text in base64 is.

    Raises:
        ValueError: it is none.
    """
    try:
        key = base64.b64decode(text, validate=True)
    except ValueError:
        key = b""
    if len(key) != MASTER_KEY:
        raise ValueError(f"takes {MASTER_KEY} bytes in base64: openssl rand -base64 {MASTER_KEY} makes them")
    return key


def _place(socket_id: str, channel: str, channel_data: str | None) -> str:
    return f"{socket_id}:{channel}" if channel_data is None else f"{socket_id}:{channel}:{channel_data}"


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")  # JSON can hold halves of a character, which no UTF-8 does


def _same(given: str, right: str) -> bool:
    """Whether two texts are the same, in a time that does not tell how much of them is."""
    return hmac.compare_digest(_bytes(given), _bytes(right))
