"""Writes what the gateway is made of, as CycloneDX in JSON: ``python tools/sbom.py [FILE]``.

From the lock file, and nothing else: the same lock file makes the same document, byte for byte. What is only for some
platforms has its marker as a property; the hashes are those of all files that may be installed.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"


def main() -> int:
    """Write it to a file, or to the standard output."""
    document = make(LOCK.read_text(), tomllib.loads((ROOT / "pyproject.toml").read_text())["project"], version())
    if (wrong := JsonStrictValidator(SchemaVersion.V1_6).validate_str(document)) is not None:
        print(f"sbom: not as CycloneDX has it: {wrong}", file=sys.stderr)
        return 1
    if sys.argv[1:]:
        Path(sys.argv[1]).parent.mkdir(parents=True, exist_ok=True)
        Path(sys.argv[1]).write_text(document)
    else:
        print(document, end="")
    return 0


def version() -> str:
    """The gateway's version, without importing it."""
    found: list[str] = re.findall(r'__version__ = "(.+)"', (ROOT / "gateway" / "version.py").read_text())
    return found[0]


def make(lock: str, project: dict[str, Any], release: str) -> str:
    """The document for a lock file.

    Args:
        lock: its text.
        project: the table of ``pyproject.toml``.
        release: the gateway's version.
    """
    name = str(project["name"])
    whole = Component(
        name=name,
        version=release,
        type=ComponentType.APPLICATION,
        description=str(project["description"]),
        licenses=[DisjunctiveLicense(id=str(project["license"]))],
        purl=PackageURL("pypi", None, name, release),
        bom_ref=f"pkg:pypi/{name}@{release}",
    )
    parts = components(lock)
    bom = Bom(components=parts.values(), serial_number=uuid5(NAMESPACE_URL, f"{name} {release}\n{lock}"))
    bom.metadata.component = whole
    bom.metadata.timestamp = None  # type: ignore[assignment]  # it would be another each time
    bom.register_dependency(whole, [parts[re.split(r"[^\w.-]", each)[0]] for each in project["dependencies"]])
    return JsonV1Dot6(bom).output_as_string(indent=2) + "\n"


def components(lock: str) -> dict[str, Component]:
    """What a lock file names, by name."""
    found = {}
    for entry in re.split(r"\n(?=\S)", lock.replace("\\\n", " ").strip()):
        match = re.match(r"(?P<name>[\w.-]+)==(?P<version>\S+)(?: ; (?P<marker>.+?))?\s+--hash", entry)
        if match is None:
            raise ValueError(f"not as `make lock` writes it: {entry[:80]}")
        name, release, marker = match["name"], match["version"], match["marker"]
        found[name] = Component(
            name=name,
            version=release,
            type=ComponentType.LIBRARY,
            purl=PackageURL("pypi", None, name, release),
            bom_ref=f"pkg:pypi/{name}@{release}",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=each) for each in re.findall(r"sha256:(\w+)", entry)],
            properties=[Property(name="marker", value=marker.strip())] if marker else [],
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
