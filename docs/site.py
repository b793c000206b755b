"""What `make docs` builds the site from: nothing is written a second time for it.

The pages are those of `docs/`, and some that stand elsewhere in the repository; links between them all lead to where
things are on the site. A file that is linked to and is no page, as a configuration or an example, comes along as it is.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
PAGES: Final = {
    "README.md": "overview.md",
    "CHANGELOG.md": "changelog.md",
    "deploy/README.md": "how-to/load-balancers.md",
    "benchmarks/profile.md": "design/profile.md",
    "docs/benchmarks.md": "design/benchmarks.md",
}
"""The pages that stand elsewhere in the repository than on the site."""

_HEADING = re.compile(r"^(#+) (.+)$")
_LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")


class BrokenLinkError(Exception):
    """A link of a page leads nowhere."""


@dataclass
class Site:
    """The pages of the site, by where they are there."""

    texts: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    """Where each is in the repository."""
    copied: set[str] = field(default_factory=set)
    """Files that pages link to, by where they are in the repository."""

    @classmethod
    def collect(cls) -> Site:
        """Read all pages.

        Raises:
            BrokenLinkError: one of them links to what is not there.
        """
        site = cls()
        for path in sorted((ROOT / "docs").rglob("*.md")):
            place = path.relative_to(ROOT).as_posix()
            site._add(PAGES.get(place, place.removeprefix("docs/")), place, path.read_text())
        for place, page in PAGES.items():
            site._add(page, place, (ROOT / place).read_text())
        for page, text in site.texts.items():
            site.texts[page] = "\n".join(
                line if fenced else _LINK.sub(lambda found, page=page: site._led(found[1], page), line)  # type: ignore[misc]
                for line, fenced in with_fences(text)
            )
        return site

    def write(self, to: Path) -> None:
        """Write them to an empty folder, with what they link to and what builds them."""
        for page, text in self.texts.items():
            path = to / page
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        for place in self.copied | {"docs/conf.py"}:
            path = to / (place.removeprefix("docs/") if place == "docs/conf.py" else _copy(place))
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / place, path)

    def _add(self, page: str, source: str, text: str) -> None:
        self.texts[page], self.sources[page] = text, source

    def _led(self, target: str, page: str) -> str:
        """A link of a page, to where it leads on the site."""
        path, _, place = target.partition("#")
        if "://" in path or path.startswith("mailto:"):
            return target
        source = self.sources[page]
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path)) if path else source
        if not (ROOT / file).is_file():
            raise BrokenLinkError(f"{source} links to {target}, which is not there")
        if place and file.endswith(".md") and place not in _places(file):
            raise BrokenLinkError(f"{source} links to {target}, and no heading is called that")
        to = next((to for to, where in self.sources.items() if where == file), "")
        if not to:
            self.copied.add(file)
            to = _copy(file)
        if to == page and place:
            return f"#{place}"
        led = posixpath.relpath(to, posixpath.dirname(page) or ".")
        return f"{led}#{place}" if place else led


def _places(file: str) -> set[str]:
    """What the headings of a page of the repository are called by links."""
    headings = (_HEADING.match(line) for line, fenced in with_fences((ROOT / file).read_text()) if not fenced)
    return {anchor(found[2]) for found in headings if found}


def _copy(place: str) -> str:
    return f"files/{place}"


def with_fences(text: str) -> Iterator[tuple[str, bool]]:
    """Each line, and whether it is of a block of code."""
    fenced = False
    for line in text.splitlines():
        fence = line.lstrip().startswith("```")
        yield line, fenced or fence
        fenced ^= fence


def anchor(heading: str) -> str:
    """What links call a heading, here and where the repository is read."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    try:
        Site.collect().write(target)
    except BrokenLinkError as error:
        sys.exit(f"docs: {error}")
