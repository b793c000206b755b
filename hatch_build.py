"""Compiles what every message goes through, with mypyc and as C, as the package is built or installed.

The modules stay ordinary Python: where there is no C compiler, or it fails, they run as they are, and slower.
`GATEWAY_COMPILE` decides otherwise: ``always`` fails the build then, ``never`` compiles nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

CHOICES = ("auto", "always", "never")


class CompileHook(BuildHookInterface):  # type: ignore[type-arg]  # hatchling's own configuration
    """Puts what mypyc makes into the wheel, or, for an editable install, beside the sources."""

    PLUGIN_NAME = "custom"
    _made_in: tempfile.TemporaryDirectory[str] | None = None
    """Where what is compiled stays until it is in the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, before the files are gathered."""
        choice = os.environ.get("GATEWAY_COMPILE", "auto")
        if choice not in CHOICES:
            raise ValueError(f"GATEWAY_COMPILE is one of {', '.join(CHOICES)}")
        root = Path(self.root)
        if version == "editable":  # a wheel takes nothing of what an editable install goes on with: it is ignored
            for stale in (*root.glob("gateway__mypyc" + _suffix()), *root.glob("gateway/**/*" + _suffix())):
                stale.unlink()
        if choice == "never" or (choice == "auto" and not _can_compile()):
            self.app.display_warning("not compiled: the gateway runs as it is, and slower")
            return
        self._made_in = tempfile.TemporaryDirectory(prefix="gateway-build-")
        try:
            with contextlib.chdir(root):
                compiled = _compile(self.config["modules"], self.config["sources"], Path(self._made_in.name))
        except (Exception, SystemExit) as error:  # mypyc exits where it finds a type wrong
            if choice == "always":
                raise
            self.app.display_warning(f"not compiled: {error}; the gateway runs as it is, and slower")
            return
        if version == "editable":
            for name, file in compiled.items():
                shutil.copy(file, root / name)
        else:
            build_data["force_include"].update({str(file): name for name, file in compiled.items()})
            build_data["pure_python"] = False
            build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002 - hatchling's
        """Clean up, after the files were gathered."""
        if self._made_in is not None:
            self._made_in.cleanup()


def _suffix() -> str:
    return str(sysconfig.get_config_var("EXT_SUFFIX"))


def _can_compile() -> bool:
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    header = Path(sysconfig.get_path("include"), "Python.h")
    return shutil.which(compiler) is not None and header.exists()


def _compile(modules: list[str], sources: list[str], to: Path) -> dict[str, Path]:
    """Compile modules of the working directory, and what is written in C, which is for POSIX systems.

    Returns:
        Where each extension is, by where it belongs.
    """
    # Imported where they are needed: who compiles nothing needs neither.
    from mypyc.build import mypycify  # noqa: PLC0415
    from setuptools import Distribution, Extension  # noqa: PLC0415
    from setuptools.command.build_ext import build_ext  # noqa: PLC0415

    # The types have been checked elsewhere; here some libraries may be missing.
    options = ["--config-file=", "--ignore-missing-imports", "--follow-imports=silent", f"--cache-dir={to / 'cache'}"]
    extensions = mypycify(
        [*options, *modules], group_name="gateway", target_dir=str(to), opt_level="3", debug_level="0"
    )
    if os.name == "posix":
        extensions += [Extension(Path(each).with_suffix("").as_posix().replace("/", "."), [each]) for each in sources]
    command = build_ext(Distribution({"ext_modules": extensions}))
    command.build_lib, command.build_temp = str(to / "lib"), str(to / "temp")
    command.ensure_finalized()
    command.run()
    built = to / "lib"
    return {str(file.relative_to(built)): file for file in built.rglob("*" + _suffix())}
