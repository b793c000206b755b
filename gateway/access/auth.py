"""A token in, an identity out."""

from __future__ import annotations

import asyncio
import binascii
import hmac
from typing import TYPE_CHECKING, Any

import jwt
import msgspec
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import HMACAlgorithm

from gateway.errors import (
    ConfigurationError,
    KeysUnavailableError,
    TokenExpiredError,
    TokenInvalidError,
    TokenMissingError,
)
from gateway.presence.model import DEFAULT_TENANT, NOBODY, Profile
from gateway.revocation.revocations import is_jti
from gateway.wire import LAST_TIME, UNPRINTABLE, is_id

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jwt.types import Options

    from gateway.settings import Settings

_log = structlog.get_logger(__name__)

_JWKS_TIMEOUT = 5.0
"""Seconds."""

_JWKS_RETRY = 5.0
"""Seconds until keys that could not be fetched are asked for again."""

_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}

_FROM_URL, _TO_URL = bytes.maketrans(b"-_", b"+/"), bytes.maketrans(b"+/", b"-_")
"""Between base64's two alphabets: RFC 4648, section 5."""

_IN_HEADERS = frozenset({"alg", "typ", "kid"})
"""What may be in a token's header that need not be looked at anew; nothing of it says how the rest is read."""

_MAX_KNOWN = 8
"""Headers that are known by their bytes: the last that came. Whoever signs tokens has a few."""

_MAX_REASON = 200
"""Characters of a reason that may hold some of the token's header."""

_MAX_PROFILE_LENGTH = 512
_MAX_AVATAR_LENGTH = 2048


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who is calling."""

    tenant: str
    user_id: str
    profile: Profile
    expires_at: int | None
    """Unix milliseconds; None for a token that does not expire."""
    jti: str | None = None
    """The token's own id, by which it can be revoked; None for one that has none."""
    issued_at: int | None = None
    """Unix milliseconds; None for a token that does not say."""


def find_token(
    headers: Mapping[str, str], query: Mapping[str, str], cookies: Mapping[str, str], auth: object = None
) -> str | None:
    """Look for a token in its four places, in the contract's order.

    Args:
        headers: of the HTTP request, matched without case; ``Authorization: Bearer``.
        query: ``?token=``.
        cookies: ``jwt``.
        auth: what a Socket.IO client sent in its CONNECT packet; ``{"token": …}``.

    Returns:
        The first that is there; None where there is none.
    """
    if isinstance(auth, dict) and auth.get("token"):
        return str(auth["token"])
    scheme, _, credentials = headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credentials.strip():
        return credentials.strip()
    return query.get("token") or cookies.get("jwt") or None


class Authenticator:
    """Verifies tokens with the one key configured, and service keys.

    Args:
        settings: the ``JWT_…`` variables and ``SERVICE_API_KEYS``.
        dev_secret: the secret to use where no key is set.
        check: called with whom a token is of; raises a `RefusedError` for one that is revoked. None revokes none.

    Raises:
        ConfigurationError: the public key cannot be read or is not for the algorithms named, the secret is a public
            key, or ``JWT_JWKS_URL`` is no address.
    """

    def __init__(
        self, settings: Settings, dev_secret: str | None = None, check: Callable[[Identity], None] | None = None
    ) -> None:
        self._settings = settings
        self._check = check
        self._published = None if settings.jwt_jwks_url is None else PublishedKeys(settings.jwt_jwks_url)
        self._key: Any = None
        self._algorithms: Sequence[str] = settings.jwt_algorithms
        self._decoder = _Decoder()
        self._decoder._jws = _Signatures()  # noqa: SLF001 - it has no other way in; others' PyJWT is left as it is
        if settings.jwt_public_key is not None:
            self._key, by_key = _public_key(settings.jwt_public_key)
            if strangers := set(self._algorithms) - set(by_key):
                raise ConfigurationError(f"JWT_ALGORITHMS: this key is for {', '.join(by_key)}, not {strangers.pop()}")
            self._algorithms = self._algorithms or by_key[:1]
        elif self._published is not None:
            self._algorithms = self._algorithms or ("RS256", "ES256", "EdDSA")
        else:
            secret = settings.jwt_secret
            self._key = (secret.get_secret_value() if secret is not None else dev_secret or "").encode()
            self._algorithms = self._algorithms or ("HS256",)
            try:
                HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(self._key)
            except jwt.InvalidKeyError as error:
                raise ConfigurationError(f"JWT_SECRET: {error}") from None
            _prepare_hmac(self._decoder)
        self._options: Options = {
            "require": ["exp"] if settings.jwt_require_exp else [],
            "verify_aud": settings.jwt_audience is not None,
            # Ours to check: a number is taken as its decimal string. And a token issued by a clock a second ahead of
            # this one's is a good token.
            "verify_sub": False,
            "verify_iat": False,
        }
        self._service_keys = [key.get_secret_value().encode() for key in settings.service_api_keys]
        self._reading_keys = [key.get_secret_value().encode() for key in settings.service_api_keys_readonly]

    async def identify(self, token: str | None) -> Identity:
        """Verify a token.

        Raises:
            TokenMissingError: there is none.
            TokenExpiredError: its ``exp`` has passed.
            TokenInvalidError: it is revoked, or anything else is wrong with it; the message says what.
            KeysUnavailableError: the keys to verify it with cannot be fetched now.
            NotReadyError: this node has just started, and does not know yet what is revoked.
        """
        if not token:
            raise TokenMissingError("no token: send it as auth.token, Authorization: Bearer, ?token= or the cookie jwt")
        settings = self._settings
        try:
            claims = self._decoder.decode(
                token,
                await self._key_for(token),
                algorithms=self._algorithms,
                issuer=settings.jwt_issuer,
                audience=settings.jwt_audience,
                options=self._options,
            )
        except jwt.ExpiredSignatureError:
            raise TokenExpiredError("the token has expired; get a new one") from None
        except jwt.PyJWKClientConnectionError:
            raise KeysUnavailableError("the keys to verify tokens with cannot be fetched; try again later") from None
        except (jwt.PyJWTError, TypeError, ValueError) as error:  # the last two: a key of another kind, no UTF-8
            raise TokenInvalidError(f"the token is not accepted: {self._why(error, token)}") from None
        identity = _identity(claims, settings.jwt_tenant_claim)
        if self._check is not None:
            self._check(identity)
        return identity

    def knows_service_key(self, key: str) -> bool:
        """Whether `key` is one of ``SERVICE_API_KEYS``, in a time that does not tell how nearly."""
        return any(hmac.compare_digest(known, key.encode(errors="surrogatepass")) for known in self._service_keys)

    def knows_reading_key(self, key: str) -> bool:
        """The same of ``SERVICE_API_KEYS_READONLY``."""
        return any(hmac.compare_digest(known, key.encode(errors="surrogatepass")) for known in self._reading_keys)

    def _why(self, error: Exception, token: str) -> str:
        """What is wrong with a token, in words for whoever made or sent it."""
        why = str(error)[:_MAX_REASON]
        match error:
            case jwt.InvalidSignatureError():
                why = f"it was signed with another key than {self._whose_key()}"
            case jwt.InvalidAlgorithmError():
                why = f"its algorithm is not {' or '.join(self._algorithms)}"
            case jwt.MissingRequiredClaimError():
                why = f"it has no {error.claim!r}"
            case jwt.InvalidIssuerError():
                why = "its iss is not JWT_ISSUER"
            case jwt.InvalidAudienceError():
                why = "its aud is not JWT_AUDIENCE"
            case jwt.DecodeError() if token.lower().startswith("bearer "):
                why = "it begins with Bearer; send what is behind that"
            case jwt.DecodeError():
                why = f"it is no JWT: {why}"
        return why

    def _whose_key(self) -> str:
        for name in ("jwt_secret", "jwt_public_key", "jwt_jwks_url"):
            if getattr(self._settings, name):
                return f"the gateway's {name.upper()}"
        return "this run's, which /dev/token signs with"

    async def _key_for(self, token: str) -> Any:
        if self._published is None:
            return self._key
        return await self._published.key(jwt.get_unverified_header(token).get("kid"))


class _Decoder(jwt.PyJWT):
    """PyJWT's, with a faster reader of JSON for claims that are nothing unusual."""

    def _decode_payload(self, decoded: dict[str, Any]) -> dict[str, Any]:
        try:
            return _read_claims(decoded["payload"])
        except (ValueError, RecursionError):
            claims: dict[str, Any] = super()._decode_payload(decoded)  # which has the words, and takes a little more
            return claims


_read_claims = msgspec.json.Decoder(dict[str, Any]).decode


class _Signatures(jwt.PyJWS):
    """PyJWT's, which looks at each character of a token: what is encoded as it was has none that is wrong.

    Of a secret's tokens nearly all have the same header. One that PyJWT has taken, with its signature, is known by its
    bytes from then on, and only the signature is looked at. There is one key for all that come here.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[bytes, tuple[dict[str, Any], _PreparedHMAC]] = {}
        """Headers of tokens that were good, and what verifies theirs."""

    def decode_complete(self, jwt: str | bytes, key: Any = "", *arguments: Any, **options: Any) -> dict[str, Any]:
        """Verify a token; see the base."""
        token = jwt.encode() if isinstance(jwt, str) else jwt
        start, _, behind = token.partition(b".")
        if (known := self._known.get(start)) is not None:
            header, verifier = known
            payload, _, last = behind.partition(b".")
            signature = self._decode_base64url_segment(last, "crypto")
            if verifier.verify(token[: -1 - len(last)], key, signature):
                decoded = self._decode_base64url_segment(payload, "payload")
                return {"payload": decoded, "header": header, "signature": signature}
        found: dict[str, Any] = super().decode_complete(token, key, *arguments, **options)
        algorithm = self._algorithms[found["header"]["alg"]]
        if isinstance(algorithm, _PreparedHMAC) and _IN_HEADERS.issuperset(found["header"]):
            self._known[start] = found["header"], algorithm
            if len(self._known) > _MAX_KNOWN:
                del self._known[next(iter(self._known))]
        return found

    @staticmethod
    def _decode_base64url_segment(segment: bytes, name: str) -> bytes:
        try:
            decoded = binascii.a2b_base64(segment.translate(_FROM_URL) + b"==")
        except ValueError:
            pass
        else:
            if binascii.b2a_base64(decoded, newline=False).rstrip(b"=").translate(_TO_URL) == segment:
                return decoded
        return jwt.PyJWS._decode_base64url_segment(segment, name)  # noqa: SLF001 - which has the words


class _PreparedHMAC(HMACAlgorithm):
    """PyJWT's, for a secret whose form was looked at before: doing so for each token is a third of verifying it."""

    def prepare_key(self, key: str | bytes) -> bytes:
        assert isinstance(key, bytes)  # noqa: S101 - the one caller's is
        return key

    def check_key_length(self, key: bytes) -> str | None:  # noqa: ARG002 - PyJWT's name
        return None

    def sign(self, msg: bytes, key: bytes) -> bytes:
        return hmac.digest(key, msg, self.hash_alg)  # in one piece, without an object that could take more


def _prepare_hmac(decoder: jwt.PyJWT) -> None:
    signatures = decoder._jws  # noqa: SLF001 - as above
    for name, digest in (("HS256", "SHA256"), ("HS384", "SHA384"), ("HS512", "SHA512")):
        signatures.unregister_algorithm(name)
        signatures.register_algorithm(name, _PreparedHMAC(getattr(HMACAlgorithm, digest)))


class PublishedKeys:
    """The keys that ``JWT_JWKS_URL`` publishes, looked up on the event loop and fetched beside it.

    PyJWT's client fetches, and decides how often an unknown key may make it ask again. A key that is known goes on
    being good while its address does not answer: an outage there must not shut everyone out here.

    Args:
        url: the address.
        lifespan: seconds after which the keys are fetched again, in the background.

    Raises:
        ConfigurationError: it is no address.
    """

    def __init__(self, url: str, lifespan: float = 300) -> None:
        try:
            self._client = jwt.PyJWKClient(url, timeout=_JWKS_TIMEOUT, lifespan=lifespan)
        except jwt.PyJWTError as error:
            raise ConfigurationError(f"JWT_JWKS_URL: {error}") from None
        self._lifespan = lifespan
        self._known: dict[str, jwt.PyJWK] = {}
        self._fetched_at = self._failed_at = float("-inf")
        self._fetching: asyncio.Task[None] | None = None

    async def key(self, kid: object) -> jwt.PyJWK:
        """The key of that id.

        Raises:
            jwt.PyJWTError: no such key is published.
            jwt.PyJWKClientConnectionError: the keys cannot be fetched, and this one is not known.
        """
        if not isinstance(kid, str):
            raise jwt.InvalidTokenError("its header names no key (kid)")
        now = asyncio.get_running_loop().time()
        due = kid not in self._known or now - self._fetched_at > self._lifespan
        if due and now - self._failed_at >= _JWKS_RETRY:
            if self._fetching is None:
                self._fetching = asyncio.create_task(self._fetch(kid))
            if kid not in self._known:
                await asyncio.shield(self._fetching)
        if kid in self._known:
            return self._known[kid]
        if self._failed_at > self._fetched_at:
            raise jwt.PyJWKClientConnectionError("the keys cannot be fetched")
        raise jwt.InvalidTokenError("its key (kid) is not among those published")

    async def _fetch(self, kid: str) -> None:
        """Ask once for all who wait; PyJWT's client asks again for an unknown key twice a minute at the most."""
        loop = asyncio.get_running_loop()
        try:
            keys = await asyncio.to_thread(self._ask, kid)
        except (jwt.PyJWTError, ValueError) as error:
            _log.warning("the keys to verify tokens with cannot be fetched", error=str(error))
            self._failed_at = loop.time()
        else:
            self._known = {key.key_id: key for key in keys if key.key_id is not None}
            self._fetched_at = loop.time()
        finally:
            self._fetching = None

    def _ask(self, kid: str) -> list[jwt.PyJWK]:
        try:
            self._client.get_signing_key(kid)
        except jwt.PyJWKClientConnectionError:
            raise
        except jwt.PyJWKClientError:
            pass  # not among them: whoever waits for it finds that out
        return self._client.get_signing_keys()


def issue_token(
    settings: Settings, secret: str, user_id: str, *, now: int, ttl: float, claims: Mapping[str, str | None]
) -> str:
    """Sign a token that this gateway's `Authenticator` accepts.

    Args:
        settings: the issuer, audience and algorithm to write.
        secret: the key to sign with.
        user_id: the ``sub``.
        now: Unix milliseconds.
        ttl: seconds until it expires.
        claims: further ones; those that are None are left out.
    """
    payload = {"sub": user_id, "iat": now // 1000, "exp": int(now / 1000 + ttl)}
    optional = {"iss": settings.jwt_issuer, "aud": settings.jwt_audience, **claims}
    payload |= {name: value for name, value in optional.items() if value is not None}
    encoder = jwt.PyJWT()
    _prepare_hmac(encoder)  # a secret that is short is warned of where it is set
    return encoder.encode(payload, secret.encode(), algorithm=(*settings.jwt_algorithms, "HS256")[0])


def _public_key(pem: str) -> tuple[Any, tuple[str, ...]]:
    """Load a public key, and the algorithms that go with its kind, the usual one first."""
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(f"JWT_PUBLIC_KEY: takes a PEM public key, or the path of one: {error}") from None
    match key:
        case rsa.RSAPublicKey():
            return key, ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
        case ec.EllipticCurvePublicKey():
            return key, (_CURVES.get(key.curve.name, "ES256"),)
        case ed25519.Ed25519PublicKey() | ed448.Ed448PublicKey():
            return key, ("EdDSA",)
        case _:
            raise ConfigurationError("JWT_PUBLIC_KEY: takes an RSA, EC or Ed25519 key")


def _identity(claims: Mapping[str, Any], tenant_claim: str) -> Identity:
    exp = claims.get("exp")
    role = claims.get("role")
    roles = claims.get("roles")
    if role is None and isinstance(roles, list) and roles:
        role = roles[0]
    profile = Profile(
        name=_text(claims.get("name"), _MAX_PROFILE_LENGTH),
        avatar=_text(claims.get("avatar"), _MAX_AVATAR_LENGTH),
        role=_text(role, _MAX_PROFILE_LENGTH),
    )
    return Identity(
        tenant=_id("tenant claim", claims.get(tenant_claim, DEFAULT_TENANT)),
        user_id=_id("sub", claims.get("sub")),
        profile=NOBODY if profile == NOBODY else profile,  # one for all of whom their tokens say nothing
        expires_at=None if exp is None else min(int(exp) * 1000, LAST_TIME),
        jti=claims["jti"] if is_jti(claims.get("jti")) else None,
        issued_at=_issued_at(claims.get("iat")),
    )


def _issued_at(iat: object) -> int | None:
    """A time in Unix milliseconds; None for what is none."""
    if isinstance(iat, bool) or not isinstance(iat, int | float) or not 0 <= iat <= LAST_TIME:
        return None
    return int(iat * 1000)


def _id(name: str, value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not is_id(value):
        raise TokenInvalidError(f"the token's {name} must be 1 to 128 characters without control characters")
    return value


def _text(value: object, length: int) -> str | None:
    """A text to show to others, cut to a length, without what cannot be encoded; None for anything else."""
    return clean_text(value[:length]) if isinstance(value, str) and value else None


def clean_text(text: str) -> str:
    """Replace control characters, and halves of surrogate pairs: JSON's escapes and headers can smuggle them in."""
    return UNPRINTABLE.sub("?", text)
