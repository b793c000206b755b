"""A FastAPI application that is no gateway, and knows who is online: it follows the gateways' log in Redis.

Run it, beside a gateway with the same REDIS_URL::

    pip install fastapi uvicorn
    REDIS_URL=redis://127.0.0.1:6379/0 .venv/bin/python examples/in_fastapi.py
    curl -X POST 'http://127.0.0.1:8082/orders/42/shipped?user=alice'
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI

from gateway.client import PresenceClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

client = PresenceClient(
    os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"), prefix=os.environ.get("REDIS_PREFIX", "presence")
)


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Follow presence for as long as the application runs: one client for all requests."""
    async with client:
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/who")
async def who() -> dict[str, Any]:
    """Say who is there: a plain call, answered from memory."""
    return {"users": client.presence.online_users()}


@app.post("/orders/{order}/shipped")
async def shipped(order: int, user: str) -> dict[str, Any]:
    """Tell the customer on their page, where they have one open; else it waits for them, and they are mailed, too."""
    delivery = await client.notify(user, "notification", {"title": f"Order {order} is on its way"})
    return {"sentBy": "page" if delivery.method == "realtime" else "mail"}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8082")))
