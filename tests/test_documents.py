"""The documentation holds together: the site builds, links lead somewhere, and code is run or says why not."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from documents import PAGES, Block, blocks

from gateway import Settings

BLOCKS = [each for page in PAGES for each in blocks(page)]
TEXT = {"", "text", "{toctree}", "{eval-rst}"}
"""What is no code: drawings, output, and Sphinx's own."""
NO_SETTINGS = {"CONNECT_ERROR", "RATE_LIMITED", "PUSHER_HOST", "PUSHER_PORT", "PUSHER_SCHEME"}
"""A packet of Socket.IO's, a code, and settings of Laravel's, which look like settings."""


@pytest.mark.parametrize("each", BLOCKS, ids=str)
def test_every_block_of_code_is_run_or_says_why_not(each: Block) -> None:
    if each.language == "json":
        json.loads(each.text)
    elif each.language not in TEXT and not each.mark.startswith("not run: "):
        test = re.search(r"run by (tests/\S+\.(?:py|mjs|js|ts))$", each.mark)
        assert test is not None, f"{each}: a comment before it says `run by tests/…`, or `not run: ` and why"
        source = (ROOT / test[1]).read_text()
        assert each.page.name in source, f"{test[1]} runs nothing of {each.page.name}"
        if each.page == ROOT / "README.md":
            assert f'"{each.heading}"' in source, f"{test[1]} runs nothing that is under {each.heading}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_setting_that_is_named_is_one(page: Path) -> None:
    known = {name.upper() for name in Settings.model_fields}
    parts = {part for name in known for part in (name.split("_")[0],)}
    named = set(re.findall(r"`([A-Z]+_[A-Z_]*[A-Z])`", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)))
    assert {name for name in named if name.split("_")[0] in parts} - NO_SETTINGS <= known


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `make docs` builds it: what Sphinx warns of is an error."""
    folder = tmp_path_factory.mktemp("docs")
    for command in (
        [sys.executable, "docs/site.py", str(folder / "source")],
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(folder / "source"), str(folder)],
    ):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_has_every_page_and_a_search(site: Path) -> None:
    assert "searchindex" in (site / "search.html").read_text()
    index = (site / "searchindex.js").read_text()
    moved = {
        "README": "overview",
        "deploy/README": "how-to/load-balancers",
        "docs/benchmarks": "docs/design/benchmarks",
    }
    for page in PAGES:
        name = str(page.relative_to(ROOT).with_suffix(""))
        built = site / f"{moved.get(name, name).removeprefix('docs/')}.html"
        assert built.is_file(), f"{built} is not built"
    assert "tutorial" in index
    assert "presenc" in index


def test_every_link_of_the_site_leads_somewhere(site: Path) -> None:
    places = {
        path: set(re.findall(r'\bid="([^"]+)"', path.read_text())) for path in site.rglob("*.html") if path.is_file()
    }
    broken = []
    for path in places:
        for target in re.findall(r'<a [^>]*?href="([^"]+)"', path.read_text()):
            file, _, place = target.partition("#")
            if "://" in file or file.startswith("mailto:"):
                continue
            to = (path.parent / file).resolve() if file else path
            if not to.is_file() or (place and to.suffix == ".html" and place not in places[to]):
                broken.append(f"{path.relative_to(site)}: {target}")
    assert broken == []


def test_a_link_that_leads_nowhere_fails_the_build(tmp_path: Path) -> None:
    copy = tmp_path / "repository"  # others build the site of this one meanwhile
    unneeded = shutil.ignore_patterns(".*", "node_modules", "build", "output", "__pycache__", "*.so")
    shutil.copytree(ROOT, copy, ignore=unneeded)
    (copy / "docs" / "lost.md").write_text("# Lost\n\n[nowhere](../README.md#no-such-heading)\n")
    done = subprocess.run(
        [sys.executable, copy / "docs" / "site.py", str(tmp_path / "source")],
        cwd=copy,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "no heading is called that" in done.stderr
