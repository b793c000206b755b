"""The pages of the documentation, and the blocks of code in them."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from conftest import ROOT

PAGES = sorted(
    [ROOT / "README.md", ROOT / "deploy" / "README.md", *(ROOT / "docs").rglob("*.md")], key=lambda page: page.parts
)
_BLOCK = re.compile(
    r"(?:^(?P<indent> *)<!-- (?P<mark>[^\n]*) -->\n)?"
    r"^(?P<inner> *)```(?P<language>[^\n]*)\n(?P<text>.*?)^(?P=inner)```$",
    re.DOTALL | re.MULTILINE,
)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block of code."""

    page: Path
    line: int
    heading: str
    """The nearest one above it."""
    mark: str
    """What the comment before it says of how it is run; empty for none."""
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: str | Path) -> Iterator[Block]:
    """All of a page, which is named by its path in the repository, from its beginning."""
    path = ROOT / page
    text, heading, begun = path.read_text(), "", 0
    for found in _BLOCK.finditer(text):
        headings = _HEADING.findall(text[begun : found.start()])
        heading, begun = (headings[-1] if headings else heading), found.end()
        line = text.count("\n", 0, found.start()) + 1
        code = textwrap.dedent(found["text"]) if found["inner"] else found["text"]
        yield Block(path, line, heading, found["mark"] or "", found["language"].strip(), code)


def block(page: str, *, mark: str = "", under: str | None = None, language: str | None = None) -> str:
    """The one block of a page whose mark begins so, that stands under this heading, and is of this language."""
    (found,) = (
        each
        for each in blocks(page)
        if each.mark.startswith(mark) and under in {None, each.heading} and language in {None, each.language}
    )
    return found.text
