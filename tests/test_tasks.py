"""Tasks in the background."""

from __future__ import annotations

import asyncio

import pytest

from gateway.runtime.tasks import end, run


async def test_what_ends_by_a_mistake_says_so_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    async def mistaken() -> None:
        raise RuntimeError("a mistake")

    async def endless() -> None:
        await asyncio.Event().wait()

    tasks = [run(mistaken(), "Mistaken"), run(endless(), "Endless")]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.sleep(0)
    await end(tasks)
    said = capsys.readouterr().out
    assert "part=Mistaken" in said
    assert "a mistake" in said
    assert "Endless" not in said
