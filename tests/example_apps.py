"""The example applications, served in this process."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from conftest import ROOT, make_settings


@asynccontextmanager
async def example(name: str, **settings: Any) -> AsyncIterator[str]:
    """Serve one, by its path under `examples/`, and give its address."""
    spec = importlib.util.spec_from_file_location(name.rpartition("/")[2], ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    runner = web.AppRunner(module.create_app(make_settings(**settings)), access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    yield f"http://{host}:{port}"
    await runner.cleanup()
