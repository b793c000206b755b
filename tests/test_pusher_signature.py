"""What a Pusher application's secret signs, against the examples of Pusher's own documentation."""

import base64
import hashlib
import hmac

import pytest
from pusher.crypto import generate_shared_secret

from gateway.errors import SignatureError
from gateway.pusher.signature import TOLERANCE, Signer, master_key_of

SIGNER = Signer("278d425bdf160c739803", "7ad3773142a6692b25b8")
NOW = 1_353_088_179
PATH = "/apps/3/events"
BODY = b'{"name":"foo","channels":["project-3"],"data":"{\\"some\\":\\"data\\"}"}'
QUERY = {
    "auth_key": "278d425bdf160c739803",
    "auth_timestamp": str(NOW),
    "auth_version": "1.0",
    "body_md5": "ec365a775a4cd0599faeb73354201b6f",
    "auth_signature": "da454824c97ba181a32ccc17a72625ba02771f50b50e1e7430e47a1f3f457e6c",
}


def check(
    query: dict[str, str], *, path: str = PATH, body: bytes = BODY, now: float = NOW, method: str = "POST"
) -> None:
    SIGNER.check_request(method, path, query.items(), body, now)


def signed(**changes: str | None) -> dict[str, str]:
    """The query with changes, signed."""
    query = {name: value for name, value in (QUERY | changes).items() if value is not None}
    return query | {"auth_signature": SIGNER.request_signature("POST", PATH, query.items())}


def test_a_private_channel_is_signed_as_the_documentation_has_it() -> None:
    auth = SIGNER.channel_auth("1234.1234", "private-foobar")
    assert auth == "278d425bdf160c739803:58df8b0c36d6982b82c3ecf6b4662e34fe8c25bba48f5369f135bf843651c3a4"
    assert SIGNER.is_channel_auth(auth, "1234.1234", "private-foobar")
    assert not SIGNER.is_channel_auth(auth, "1234.1235", "private-foobar")
    assert not SIGNER.is_channel_auth(auth, "1234.1234", "private-foobaz")
    assert not SIGNER.is_channel_auth(auth, "1234.1234", "private-foobar", "{}")


def test_a_presence_channel_is_signed_with_who_the_client_is() -> None:
    data = '{"user_id":10,"user_info":{"name":"Mr. Channels"}}'
    auth = SIGNER.channel_auth("1234.1234", "presence-foobar", data)
    assert auth == "278d425bdf160c739803:31935e7d86dba64c2a90aed31fdc61869f9b22ba9d8863bba239c03ca481bc80"
    assert SIGNER.is_channel_auth(auth, "1234.1234", "presence-foobar", data)
    assert not SIGNER.is_channel_auth(auth, "1234.1234", "presence-foobar", data.replace("10", "11"))
    assert not SIGNER.is_channel_auth(auth, "1234.1234", "presence-foobar")


def test_an_encrypted_channel_has_the_secret_that_pushers_libraries_make() -> None:
    key = "01234567890123456789012345678901"  # as in the tests of pusher-http-python
    signer = Signer("key", "secret", key.encode())
    for channel in ("private-encrypted-tst", "private-encrypted-a=b;c"):
        right = base64.b64encode(generate_shared_secret(channel.encode(), key.encode())).decode()
        assert signer.shared_secret(channel) == right
    assert SIGNER.shared_secret("private-encrypted-tst") is None


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_a_master_key_has_32_bytes(length: int) -> None:
    assert master_key_of(base64.b64encode(bytes(32)).decode()) == bytes(32)
    with pytest.raises(ValueError, match="openssl rand -base64 32"):
        master_key_of(base64.b64encode(bytes(length)).decode())


def test_a_user_is_signed_as_the_documentation_has_it() -> None:
    data = '{"id":"12345"}'
    auth = SIGNER.user_auth("1234.1234", data)
    assert auth == "278d425bdf160c739803:4708d583dada6a56435fb8bc611c77c359a31eebde13337c16ab43aa6de336ba"
    assert SIGNER.is_user_auth(auth, "1234.1234", data)
    assert not SIGNER.is_user_auth(auth, "1234.1234", '{"id":"12346"}')


@pytest.mark.parametrize(
    "auth", ["", ":", "é", "\ud800", "278d425bdf160c739803", "278d425bdf160c739803:", "x" * 10_000]
)
def test_an_auth_of_another_form_is_wrong_and_no_more(auth: str) -> None:
    assert not SIGNER.is_channel_auth(auth, "1234.1234", "private-\ud800")
    assert not SIGNER.is_user_auth(auth, "1234.1234", "\ud800")


def test_a_list_is_signed_as_pushers_ruby_library_signs_it() -> None:
    query = [("name", "a&b"), ("channels[]", "c"), ("Info", "x"), ("channels[]", "a")]
    text = f"POST\n{PATH}\nchannels[]=c&channels[]=a&info=x&name=a&b"
    right = hmac.new(b"7ad3773142a6692b25b8", text.encode(), hashlib.sha256).hexdigest()
    assert SIGNER.request_signature("POST", PATH, query) == right


def test_a_request_is_signed_as_the_documentation_has_it() -> None:
    assert SIGNER.request_signature("POST", PATH, QUERY.items()) == QUERY["auth_signature"]
    check(QUERY)


def test_a_request_without_a_body_may_have_the_md5_of_nothing_or_none() -> None:
    check(signed(body_md5=None), body=b"")
    check(signed(body_md5=hashlib.md5(b"", usedforsecurity=False).hexdigest()), body=b"")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"auth_key": "other"}, "auth_key"),
        ({"auth_key": None}, "auth_key"),
        ({"auth_version": "2.0"}, "auth_version"),
        ({"body_md5": None}, "body_md5"),
        ({"body_md5": "0" * 32}, "body_md5"),
        ({"auth_timestamp": "soon"}, "auth_timestamp"),
        ({"auth_timestamp": None}, "auth_timestamp"),
        ({"auth_timestamp": "1" * 5000}, "auth_timestamp"),
        ({"auth_timestamp": str(NOW + 601)}, "clock"),
        ({"auth_timestamp": str(NOW - 601)}, "clock"),
    ],
)
def test_a_request_that_is_signed_and_wrong_is_told_what_is_wrong(changes: dict[str, str | None], said: str) -> None:
    with pytest.raises(SignatureError, match=said):
        check(signed(**changes))


@pytest.mark.parametrize("apart", [-TOLERANCE, 0, TOLERANCE])
def test_clocks_may_be_apart(apart: float) -> None:
    check(QUERY, now=NOW + apart)


def test_what_is_not_what_was_signed_is_refused() -> None:
    unsigned = {name: value for name, value in QUERY.items() if name != "auth_signature"}
    for query in (QUERY | {"auth_signature": "0" * 64}, unsigned, QUERY | {"more": "1"}):
        with pytest.raises(SignatureError, match="auth_signature"):
            check(query)
    with pytest.raises(SignatureError, match="auth_signature"):
        check(QUERY, path="/apps/4/events")
    with pytest.raises(SignatureError, match="auth_signature"):
        check(QUERY, method="GET")
    with pytest.raises(SignatureError, match="body_md5"):
        check(QUERY, body=BODY + b" ")
    with pytest.raises(SignatureError, match="twice"):
        SIGNER.check_request("POST", PATH, [*QUERY.items(), ("auth_key", "x")], BODY, NOW)


def test_a_webhook_is_signed_over_its_bytes() -> None:
    headers = SIGNER.webhook_headers(b'{"time_ms":1}')
    assert headers["X-Pusher-Key"] == SIGNER.key
    assert headers["X-Pusher-Signature"] == "3f3c8f57f3f51ae5342932b798313a0be49e6bcd6a0927f578554ab48a799fb8"
