"""C's ``send()``, compiled where it is run: what the system takes for a broadcast, whoever writes the program."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Rhythm:
    """How broadcasts follow each other, and how they are read: a ``send()`` costs by this what it costs.

    Attributes:
        apart: seconds from the beginning of one broadcast to that of the next, at least; 0 where each follows at once.
        reading: seconds that the reader takes for each message, at least. One that is done at once sleeps again, and
            each ``send()`` pays for waking it.
    """

    apart: float = 0.0
    reading: float = 0.0


AT_ONCE = Rhythm()


def send_microseconds(
    program: Path, connections: int, size: int, seconds: float, rhythm: Rhythm, cores: tuple[int | None, int | None]
) -> float:
    """Run it.

    Args:
        program: as `compiled` gave it.
        connections: how many are sent to in turn.
        size: bytes that each is sent.
        seconds: how long it runs.
        rhythm: of the broadcasts.
        cores: where sender and reader stay; None leaves them where they like.

    Returns:
        Microseconds of CPU per ``send()``.
    """
    places = ["-1" if core is None else str(core) for core in cores]
    command = [str(program), str(connections), str(size), str(seconds), str(rhythm.apart)]
    command += [str(rhythm.reading), *places]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(said) / 1000
