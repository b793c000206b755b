"""Tasks in the background."""

from __future__ import annotations

import asyncio

import pytest

from gateway.runtime.tasks import PART, end, in_parts, run


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


async def test_of_what_is_much_a_part_is_done_at_once_and_all_of_it_whatever_fails() -> None:
    at_once, most, done = 0, 0, 0

    async def step(number: int) -> None:
        nonlocal at_once, most, done
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0)
        at_once -= 1
        done += 1
        if number in {7, 300}:
            raise RuntimeError(f"step {number}")

    with pytest.raises(RuntimeError, match="step 7"):
        await in_parts(step(number) for number in range(6 * PART + 1))
    assert (most, done) == (PART, 6 * PART + 1)
    await in_parts([])
