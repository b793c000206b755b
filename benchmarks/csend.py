"""C's ``send()``, compiled where it is run: what the system takes for a broadcast, whoever writes the program."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_SOURCE = Path(__file__).resolve().parent / "send.c"


@contextmanager
def compiled() -> Iterator[Path | None]:
    """Compile the program, and give its path while the context lasts; None where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory, "send")
        subprocess.run([compiler, "-O2", "-o", program, _SOURCE], check=True)
        yield program


def send_microseconds(
    program: Path, connections: int, size: int, seconds: float, cores: tuple[int | None, int | None]
) -> float:
    """Run it.

    Args:
        program: as `compiled` gave it.
        connections: how many are sent to in turn.
        size: bytes that each is sent.
        seconds: how long it runs.
        cores: where sender and reader stay; None leaves them where they like.

    Returns:
        Microseconds of CPU per ``send()``.
    """
    places = ["-1" if core is None else str(core) for core in cores]
    command = [str(program), str(connections), str(size), str(seconds), *places]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(said) / 1000
