"""The types for TypeScript, as the compiler takes them together with the clients' own."""

from __future__ import annotations

import asyncio
import os

import pytest
from conftest import ROOT, require_program

COMPILER = ROOT / "node_modules" / "typescript" / "bin" / "tsc"
USES = ROOT / "tests" / "types"


async def compile_types(*arguments: str) -> tuple[int | None, str]:
    program = require_program("node")
    if not COMPILER.is_file():
        message = "typescript is not installed: npm ci"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    process = await asyncio.create_subprocess_exec(
        program, str(COMPILER), *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), 100)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, output.decode()


async def test_a_page_that_uses_them_rightly_compiles_and_each_wrong_use_is_refused() -> None:
    status, said = await compile_types("--project", str(USES))
    assert (status, said) == (0, "")  # a wrong use that is taken is an error, too: it has @ts-expect-error above it
