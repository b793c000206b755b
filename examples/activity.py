"""A small application with sessions of its own, whose pages need no socket to be seen: any request says who is there.

Run it:  JWT_SECRET=$(openssl rand -hex 32) .venv/bin/python examples/activity.py
Try it:  curl -c jar -d name=alice localhost:8080/login && curl -b jar localhost:8080/who
"""

from __future__ import annotations

import os
import secrets

from aiohttp import web

from gateway import Gateway, Settings

GATEWAY = web.AppKey("gateway", Gateway)
SESSIONS = web.AppKey("sessions", dict[str, str])
"""User ids, by the cookie of their session."""


def user_of(request: web.Request) -> str | None:
    """Whose request this is, by the application's own session."""
    return request.app[SESSIONS].get(request.cookies.get("session", ""))


async def login(request: web.Request) -> web.Response:
    """Begin a session. A real application would look at a password here."""
    name = str((await request.post())["name"])
    session = secrets.token_urlsafe()
    request.app[SESSIONS][session] = name
    await request.app[GATEWAY].presence.set_online(name)
    response = web.json_response({"hello": name})
    response.set_cookie("session", session, httponly=True, samesite="Lax")
    return response


async def logout(request: web.Request) -> web.Response:
    """End the session: offline, unless a live connection says otherwise."""
    name = request.app[SESSIONS].pop(request.cookies.get("session", ""), None)
    if name is not None:
        await request.app[GATEWAY].presence.set_offline(name)
    return web.json_response({})


async def who(request: web.Request) -> web.Response:
    """Say who is there, to those who are logged in."""
    if user_of(request) is None:
        raise web.HTTPUnauthorized
    return web.json_response({"users": request.app[GATEWAY].presence.online_users()})


def create_app(settings: Settings) -> web.Application:
    """Make the application."""
    gateway = Gateway(settings)
    app = web.Application(middlewares=[gateway.activity_middleware(user_of)])
    app[GATEWAY] = gateway
    app[SESSIONS] = {}
    app.router.add_post("/login", login)
    app.router.add_post("/logout", logout)
    app.router.add_get("/who", who)
    gateway.attach(app)
    return app


if __name__ == "__main__":
    web.run_app(create_app(Settings()), host="127.0.0.1", port=int(os.environ.get("PORT", "8080")), access_log=None)
