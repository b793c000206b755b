"""The pages of docs/how-to for front ends: their code runs as it stands there."""

from __future__ import annotations

import asyncio
from pathlib import Path

import documents
import pytest
from conftest import ROOT, Process, require_program
from test_js_client import Spawn, run_tests
from test_types import compile_types


def blocks(page: str, language: str) -> list[str]:
    return [each.text for each in documents.blocks(ROOT / "docs" / page) if each.language == language]


@pytest.fixture
async def dev(spawn: Spawn) -> Process:
    return await spawn("--dev", PRESENCE_OFFLINE_GRACE="0.2")


async def take_modules(page: str, gateway: Process, folder: Path) -> None:
    """Do what the page says to do first."""
    require_program("curl")
    [lines] = blocks(page, "sh")
    assert "http://127.0.0.1:3000/" in lines
    process = await asyncio.create_subprocess_exec(
        "bash", "-euc", lines.replace("http://127.0.0.1:3000", gateway.url), cwd=folder
    )
    assert await asyncio.wait_for(process.wait(), 30) == 0
    (folder / "node_modules").symlink_to(ROOT / "node_modules")
    (folder / "package.json").write_text('{"type": "module"}')


async def test_the_page_in_react_shows_who_is_online(dev: Process, tmp_path: Path) -> None:
    await take_modules("how-to/react.md", dev, tmp_path)
    [code] = blocks("how-to/react.md", "jsx")
    assert "'http://127.0.0.1:3000'" in code
    (tmp_path / "src" / "page.jsx").write_text(code.replace("http://127.0.0.1:3000", dev.url))
    folder = str(tmp_path / "src")
    options = ("--allowJs", "--jsx", "react-jsx", "--module", "esnext", "--moduleResolution", "bundler")
    assert await compile_types(f"{folder}/page.jsx", *options, "--target", "es2022", "--outDir", folder) == (0, "")
    await run_tests(dev, "how-to.test.mjs", "websocket", PAGE=f"{folder}/page.js")


async def test_the_page_in_vue_shows_who_is_online(dev: Process, tmp_path: Path) -> None:
    await take_modules("how-to/vue.md", dev, tmp_path)
    [component], [main] = blocks("how-to/vue.md", "vue"), blocks("how-to/vue.md", "js")
    assert "'http://127.0.0.1:3000'" in main
    main = main.replace("http://127.0.0.1:3000", dev.url).replace("./App.vue", "./App.js")
    (tmp_path / "src" / "main.js").write_text(main)
    (tmp_path / "src" / "App.vue").write_text(component)
    code = """
        import { readFileSync, writeFileSync } from 'node:fs';
        import { compileScript, parse } from 'vue/compiler-sfc';
        const { descriptor, errors } = parse(readFileSync('src/App.vue', 'utf8'));
        if (errors.length) throw errors[0];
        writeFileSync('src/App.js', compileScript(descriptor, { id: 'app', inlineTemplate: true }).content);
    """
    compiler = await asyncio.create_subprocess_exec(
        require_program("node"), "--input-type=module", "--eval", code, cwd=tmp_path
    )
    assert await asyncio.wait_for(compiler.wait(), 60) == 0
    await run_tests(dev, "how-to.test.mjs", "websocket", PAGE=str(tmp_path / "src" / "main.js"))


async def test_the_typed_client_of_the_reference_compiles(tmp_path: Path) -> None:
    [code] = blocks("reference/events.md", "ts")
    (tmp_path / "node_modules").symlink_to(ROOT / "node_modules")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "presence-events.d.ts").write_text((ROOT / "static" / "presence-events.d.ts").read_text())
    (tmp_path / "page.ts").write_text(code)
    options = ("--noEmit", "--strict", "--target", "es2022", "--module", "nodenext", "--types", "")
    assert await compile_types(*options, str(tmp_path / "page.ts")) == (0, "")
    (tmp_path / "page.ts").write_text(code.replace('"user-online"', '"user-on-line"'))
    status, said = await compile_types(*options, str(tmp_path / "page.ts"))
    assert status != 0
    assert "user-on-line" in said
