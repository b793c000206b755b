from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from conftest import SECRET, eventually, make_settings, make_token
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from gateway import wire
from gateway.access.auth import Authenticator, Identity, PublishedKeys, clean_text, find_token, issue_token
from gateway.errors import (
    ConfigurationError,
    KeysUnavailableError,
    RefusedError,
    TokenExpiredError,
    TokenInvalidError,
    TokenMissingError,
)
from gateway.presence.model import Profile
from gateway.wire import is_id

RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()


def pem(private: Any) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    data: bytes = private.public_key().public_bytes(serialization.Encoding.PEM, form)
    return data.decode()


def by_key(public_key: str, **settings: Any) -> Authenticator:
    return Authenticator(make_settings(jwt_secret=None, jwt_public_key=public_key, **settings))


def by_secret(**settings: Any) -> Authenticator:
    return Authenticator(make_settings(**settings))


def signed(key: Any, algorithm: str, *, headers: dict[str, Any] | None = None, **claims: Any) -> str:
    payload = {"sub": "alice", "exp": int(time.time()) + 3600} | claims
    return jwt.encode(payload, key, algorithm=algorithm, headers=headers)


def handmade(header: dict[str, Any], payload: dict[str, Any], signature: bytes = b"") -> str:
    """A token as no library would make it."""
    parts = [json.dumps(header).encode(), json.dumps(payload).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


async def refusal(authenticator: Authenticator, token: str | None) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        await authenticator.identify(token)
    return caught.value


# Where a token is looked for


def test_a_token_is_looked_for_in_four_places_in_order() -> None:
    auth, headers = {"token": "of auth"}, {"Authorization": "Bearer of header"}
    query, cookies = {"token": "of query"}, {"jwt": "of cookie"}
    assert find_token(headers, query, cookies, auth) == "of auth"
    assert find_token(headers, query, cookies) == "of header"
    assert find_token({}, query, cookies) == "of query"
    assert find_token({}, {}, cookies) == "of cookie"
    assert find_token({}, {}, {}) is None


@pytest.mark.parametrize("auth", [None, "token", ["token"], {}, {"token": ""}, {"token": None}, {"jwt": "t"}])
def test_what_a_client_sends_as_auth_without_a_token_is_passed_over(auth: object) -> None:
    assert find_token({}, {"token": "of query"}, {}, auth) == "of query"


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("Bearer t", "t"),
        ("bearer  t ", "t"),
        ("BEARER t", "t"),
        ("Basic t", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("t", None),
        ("", None),
    ],
)
def test_the_authorization_header_counts_with_the_scheme_bearer(header: str, token: str | None) -> None:
    assert find_token({"Authorization": header}, {}, {}) == token


# What a token says


async def test_a_token_is_an_identity() -> None:
    token = signed(SECRET, "HS256", exp=4_000_000_000, tenant="acme", name="Alice", avatar="/a.png", role="admin")
    assert await by_secret().identify(token) == Identity(
        tenant="acme",
        user_id="alice",
        profile=Profile(name="Alice", avatar="/a.png", role="admin"),
        expires_at=4_000_000_000_000,
    )


async def test_a_token_that_says_little_is_of_the_default_tenant() -> None:
    identity = await by_secret().identify(make_token())
    assert (identity.tenant, identity.profile) == ("default", Profile())


@pytest.mark.parametrize(
    ("claims", "role"),
    [
        ({"roles": ["editor", "admin"]}, "editor"),
        ({"role": "user", "roles": ["admin"]}, "user"),
        ({"roles": []}, None),
        ({"roles": "admin"}, None),
        ({"role": 7}, None),
    ],
)
async def test_the_role_is_role_or_the_first_of_roles(claims: dict[str, Any], role: str | None) -> None:
    assert (await by_secret().identify(make_token(**claims))).profile.role == role


async def test_the_tenant_is_read_from_the_claim_that_is_configured() -> None:
    authenticator = by_secret(jwt_tenant_claim="org")
    assert (await authenticator.identify(make_token(org="acme", tenant="other"))).tenant == "acme"


@pytest.mark.parametrize(
    ("sub", "user_id"), [(42, "42"), (0, "0"), (-1, "-1"), ("007", "007"), ("ü 🙂" * 30, "ü 🙂" * 30)]
)
async def test_a_sub_is_a_user_id_and_an_integer_is_its_decimal_string(sub: str | int, user_id: str) -> None:
    assert (await by_secret().identify(make_token(sub))).user_id == user_id


@pytest.mark.parametrize("sub", [None, "", "a" * 129, "a\nb", "a\x00", "\x85", "\ud83d", True, 1.5, ["alice"], 10**128])
async def test_a_sub_that_is_no_user_id_is_refused(sub: Any) -> None:
    claims = {} if sub is None else {"sub": sub}
    token = jwt.PyJWS().encode(json.dumps({"exp": 4_000_000_000} | claims).encode(), SECRET, algorithm="HS256")
    error = await refusal(by_secret(), token)
    assert type(error) is TokenInvalidError
    assert str(error) == "the token's sub must be 1 to 128 characters without control characters"


@pytest.mark.parametrize("tenant", ["", "a" * 129, "a\nb", True, {"id": 1}])
async def test_a_tenant_claim_that_is_no_id_is_refused(tenant: Any) -> None:
    error = await refusal(by_secret(), make_token(tenant=tenant))
    assert type(error) is TokenInvalidError
    assert "tenant claim must be 1 to 128 characters" in str(error)


async def test_a_tenant_claim_may_be_an_integer() -> None:
    assert (await by_secret().identify(make_token(tenant=7))).tenant == "7"


async def test_a_profile_is_cut_to_a_length_and_to_what_can_be_encoded() -> None:
    claims = {"exp": 4_000_000_000, "sub": "a", "name": "Al\ud83d", "avatar": "x" * 3000, "role": "y" * 600}
    token = jwt.PyJWS().encode(json.dumps(claims).encode(), SECRET, algorithm="HS256")
    profile = (await by_secret().identify(token)).profile
    assert profile == Profile(name="Al?", avatar="x" * 2048, role="y" * 512)
    assert clean_text("ü🙂\udfff") == "ü🙂?"


@pytest.mark.parametrize("exp", [99_999_999_999_999, 10**300])
async def test_an_expiry_in_milliseconds_by_mistake_can_still_be_written(exp: int) -> None:
    identity = await by_secret().identify(signed(SECRET, "HS256", exp=exp))
    assert wire.optional_timestamp(identity.expires_at) == "9999-12-31T23:59:59.000Z"


# What is refused


async def test_no_token_is_token_missing() -> None:
    assert type(await refusal(by_secret(), None)) is TokenMissingError
    assert type(await refusal(by_secret(), "")) is TokenMissingError


async def test_an_expired_token_is_told_apart() -> None:
    assert type(await refusal(by_secret(), make_token(ttl=-10))) is TokenExpiredError


async def test_a_token_must_expire_unless_that_is_not_required() -> None:
    token = make_token(exp=None)
    error = await refusal(by_secret(), token)
    assert str(error) == "the token is not accepted: it has no 'exp'"
    assert (await by_secret(jwt_require_exp=False).identify(token)).expires_at is None
    assert type(await refusal(by_secret(jwt_require_exp=False), make_token(ttl=-10))) is TokenExpiredError


@pytest.mark.parametrize(
    ("token", "says"),
    [
        ("abc", "it is no JWT: Not enough segments"),
        ("a.b.c", "it is no JWT: "),
        ("{'token': 'x'}", "it is no JWT: "),
        (f"Bearer {make_token()}", "it begins with Bearer; send what is behind that"),
        (make_token(secret="x" * 32), "it was signed with another key than the gateway's JWT_SECRET"),
        (jwt.encode({"sub": "a"}, "x" * 64, "HS512"), "its algorithm is not HS256"),
        (jwt.encode({"sub": "a", "exp": 4e9, "nbf": 4e9}, SECRET, "HS256"), "The token is not yet valid (nbf)"),
    ],
)
async def test_what_is_wrong_with_a_token_is_said_in_words_for_who_sent_it(token: str, says: str) -> None:
    error = await refusal(by_secret(), token)
    assert str(error).startswith(f"the token is not accepted: {says}")


async def test_a_token_of_another_run_of_development_mode_is_told_where_to_get_one() -> None:
    authenticator = Authenticator(make_settings(dev=True, jwt_secret=None), "y" * 32)
    assert "/dev/token" in str(await refusal(authenticator, make_token()))


@pytest.mark.parametrize(
    ("claims", "says"),
    [
        ({"iss": "other", "aud": "gateway"}, "its iss is not JWT_ISSUER"),
        ({"iss": "issuer", "aud": "other"}, "its aud is not JWT_AUDIENCE"),
        ({"iss": "issuer"}, "it has no 'aud'"),
    ],
)
async def test_a_token_for_others_is_told_by_which_setting(claims: dict[str, Any], says: str) -> None:
    error = await refusal(by_secret(jwt_issuer="issuer", jwt_audience="gateway"), make_token(**claims))
    assert str(error) == f"the token is not accepted: {says}"


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "other", "aud": "gateway"},
        {"aud": "gateway"},
        {"iss": "issuer", "aud": "other"},
        {"iss": "issuer"},
        {"iss": "issuer", "aud": []},
    ],
)
async def test_the_issuer_and_the_audience_must_be_those_configured(claims: dict[str, Any]) -> None:
    authenticator = by_secret(jwt_issuer="issuer", jwt_audience="gateway")
    assert (await authenticator.identify(make_token(iss="issuer", aud=["x", "gateway"]))).user_id == "alice"
    assert type(await refusal(authenticator, make_token(**claims))) is TokenInvalidError


async def test_without_them_configured_any_issuer_and_audience_will_do() -> None:
    assert (await by_secret().identify(make_token(iss="any", aud="any"))).user_id == "alice"


async def test_a_token_issued_by_a_clock_ahead_is_taken_and_one_not_valid_yet_is_not() -> None:
    assert (await by_secret().identify(make_token(iat=int(time.time()) + 5))).user_id == "alice"
    assert type(await refusal(by_secret(), make_token(nbf=int(time.time()) + 60))) is TokenInvalidError


@pytest.mark.parametrize("more", ["NaN", "1e400", '"\\ud800"', str(2**80)])
async def test_claims_that_only_pyjwt_can_read_are_read(more: str) -> None:
    claims = f'{{"sub": "alice", "exp": 4000000000, "more": {more}}}'
    token = jwt.PyJWS().encode(claims.encode(), SECRET, algorithm="HS256")
    assert (await by_secret().identify(token)).user_id == "alice"


@pytest.mark.parametrize("claims", ["[]", '"alice"', "{", "", "[" * 100_000, '{"a":' * 100_000])
async def test_claims_that_are_no_object_are_refused(claims: str) -> None:
    token = jwt.PyJWS().encode(claims.encode(), SECRET, algorithm="HS256")
    refused = await refusal(by_secret(), token)
    assert type(refused) is TokenInvalidError
    assert "payload" in str(refused)


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
async def test_each_digest_is_its_own(algorithm: str) -> None:
    authenticator = by_secret(jwt_algorithms=algorithm, jwt_secret=SECRET * 2)
    token = signed(SECRET * 2, algorithm)
    assert (await authenticator.identify(token)).user_id == "alice"
    body, _, signature = token.rpartition(".")
    assert type(await refusal(authenticator, f"{body}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}")) is (
        TokenInvalidError
    )


async def test_a_token_of_another_secret_or_changed_on_the_way_is_refused() -> None:
    assert (
        type(await refusal(by_secret(), make_token(secret="another secret, as long as the first"))) is TokenInvalidError
    )
    head, body, signature = make_token().split(".")
    forged = base64.urlsafe_b64encode(json.dumps({"sub": "bob", "exp": 4_000_000_000}).encode()).decode().rstrip("=")
    assert body != forged
    assert type(await refusal(by_secret(), f"{head}.{forged}.{signature}")) is TokenInvalidError


@pytest.mark.parametrize("key", ["other" * 8, RSA], ids=["another secret", "another algorithm"])
async def test_a_header_that_is_known_vouches_for_nothing_behind_it(key: Any) -> None:
    """Most tokens of a secret begin alike: what was read of one that was good is not read again of the next."""
    authenticator = by_secret()
    good = signed(SECRET, "HS256", sub="alice")
    assert (await authenticator.identify(good)).user_id == "alice"
    assert (await authenticator.identify(signed(SECRET, "HS256", sub="bob"))).user_id == "bob"

    start, claims, signature = good.split(".")
    forged = signed(key, "RS256" if key is RSA else "HS256", sub="mallory").split(".")
    for token in (
        f"{start}.{forged[1]}.{signature}",
        f"{start}.{forged[1]}.{forged[2]}",
        f"{start}.{claims}.{signature[:-4]}AAAA",
        f"{start}.{claims}.",
        f"{start}.{claims}",
        f"{start}..{signature}",
        f"{start}.{claims}.{signature}.{signature}",
        start,
    ):
        assert isinstance(await refusal(authenticator, token), TokenInvalidError)
    expired = signed(SECRET, "HS256", exp=int(time.time()) - 60)
    assert isinstance(await refusal(authenticator, expired), TokenExpiredError)


async def test_of_headers_that_are_known_there_are_a_few_and_none_that_says_how_to_read_on() -> None:
    authenticator = by_secret()
    known = authenticator._decoder._jws._known  # type: ignore[attr-defined]  # ours
    for number in range(20):
        await authenticator.identify(signed(SECRET, "HS256", headers={"kid": str(number)}))
    assert 0 < len(known) <= 8
    last = max(known)
    await authenticator.identify(signed(SECRET, "HS256", headers={"x": 1}))
    await refusal(authenticator, signed(SECRET, "HS256", headers={"crit": ["x"], "x": 1}))
    await refusal(authenticator, signed("other" * 8, "HS256", headers={"kid": "forged"}))
    assert max(known) == last
    assert all({"alg", "typ", "kid"}.issuperset(header) for header, _ in known.values())


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "", None])
@pytest.mark.parametrize("authenticator", [by_secret(), by_key(pem(RSA))], ids=["secret", "key"])
async def test_a_token_without_a_signature_is_never_taken(authenticator: Authenticator, algorithm: str | None) -> None:
    payload = {"sub": "alice", "exp": 4_000_000_000}
    assert type(await refusal(authenticator, handmade({"alg": algorithm, "typ": "JWT"}, payload))) is TokenInvalidError
    assert type(await refusal(authenticator, handmade({"typ": "JWT"}, payload))) is TokenInvalidError


@pytest.mark.parametrize("private", [RSA, EC, ED], ids=["RSA", "EC", "Ed25519"])
@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
async def test_a_public_key_is_never_taken_for_a_secret(private: Any, algorithm: str) -> None:
    public = pem(private)
    unsigned = handmade({"alg": algorithm, "typ": "JWT"}, {"sub": "alice", "exp": 4_000_000_000}).rstrip(".")
    digest = jwt.algorithms.HMACAlgorithm(getattr(jwt.algorithms.HMACAlgorithm, algorithm.replace("HS", "SHA")))
    signature = base64.urlsafe_b64encode(digest.sign(unsigned.encode(), public.encode())).decode().rstrip("=")
    assert type(await refusal(by_key(public), f"{unsigned}.{signature}")) is TokenInvalidError


async def test_an_algorithm_of_the_same_family_that_is_not_configured_is_refused() -> None:
    assert type(await refusal(by_secret(), signed(SECRET * 2, "HS512"))) is TokenInvalidError
    assert (
        await by_secret(jwt_algorithms="HS512", jwt_secret=SECRET * 2).identify(signed(SECRET * 2, "HS512"))
    ).user_id


async def test_a_token_for_a_key_of_another_kind_is_refused_and_breaks_nothing() -> None:
    authenticator = by_key(pem(RSA), jwt_algorithms="RS256,PS256")
    assert (await authenticator.identify(signed(RSA, "PS256"))).user_id == "alice"
    assert type(await refusal(authenticator, signed(EC, "ES256"))) is TokenInvalidError


def test_an_algorithm_that_is_not_the_keys_stops_the_start() -> None:
    with pytest.raises(ConfigurationError, match=r"JWT_ALGORITHMS: this key is for RS256, .* not ES256"):
        by_key(pem(RSA), jwt_algorithms="RS256,ES256")


@pytest.mark.parametrize("token", ["?", "a.b.c", "....", "\ud83d.a.b", "ü.ü.ü", "e30.e30.", "a" * 100_000, "\x00"])
async def test_what_is_no_token_is_refused(token: str) -> None:
    error = await refusal(by_secret(), token)
    assert type(error) is TokenInvalidError
    assert token not in str(error)


AUTHENTICATOR = by_secret()


@given(st.text(st.characters(), min_size=1) | st.lists(st.text("abAB01-_="), min_size=3, max_size=3).map(".".join))
async def test_whatever_a_client_sends_is_refused(token: str) -> None:
    assert type(await refusal(AUTHENTICATOR, token)) is TokenInvalidError


# Keys


@pytest.mark.parametrize(
    ("private", "algorithm"), [(RSA, "RS256"), (EC, "ES256"), (ED, "EdDSA")], ids=["RSA", "EC", "Ed25519"]
)
async def test_a_public_key_chooses_its_algorithm(private: Any, algorithm: str) -> None:
    authenticator = by_key(pem(private))
    assert (await authenticator.identify(signed(private, algorithm))).user_id == "alice"
    other = RSA if private is not RSA else EC
    wrong = signed(other, "RS256" if other is RSA else "ES256")
    assert type(await refusal(authenticator, wrong)) is TokenInvalidError


@pytest.mark.parametrize(
    "text", ["-----BEGIN PUBLIC KEY-----\nnonsense\n-----END PUBLIC KEY-----", pem(dsa.generate_private_key(1024))]
)
def test_a_public_key_that_cannot_be_used_stops_the_start(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^JWT_PUBLIC_KEY: takes "):
        by_key(text)


def test_an_address_of_keys_that_is_none_stops_the_start() -> None:
    with pytest.raises(ConfigurationError, match=r"^JWT_JWKS_URL: "):
        Authenticator(make_settings(jwt_secret=None, jwt_jwks_url="nonsense"))


async def test_the_secret_of_development_counts_where_no_other_is_set() -> None:
    authenticator = Authenticator(
        make_settings(jwt_secret=None, dev=True), dev_secret="random, for this run, and long enough"
    )
    token = make_token(secret="random, for this run, and long enough")
    assert (await authenticator.identify(token)).user_id == "alice"
    assert type(await refusal(authenticator, make_token())) is TokenInvalidError


@pytest.fixture
async def jwks() -> AsyncIterator[Callable[[list[dict[str, Any]]], Awaitable[str]]]:
    """Serves a set of public keys, and returns its address."""
    servers = []

    async def serve(keys: list[dict[str, Any]]) -> str:
        async def answer(_request: web.Request) -> web.Response:
            return web.json_response({"keys": keys})

        app = web.Application()
        app.router.add_get("/jwks.json", answer)
        server = TestServer(app)
        await server.start_server()
        servers.append(server)
        return str(server.make_url("/jwks.json"))

    yield serve
    for server in servers:
        await server.close()


async def test_keys_are_fetched_and_chosen_by_the_token_s_kid(
    jwks: Callable[[list[dict[str, Any]]], Awaitable[str]],
) -> None:
    ec_key = jwt.algorithms.ECAlgorithm.to_jwk(EC.public_key(), as_dict=True) | {"kid": "ec", "use": "sig"}
    rsa_key = jwt.algorithms.RSAAlgorithm.to_jwk(RSA.public_key(), as_dict=True) | {"kid": "rsa", "use": "sig"}
    oct_key = {"kty": "oct", "kid": "oct", "k": base64.urlsafe_b64encode(SECRET.encode()).decode().rstrip("=")}
    url = await jwks([ec_key, rsa_key, oct_key])
    authenticator = Authenticator(make_settings(jwt_secret=None, jwt_jwks_url=url))
    assert (await authenticator.identify(signed(EC, "ES256", headers={"kid": "ec"}))).user_id == "alice"
    assert (await authenticator.identify(signed(RSA, "RS256", headers={"kid": "rsa"}))).user_id == "alice"
    for token in (
        signed(EC, "ES256", headers={"kid": "rsa"}),
        signed(RSA, "RS256", headers={"kid": "ec"}),
        signed(RSA, "RS256", headers={"kid": "unknown"}),
        signed(RSA, "RS256"),
        signed(SECRET, "HS256", headers={"kid": "oct"}),
        signed(SECRET, "HS256", headers={"kid": "rsa"}),
    ):
        assert type(await refusal(authenticator, token)) is TokenInvalidError


async def test_keys_that_cannot_be_fetched_say_nothing_about_the_token(
    jwks: Callable[[list[dict[str, Any]]], Awaitable[str]],
) -> None:
    url = (await jwks([])).replace("/jwks.json", "/nothing-here")
    authenticator = Authenticator(make_settings(jwt_secret=None, jwt_jwks_url=url))
    error = await refusal(authenticator, signed(EC, "ES256", headers={"kid": "ec"}))
    assert type(error) is KeysUnavailableError


async def test_a_known_key_is_good_while_its_address_does_not_answer() -> None:
    asked, up = [], True
    ec_key = jwt.algorithms.ECAlgorithm.to_jwk(EC.public_key(), as_dict=True) | {"kid": "ec", "use": "sig"}

    async def answer(_request: web.Request) -> web.Response:
        asked.append(1)
        return web.json_response({"keys": [ec_key]}) if up else web.Response(status=503)

    app = web.Application()
    app.router.add_get("/jwks.json", answer)
    async with TestServer(app) as server:
        keys = PublishedKeys(str(server.make_url("/jwks.json")), lifespan=0.001)
        found = await asyncio.gather(*(keys.key("ec") for _ in range(20)))
        assert {key.key_id for key in found} == {"ec"}
        assert len(asked) == 1  # for all who waited

        up = False
        await asyncio.sleep(0.01)
        assert (await keys.key("ec")).key_id == "ec"  # stale, and good
        await eventually(lambda: len(asked) == 2)
        with pytest.raises(jwt.PyJWKClientConnectionError):
            await asyncio.gather(*(keys.key(f"unknown-{n}") for n in range(20)))
        assert len(asked) <= 3
        assert (await keys.key("ec")).key_id == "ec"


# Service keys, ids and tokens of our own


def test_a_service_key_is_known_whole() -> None:
    authenticator = by_secret(service_api_keys="first-key, zweiter-schlüssel")
    known = ["first-key", "zweiter-schlüssel"]
    strangers = ["", "first", "first-key2", "first-key,", "FIRST-KEY", "first-ke\udce9", "\ud83d"]
    assert [authenticator.knows_service_key(key) for key in known] == [True, True]
    assert [authenticator.knows_service_key(key) for key in strangers] == [False] * len(strangers)


def test_without_service_keys_none_is_known() -> None:
    authenticator = by_secret(service_api_keys="")
    assert not authenticator.knows_service_key("")


@pytest.mark.parametrize(
    ("value", "yes"), [("a", True), ("a" * 128, True), ("", False), ("a" * 129, False), (7, False)]
)
def test_an_id_is_1_to_128_characters(value: object, *, yes: bool) -> None:
    assert is_id(value) == yes


async def test_a_token_that_the_gateway_issues_it_accepts() -> None:
    settings = make_settings(
        jwt_secret=SECRET * 2, jwt_issuer="issuer", jwt_audience="gateway", jwt_algorithms="HS384,HS256"
    )
    now = int(time.time() * 1000)
    claims = {"tenant": "acme", "name": "Alice", "role": None}
    token = issue_token(settings, SECRET * 2, "alice", now=now, ttl=60, claims=claims)
    identity = await Authenticator(settings).identify(token)
    assert identity.expires_at is not None
    assert (identity.tenant, identity.user_id, identity.profile) == ("acme", "alice", Profile(name="Alice"))
    assert identity.expires_at // 1000 == int(now / 1000 + 60)
    assert jwt.get_unverified_header(token)["alg"] == "HS384"


@pytest.mark.parametrize("part", [0, 1, 2])
async def test_a_token_has_one_form(part: int) -> None:
    """What PyJWT refuses is refused, though most of what it looks at is looked at in another way."""
    assert "_decode_base64url_segment" in vars(jwt.PyJWS)
    authenticator = Authenticator(make_settings(jwt_secret=SECRET))
    token = make_token("alice")
    assert (await authenticator.identify(token)).user_id == "alice"
    for where, what in ((-1, "!"), (2, "\n"), (3, "+")):
        parts = token.split(".")
        parts[part] = parts[part][:where] + what + parts[part][where:]
        with pytest.raises(TokenInvalidError):
            await authenticator.identify(".".join(parts))
    signature = token.split(".")[2]
    spare = next(last for last in "ABCDEFGHIJ" if last != signature[-1])  # bits that no byte is made of
    with pytest.raises(TokenInvalidError):
        await authenticator.identify(token[:-1] + spare)
