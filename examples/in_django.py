"""A Django application that is no gateway, and knows who is online: it follows the gateways' log in Redis.

Run it, beside a gateway with the same REDIS_URL::

    pip install django uvicorn
    REDIS_URL=redis://127.0.0.1:6379/0 .venv/bin/python examples/in_django.py
    curl http://127.0.0.1:8083/who

Its views are async, by ASGI. Where yours are not, run the client in an event loop of a thread of its own: reads such as
``client.presence.online_users()`` are plain calls from there, too.
"""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING, Any

import django
import uvicorn
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import JsonResponse
from django.urls import path

from gateway.client import PresenceClient

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from django.http import HttpRequest

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["127.0.0.1"], SECRET_KEY=secrets.token_hex())
django.setup()

client = PresenceClient(
    os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"), prefix=os.environ.get("REDIS_PREFIX", "presence")
)


async def who(_request: HttpRequest) -> JsonResponse:
    """Say who is there: a plain call, answered from memory."""
    return JsonResponse({"users": client.presence.online_users()})


async def status(_request: HttpRequest, user: str) -> JsonResponse:
    """Say how somebody is, and since when."""
    found = client.presence.status(user)
    return JsonResponse({"online": found.online, "status": found.status, "lastActive": found.last_active})


urlpatterns = [path("who", who), path("users/<str:user>", status)]
django_application = get_asgi_application()


async def application(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Django's application, with what it leaves to others: beginning and end, for which the client lives."""
    if scope["type"] != "lifespan":
        await django_application(scope, receive, send)
        return
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await client.start()
            await send({"type": "lifespan.startup.complete"})
        else:
            await client.close()
            await send({"type": "lifespan.shutdown.complete"})
            return


if __name__ == "__main__":
    uvicorn.run(application, host="127.0.0.1", port=int(os.environ.get("PORT", "8083")))
