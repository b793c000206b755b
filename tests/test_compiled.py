"""What is compiled is all of it, and what its sources say."""

import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib import import_module
from pathlib import Path

import pytest
from conftest import ROOT

from gateway.engine import sending

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HOOK = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]
MODULES = [ROOT / name for name in HOOK["modules"]]
SOURCES = [*MODULES, *(ROOT / name for name in HOOK["sources"])]

SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))
COMPILED_BEFORE = "gateway/access/buckets" + SUFFIX


def extension_of(source: Path) -> Path | None:
    """What a module was compiled to; None where it was not."""
    extension = source.with_suffix(SUFFIX)
    return extension if extension.exists() else None


def test_all_are_compiled_or_none() -> None:
    compiled = {source.exists() and extension_of(source) is not None for source in SOURCES}
    assert len(compiled) == 1
    # A machine that runs the whole suite has a compiler.
    assert compiled == {True} or not os.environ.get("CI") or shutil.which("cc") is None


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_none_is_older_than_its_source(source: Path) -> None:
    extension = extension_of(source)
    assert extension is None or extension.stat().st_mtime >= source.stat().st_mtime, "run make .venv/runtime"


@pytest.mark.parametrize("source", MODULES, ids=lambda source: source.stem)
def test_the_suite_runs_what_it_is_told_to(source: Path) -> None:
    module = import_module(".".join(source.relative_to(ROOT).with_suffix("").parts))
    expected = source if os.environ.get("GATEWAY_COMPILE") == "never" else extension_of(source) or source
    assert Path(str(module.__file__)) == expected


def test_the_suite_sends_by_what_it_is_told_to() -> None:
    compiled = extension_of(ROOT / "gateway" / "engine" / "_sending.c") is not None
    in_python = sending.send_each is sending.send_each_in_python
    assert in_python == (os.environ.get("GATEWAY_COMPILE") == "never" or not compiled)


def build(to: Path, choice: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Build a wheel of a copy of the sources, by the build hook alone; the copy has been compiled before."""
    program = (
        "import sys; from hatchling.builders.wheel import WheelBuilder;"
        "print(*WheelBuilder(sys.argv[1]).build(directory=sys.argv[2], versions=['standard']))"
    )
    folder = to / "source"
    for name in ("gateway", "static"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (folder / COMPILED_BEFORE).touch()
    for name in (".gitignore", "pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "test-presence.html"):
        shutil.copy(ROOT / name, folder / name)
    return subprocess.run(
        [sys.executable, "-c", program, str(folder), str(to)],
        env={**os.environ, "GATEWAY_COMPILE": choice, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_a_compiler_the_gateway_is_built_as_it_is(tmp_path: Path) -> None:
    built = build(tmp_path, "auto", PATH="/nowhere")
    assert built.returncode == 0, built.stderr
    assert "not compiled" in built.stdout + built.stderr
    assert [wheel.name for wheel in tmp_path.glob("*.whl")] == ["presence_gateway-0.1.0-py3-none-any.whl"]


def test_a_wheel_leaves_what_was_compiled_where_it_is(tmp_path: Path) -> None:
    built = build(tmp_path, "never")
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "source" / COMPILED_BEFORE).exists()
    [wheel] = tmp_path.glob("*.whl")
    assert COMPILED_BEFORE not in zipfile.ZipFile(wheel).namelist()


def test_a_wheel_has_the_modules_for_browsers(tmp_path: Path) -> None:
    built = build(tmp_path, "never")
    assert built.returncode == 0, built.stderr
    [wheel] = tmp_path.glob("*.whl")
    modules = {f"gateway/pages/static/{path.name}" for path in (ROOT / "static").glob("presence-*")}
    assert "gateway/pages/static/presence-client.d.ts" in modules
    assert modules <= set(zipfile.ZipFile(wheel).namelist())


def test_an_editable_install_leaves_what_another_python_has_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_COMPILE", "never")
    (tmp_path / "gateway").mkdir()
    compiled = [tmp_path / f"{name}{end}" for end in (SUFFIX, ".other.so") for name in ("gateway__mypyc", "gateway/a")]
    for extension in compiled:
        extension.touch()
    hook = runpy.run_path(str(ROOT / "hatch_build.py"))["CompileHook"]
    hook(str(tmp_path), {}, None, None, "", "wheel").initialize("editable", {})
    assert [extension.exists() for extension in compiled] == [False, False, True, True]


def failing_compiler(folder: Path) -> dict[str, str]:
    """An environment in which mypyc fails as it does where it finds a type wrong."""
    package = folder / "modules" / "mypyc"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "build.py").write_text("def mypycify(*_, **__): raise SystemExit('a type is wrong')\n")
    return {"PYTHONPATH": str(package.parent)}


def test_where_compiling_fails_the_gateway_is_built_as_it_is(tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    built = build(tmp_path, "auto", TMPDIR=str(temporary), **failing_compiler(tmp_path))
    assert built.returncode == 0, built.stderr
    assert "not compiled: a type is wrong" in built.stdout + built.stderr
    assert [wheel.name for wheel in tmp_path.glob("*.whl")] == ["presence_gateway-0.1.0-py3-none-any.whl"]
    assert list(temporary.iterdir()) == []


def test_where_compiling_fails_that_must_not_there_is_no_build(tmp_path: Path) -> None:
    built = build(tmp_path, "always", **failing_compiler(tmp_path))
    assert built.returncode != 0
    assert "a type is wrong" in built.stderr


def test_a_choice_that_is_none_stops_the_build(tmp_path: Path) -> None:
    built = build(tmp_path, "sometimes")
    assert built.returncode != 0
    assert "GATEWAY_COMPILE is one of auto, always, never" in built.stderr
