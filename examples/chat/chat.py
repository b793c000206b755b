"""A chat: rooms, who is here, who is typing, messages between two people, and what they have read.

Run it:  .venv/bin/python examples/chat/chat.py     and open http://127.0.0.1:8080 in two windows, one of them private
Another port:  PORT=8081 .venv/bin/python examples/chat/chat.py
"""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path

import jwt
from aiohttp import web

from gateway import Gateway, Settings

HERE = Path(__file__).resolve().parent
SECRET = web.AppKey("secret", str)
TTL = 3600
"""Seconds that a token is good for."""


async def login(request: web.Request) -> web.Response:
    """Give a visitor a token for the name they chose. A real application would look at a password here."""
    name = str((await request.json())["name"]).strip()
    user_id = "".join(letter for letter in name.lower() if letter.isascii() and letter.isalnum())
    if not user_id:
        raise web.HTTPBadRequest(text="a name has at least one letter or digit")
    claims = {"sub": user_id, "name": name[:40], "exp": int(time.time()) + TTL}
    return web.json_response({"userId": user_id, "token": jwt.encode(claims, request.app[SECRET])})


async def page(_request: web.Request) -> web.FileResponse:
    """Show the chat."""
    return web.FileResponse(HERE / "index.html")


def create_app(settings: Settings) -> web.Application:
    """Make the application: its own two routes, and the gateway's."""
    if settings.jwt_secret is None:
        raise ValueError("the chat signs its users' tokens itself: set JWT_SECRET")
    app = web.Application()
    app[SECRET] = settings.jwt_secret.get_secret_value()
    app.router.add_get("/", page)
    app.router.add_post("/login", login)
    app.router.add_static("/chat", HERE)
    Gateway(settings).attach(app)
    return app


if __name__ == "__main__":
    os.environ.setdefault("JWT_SECRET", secrets.token_hex(32))  # for this run; whoever is in has to come in again
    web.run_app(create_app(Settings()), host="127.0.0.1", port=int(os.environ.get("PORT", "8080")), access_log=None)
