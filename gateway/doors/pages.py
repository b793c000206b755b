"""The pages for people: the interactive test page, the API's documentation, and development tokens."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web
from swagger_ui import api_doc

from gateway import wire
from gateway.access.auth import issue_token
from gateway.access.origins import Origins, is_loopback
from gateway.doors.problems import problem
from gateway.errors import ForbiddenError, InvalidPayloadError
from gateway.wire import is_id

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any

    from gateway.settings import Settings

_PACKAGE = Path(__file__).resolve().parent.parent
_ROOT = _PACKAGE / "pages" if (_PACKAGE / "pages").is_dir() else _PACKAGE.parent
"""Inside an installed package; otherwise the top of the repository."""

_CLIENT = _ROOT / "node_modules" / "socket.io-client" / "dist"
"""Where npm installs the real client; a page that does not find it takes it from its CDN."""

_HEADERS = {
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}

_PAGE_HEADERS = _HEADERS | {
    # The page connects to whatever server its user names, and runs nothing but its own script and the client's.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' https://cdn.socket.io; style-src 'self'; img-src 'self' data:;"
        " connect-src *; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}

_ADMIN_HEADERS = _HEADERS | {
    # It has a service key: nothing of it goes elsewhere.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
}

_MODULE_HEADERS = {
    # Pages of any origin may import them, as they may the client's script; what is inside is no secret.
    "Access-Control-Allow-Origin": "*",
    "Cache-Control": "no-cache",  # which is to ask by ETag
    "X-Content-Type-Options": "nosniff",
}
_MODULE_TYPES = {".js": "text/javascript; charset=utf-8", ".ts": "text/plain; charset=utf-8"}

_PROXIED = frozenset({"X-Forwarded-For", "Forwarded", "Via"})

_DEV_TOKEN_TTL = 3600.0
"""Seconds."""


def add_pages(app: web.Application, openapi: dict[str, Any], *, admin: bool = True) -> None:
    """Add the test page, files and modules of pages, what describes the API and ``/docs``, and the operators' page."""
    document = msgspec.json.encode(openapi)

    async def page(_request: web.Request) -> web.StreamResponse:
        return web.FileResponse(_ROOT / "test-presence.html", headers=_PAGE_HEADERS)

    async def operators(_request: web.Request) -> web.StreamResponse:
        return web.FileResponse(_ROOT / "static" / "admin.html", headers=_ADMIN_HEADERS)

    async def elsewhere(_request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("../admin") if admin else web.HTTPNotFound(text="ADMIN_PAGE is false")

    async def describe(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=document, content_type="application/json")

    async def describe_events(_request: web.Request) -> web.StreamResponse:
        return web.FileResponse(_ROOT / "static" / "asyncapi.json")

    app.router.add_get("/test-presence.html", page)
    if admin:
        app.router.add_get("/admin", operators)
    app.router.add_get("/static/admin.html", elsewhere)  # where it would come without its headers
    app.router.add_get(r"/static/{file:presence-[a-z]+(\.js|\.d\.ts)}", _module)
    app.router.add_static("/static", _ROOT / "static")
    # Where Node's Socket.IO servers have it.
    app.router.add_get(r"/socket.io/{file:socket\.io(\.esm)?(\.min)?\.js(\.map)?}", _client)
    app.router.add_get("/openapi.json", describe)
    app.router.add_get("/asyncapi.json", describe_events)
    api_doc(app, config=openapi, url_prefix="/docs", title="Presence gateway", host_inject=False)


async def _client(request: web.Request) -> web.StreamResponse:
    path = _CLIENT / request.match_info["file"]
    if not path.is_file():
        raise web.HTTPNotFound(text="socket.io-client is not installed here: npm install socket.io-client")
    return web.FileResponse(path, headers={"Access-Control-Allow-Origin": "*"})


async def _module(request: web.Request) -> web.StreamResponse:
    path = _ROOT / "static" / request.match_info["file"]
    if not path.is_file():
        raise web.HTTPNotFound
    return web.FileResponse(path, headers={**_MODULE_HEADERS, "Content-Type": _MODULE_TYPES[path.suffix]})


def dev_token_handler(
    settings: Settings, secret: str, origins: Origins, now: Callable[[], int]
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """``GET /dev/token?user=alice``: a token for whoever asks from this machine. For development mode only."""

    async def handle(request: web.Request) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        if not _from_loopback(request) or not origins.allows(origin, request):
            return problem(ForbiddenError("development tokens are for this machine: ask 127.0.0.1, from it"))
        user_id = request.query.get("user", "")
        if not is_id(user_id):
            return problem(InvalidPayloadError("/dev/token takes ?user= with 1 to 128 characters"))
        claims = {name: request.query.get(name) for name in ("name", "avatar", "role")}
        claims[settings.jwt_tenant_claim] = request.query.get("tenant")
        issued_at = now()
        body = wire.DevToken(
            token=issue_token(settings, secret, user_id, now=issued_at, ttl=_DEV_TOKEN_TTL, claims=claims),
            user_id=user_id,
            expires_at=wire.timestamp(issued_at + round(_DEV_TOKEN_TTL * 1000)),
        )
        response = web.Response(body=wire.encode(body), content_type="application/json")
        if origin is not None:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Vary"] = "Origin"
        return response

    return handle


def _from_loopback(request: web.Request) -> bool:
    """Whether the request comes from this machine, was meant for it, and went through no proxy on it.

    A page elsewhere whose name was made to resolve to this machine has that name as its host.
    """
    try:
        meant_for_here = is_loopback(request.url.host)
        from_here = ip_address(request.remote or "").is_loopback
    except ValueError:
        return False
    return meant_for_here and from_here and not _PROXIED & request.headers.keys()
