"""HTTP errors as ``application/problem+json`` (RFC 9457)."""

from __future__ import annotations

import errno
import math
from http import HTTPStatus
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from gateway import wire
from gateway.errors import ForbiddenError, InvalidPayloadError, NotFoundError, RefusedError, RequestError

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give errors that aiohttp raises by itself, such as for an unknown path, the form of the gateway's own errors."""
    try:
        return await handler(request)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return problem(NotFoundError("there is no such file"))
    except web.HTTPClientError as error:
        kind = {HTTPStatus.FORBIDDEN: ForbiddenError, HTTPStatus.NOT_FOUND: NotFoundError}
        said = kind.get(HTTPStatus(error.status), InvalidPayloadError)(_said_of(request, error))
        response = problem(said, error.status)
        response.headers.update({name: error.headers[name] for name in ("Allow", "Upgrade") if name in error.headers})
        return response


def _said_of(request: web.Request, error: web.HTTPClientError) -> str:
    if isinstance(error, web.HTTPMethodNotAllowed):
        return f"{request.path} takes {', '.join(sorted(error.allowed_methods))}, not {request.method}"
    if error.text == f"{error.status}: {error.reason}":  # aiohttp's own
        more = "; /docs shows what there is" if error.status == HTTPStatus.NOT_FOUND else ""
        return (
            f"there is nothing at {request.path}{more}" if more else f"{request.method} {request.path}: {error.reason}"
        )
    return f"{request.method} {request.path}: {error.text}"


def problem(error: RequestError | RefusedError, status: int | None = None) -> web.Response:
    """Make the response that reports an error, as RFC 9457 describes it.

    Args:
        error: what went wrong.
        status: the HTTP status; None for the error's own.
    """
    status = error.http_status if status is None else status
    retry_after = error.retry_after if isinstance(error, RequestError) else None
    body = wire.Problem(
        title=HTTPStatus(status).phrase,
        status=status,
        detail=str(error),
        code=error.code,
        retry_after=msgspec.UNSET if retry_after is None else retry_after,
    )
    response = web.Response(body=wire.encode(body), status=status, content_type="application/problem+json")
    if status == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    if retry_after is not None:
        response.headers["Retry-After"] = str(math.ceil(retry_after))
    return response
