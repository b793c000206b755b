"""What is sent of a Lua script."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import pytest
from conftest import STEP
from redis.exceptions import ResponseError
from redis_servers import RedisServer

from gateway.redis.commands import Script
from gateway.redis.connection import connect, pipeline
from gateway.redis.scripts import stripped

TRICKY = r"""-- A header.
local a = '--' .. "-- it's" --  a "comment'
  local b = "\"--" .. '\'--' .. '\\' -- \' after it
local c = [[
  --[[ stays
]] .. [==[ ]] --
    ]=] stays ]==]
if #c > 0 then--[[ a long one ]]b = b .. '!'
	end --[==[ of several
  lines ]] --
]==] local d = 5 --[ a short one
local e = d - -d -- -
local f = { { a, b }, { [c] = { [({ 1 })[1]] = '[[' } } } --[=
return { a, b, c, d, e, f[1][2], f[2][c][1] } -- ends without a line's end"""


@pytest.mark.parametrize(
    ("script", "left"),
    [
        ("", ""),
        ("-- all of it", ""),
        ("-- one\n-- two\n\nreturn 1\n", "\n\n\nreturn 1\n"),
        ("  return 1  -- one\n", "return 1\n"),
        ("if a then\n\t  b()\nend", "if a then\nb()\nend"),
        ("return '  -- a'  ", "return '  -- a'"),
        ("return 'a\\\n  -- b'", "return 'a\\\n  -- b'"),
        ("return [[\n  -- a\n  ]]", "return [[\n  -- a\n  ]]"),
        ("return a--[[one]]or b", "return a or b"),
        ("return a --[[one\n two]] or b", "return a\n or b"),
        ("return a --[=[ ]] ]=] - b", "return a  - b"),
        ("return a --[one\n  , b", "return a\n, b"),
        ("return a[b[c[1]]], '-' -- d", "return a[b[c[1]]], '-'"),
    ],
)
def test_comments_and_indentation_go_and_all_else_stays(script: str, left: str) -> None:
    assert stripped(script) == left


async def test_to_redis_a_script_without_its_comments_is_the_same(shared_redis: RedisServer) -> None:
    texts: list[Any] = [await shared_redis.cli("EVAL", text, 0) for text in (TRICKY, stripped(TRICKY))]
    assert texts[0] == texts[1]
    assert texts[0][2] == "  --[[ stays\n ]] --\n    ]=] stays "


async def test_an_error_names_the_line_that_was_written(redis_url: str) -> None:
    text = "-- one\n--[[ two\nthree ]]\n  -- four\n  error('here')\n"
    client = connect(redis_url, timeout=STEP)
    [error] = await pipeline(client, [["EVAL", Script(text).text, 0]])
    assert isinstance(error, ResponseError)
    assert "user_script:5: here" in str(error)
    await client.aclose()


def test_what_is_sent_of_every_script_is_much_less_and_has_as_many_lines() -> None:
    paths = [path for folder in files("gateway").iterdir() if folder.is_dir() for path in (folder / "lua",)]
    texts = [path.read_text() for folder in paths if folder.is_dir() for path in folder.iterdir()]
    assert len(texts) > 20
    for text in texts:
        assert stripped(text).count("\n") == text.count("\n")
        assert not [line for line in stripped(text).splitlines() if line.startswith((" ", "--"))]
    assert sum(len(stripped(text).encode()) for text in texts) < 0.75 * sum(len(text.encode()) for text in texts)
