"""What the gateway is measured against: the contract's main requests on python-socketio and aiohttp, as they come.

The same names, answers and broadcasts; no grace period, no validation beyond types, no rate limits, no log. It
runs on asyncio's own loop with the standard library's JSON, which is what their users get.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

import jwt
import socketio
from aiohttp import web

NAMESPACE = "/ws/messages"

sio = socketio.AsyncServer(async_mode="aiohttp", namespaces=[NAMESPACE])
users: dict[str, dict[str, Any]] = {}
sockets: dict[str, set[str]] = {}
user_of: dict[str, str] = {}


def now() -> str:
    """The time, as the contract writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def status(user_id: str) -> dict[str, Any]:
    """A user's presence; of a user never seen, offline."""
    return users.get(user_id) or {
        "userId": user_id,
        "online": False,
        "status": "offline",
        "statusText": None,
        "lastActive": None,
        "connectedAt": None,
        "version": 0,
    }


def active(sid: str) -> str:
    """Every request counts as activity, as it does in the gateway."""
    timestamp = now()
    users[user_of[sid]]["lastActive"] = timestamp
    return timestamp


def invalid(message: str) -> dict[str, Any]:
    """The answer to a request that does not fit."""
    return {"event": "error", "error": {"code": "INVALID_PAYLOAD", "message": message}}


async def connect(sid: str, _environ: object, auth: dict[str, str]) -> None:
    """Let a client in; the first connection of a user is told to all others."""
    try:
        claims = jwt.decode(auth["token"], os.environ["JWT_SECRET"], algorithms=["HS256"])
    except jwt.PyJWTError as error:
        refusal = {"code": "TOKEN_INVALID", "message": str(error)}
        raise socketio.exceptions.ConnectionRefusedError(str(error), refusal) from None
    user_of[sid] = claims["sub"]
    # A task, because python-socketio sends its CONNECT packet after this handler.
    sio.start_background_task(announce, sid, claims["sub"], quiet="quiet" in claims)


async def announce(sid: str, user_id: str, *, quiet: bool) -> None:
    """Greet a connection, and tell all others where it is its user's first.

    Args:
        sid: the connection.
        user_id: whose it is.
        quiet: tell nobody: the benchmark fills the room, and no storm is measured.
    """
    mine = sockets.setdefault(user_id, set())
    mine.add(sid)
    timestamp = now()
    first = len(mine) == 1
    if first:
        user = status(user_id)
        user |= {"online": True, "status": "online", "version": user["version"] + 1}
        users[user_id] = user | {"lastActive": timestamp, "connectedAt": timestamp}
    greeting = {"userId": user_id, "socketId": sid, "timestamp": timestamp, "reconnect": False}
    await sio.emit("connected", greeting, to=sid, namespace=NAMESPACE)
    if first and not quiet:
        change = {name: users[user_id][name] for name in ("userId", "online", "status", "version")}
        await sio.emit("user-online", {**change, "timestamp": timestamp}, namespace=NAMESPACE, skip_sid=sid)


async def disconnect(sid: str, _reason: str) -> None:
    """The last connection of a user to go is told to all."""
    user_id = user_of.pop(sid)
    sockets[user_id].remove(sid)
    if not sockets[user_id]:
        user = users[user_id]
        user |= {"online": False, "status": "offline", "connectedAt": None, "version": user["version"] + 1}
        change = {name: user[name] for name in ("userId", "online", "status", "lastActive", "version")}
        await sio.emit("user-offline", {**change, "timestamp": now()}, namespace=NAMESPACE)


async def heartbeat(sid: str, _meta: object = None) -> dict[str, Any]:
    """Answer ``heartbeat``."""
    timestamp = active(sid)
    return {"event": "heartbeat-ack", "data": {"timestamp": timestamp, "lastActive": timestamp}}


async def check_user(sid: str, query: dict[str, Any]) -> dict[str, Any]:
    """Answer ``check-user-status``."""
    if not isinstance(query.get("userId"), str):
        return invalid("userId must be a string")
    timestamp = active(sid)
    return {"event": "user-status", "data": {**status(query["userId"]), "timestamp": timestamp}}


async def check_users(sid: str, query: dict[str, Any]) -> dict[str, Any]:
    """Answer ``check-users-status``."""
    if not isinstance(query.get("userIds"), list):
        return invalid("userIds must be a list")
    timestamp = active(sid)
    statuses = [status(user_id) for user_id in query["userIds"]]
    return {"event": "users-status", "data": {"statuses": statuses, "timestamp": timestamp}}


def main() -> None:
    """Serve until killed."""
    sio.on("connect", connect, namespace=NAMESPACE)
    sio.on("disconnect", disconnect, namespace=NAMESPACE)
    sio.on("heartbeat", heartbeat, namespace=NAMESPACE)
    sio.on("check-user-status", check_user, namespace=NAMESPACE)
    sio.on("check-users-status", check_users, namespace=NAMESPACE)
    app = web.Application()
    sio.attach(app)
    web.run_app(app, host=os.environ["HOST"], port=int(os.environ["PORT"]), access_log=None, print=None)


if __name__ == "__main__":
    main()
