"""An application of its own, with the gateway inside: it asks who is there before it decides how to notify.

Run it, in the environment that make set up (another port: PORT=8081)::

    export JWT_SECRET=change-me-to-32-characters-or-more
    .venv/bin/python examples/notifications.py

and, as the backend that has something to say::

    curl -X POST http://127.0.0.1:8080/orders/42/shipped -d '{"userId": "alice"}'

The answer is that she was mailed. Now be alice: open http://127.0.0.1:8080/test-presence.html, paste the token that
``.venv/bin/python -m gateway token alice`` prints, and connect. The same curl is answered with ``page``, and the
page's log shows the ``notification``.
"""

from __future__ import annotations

import os

import structlog
from aiohttp import web

from gateway import Gateway, Settings, Transition

log = structlog.get_logger("example")
GATEWAY = web.AppKey("gateway", Gateway)
OUTBOX = web.AppKey("outbox", list[str])


async def order_shipped(request: web.Request) -> web.Response:
    """``POST /orders/{id}/shipped {"userId"}``: tell the customer, where they are."""
    gateway = request.app[GATEWAY]
    user_id = (await request.json())["userId"]
    order_id = request.match_info["id"]
    if gateway.presence.status(user_id).online:
        delivery = await gateway.notify(user_id, "notification", {"title": f"Order {order_id} is on its way"})
        if delivery.method == "realtime":  # otherwise it waits until they open a page
            return web.json_response({"sentBy": "page"})
    request.app[OUTBOX].append(user_id)  # where a real application hands a mail to its mailer
    return web.json_response({"sentBy": "mail"})


async def who_is_here(request: web.Request) -> web.Response:
    """``GET /who``: a plain call, answered from memory."""
    presence = request.app[GATEWAY].presence
    return web.json_response({"count": presence.online_count(), "users": presence.online_users()})


def create_app(settings: Settings) -> web.Application:
    """The application's own routes, and the gateway's beside them."""
    app = web.Application()
    app.router.add_post("/orders/{id}/shipped", order_shipped)
    app.router.add_get("/who", who_is_here)

    gateway = Gateway(settings)
    gateway.attach(app)
    app[GATEWAY] = gateway
    app[OUTBOX] = []

    @gateway.on("user-online")
    async def welcome(change: Transition) -> None:
        log.info("welcome", user=change.user_id, name=change.now.profile.name)

    return app


if __name__ == "__main__":
    # No access log: its lines would hold the tokens of ?token=.
    web.run_app(create_app(Settings()), host="127.0.0.1", port=int(os.environ.get("PORT", "8080")), access_log=None)
