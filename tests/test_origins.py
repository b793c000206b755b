import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from structlog.testing import capture_logs

from gateway.access.origins import TOLD, Origins, is_loopback


def request(host: str = "gateway.example", **headers: str) -> web.Request:
    return make_mocked_request("GET", "/", {"Host": host} | {n.replace("_", "-"): v for n, v in headers.items()})


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True),  # no page
        ("http://gateway.example", True),  # the same origin
        ("https://app.example", True),
        ("https://other.example", False),
        ("http://app.example", False),
        ("https://app.example:444", False),
        ("https://app.example.evil.example", False),
        ("http://localhost:5173", False),
        ("null", False),
        ("", False),
        ("http://[", False),
    ],
)
def test_the_same_origin_and_those_allowed_by_name(origin: str | None, *, allowed: bool) -> None:
    assert Origins(["https://app.example"], dev=False).allows(origin, request()) == allowed


@pytest.mark.parametrize("origin", [None, "https://other.example", "null", "http://["])
def test_a_star_allows_any(origin: str | None) -> None:
    assert Origins(["*"], dev=False).allows(origin, request())


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost:5173", True),
        ("https://127.0.0.1", True),
        ("http://[::1]:8080", True),
        ("null", True),
        ("http://localhost.evil.example", False),
        ("http://evil.example/localhost", False),
        ("http://[", False),
    ],
)
def test_development_allows_this_machine_and_files(origin: str, *, allowed: bool) -> None:
    assert Origins([], dev=True).allows(origin, request()) == allowed


def test_the_same_origin_is_what_a_proxy_in_front_says_it_is() -> None:
    origins = Origins([], dev=False)
    behind = request("10.0.0.7:3000", X_Forwarded_Proto="https", X_Forwarded_Host="app.example")
    assert origins.allows("https://app.example", behind)
    assert origins.allows("https://gateway.example", request(X_Forwarded_Proto="https, http"))
    assert not origins.allows("https://gateway.example", request())


def test_behind_tls_a_page_of_plain_http_is_of_another_origin() -> None:
    origins = Origins([], dev=False)
    behind = request("app.example", X_Forwarded_Proto="https")
    assert not origins.allows("http://app.example", behind)
    assert origins.cookies(request("app.example", X_Forwarded_Proto="https", Origin="http://app.example")) == {}


@pytest.mark.parametrize(
    ("allowed", "origin", "cookies"),
    [
        ("*", "https://other.example", {}),
        ("*", "http://gateway.example", {"jwt": "t"}),
        ("*", None, {"jwt": "t"}),
        ("https://app.example", "https://app.example", {"jwt": "t"}),
    ],
)
def test_cookies_count_only_from_pages_that_are_trusted_by_name(
    allowed: str, origin: str | None, cookies: dict[str, str]
) -> None:
    headers = {"Cookie": "jwt=t"} | ({} if origin is None else {"Origin": origin})
    assert dict(Origins([allowed], dev=False).cookies(request(**headers))) == cookies


def test_loopback_by_name_and_address() -> None:
    names = ("localhost", "127.0.0.1", "::1", "example.org", None)
    assert [is_loopback(name) for name in names] == [True, True, True, False, False]


def test_a_page_that_is_refused_is_told_of_in_the_log_once_with_the_setting() -> None:
    origins = Origins([], dev=False)
    with capture_logs() as logs:
        for _ in range(3):
            assert not origins.allows("https://app.example", request())
        assert not origins.allows("https://other.example", request())
        assert origins.allows("http://gateway.example", request())
    assert [(entry["origin"], entry["log_level"]) for entry in logs] == [
        ("https://app.example", "warning"),
        ("https://other.example", "warning"),
    ]
    assert all("CORS_ALLOWED_ORIGINS" in entry["event"] for entry in logs)


def test_a_flood_of_origins_fills_neither_the_log_nor_the_memory() -> None:
    origins = Origins([], dev=False)
    with capture_logs() as logs:
        for number in range(1000):
            assert not origins.allows(f"https://{number}.example/{'x' * 1000}", request())
    assert len(logs) == TOLD
    assert max(len(entry["origin"]) for entry in logs) < 300
