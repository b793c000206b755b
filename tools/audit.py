"""Asks the OSV database about what the lock files name: ``python tools/audit.py [--if-reachable]``.

pip-audit alone calls it a success where a service knows none of the packages; here whatever was not looked at is said,
and is no success. Exit status: 0 all were looked at, and are free of known ones; 1 some are not; 2 not checked. With
``--if-reachable`` what could not be checked is said all the same, and is no failure: for `make lint`, where the network
may end at the registries.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("requirements.lock", "requirements-build.lock")
OSV = "https://api.osv.dev/v1/query"


def main() -> int:
    """Check, and say what came of it."""
    parser = argparse.ArgumentParser(description="Look up known vulnerabilities of what the lock files name.")
    parser.add_argument("--if-reachable", action="store_true", help="where nobody answers, say so and succeed")
    parser.add_argument("--osv-url", default=OSV, help="the database to ask")
    parser.add_argument("locks", nargs="*", type=Path, metavar="LOCK", help=f"the lock files ({', '.join(LOCKS)})")
    options = parser.parse_args()
    found, problem = ask(options.locks or [ROOT / name for name in LOCKS], options.osv_url)
    vulnerable = [each for each in found if each.get("vulns")]
    for each in vulnerable:
        for vulnerability in each["vulns"]:
            fixed = ", ".join(vulnerability["fix_versions"]) or "no version yet"
            print(f"audit: {each['name']} {each['version']}: {vulnerability['id']}, fixed by {fixed}")
    if vulnerable:
        return 1
    skipped = [each["name"] for each in found if "skip_reason" in each]
    if problem is None and skipped:
        problem = f"the database was not asked about {', '.join(skipped)}"
    elif problem is None and not found:
        problem = "no lock file names anything"
    if problem is not None:
        print(f"audit: NOT CHECKED for known vulnerabilities: {problem}", file=sys.stderr)
        return 0 if options.if_reachable else 2
    print(f"audit: {len(found)} packages, none with a known vulnerability")
    return 0


def ask(locks: list[Path], url: str) -> tuple[list[dict[str, Any]], str | None]:
    """Let pip-audit ask about each package of some lock files.

    Returns:
        What it says of each, and why it says nothing; None for that where it does.
    """
    files = [word for lock in locks for word in ("--requirement", str(lock))]
    told = ["--vulnerability-service", "osv", "--osv-url", url, "--format", "json", "--progress-spinner", "off"]
    # Nothing is resolved or installed: the lock files name everything.
    command = [sys.executable, "-m", "pip_audit", *told, "--disable-pip", "--require-hashes", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own words
    try:
        return json.loads(done.stdout)["dependencies"], None
    except (ValueError, KeyError):
        said = done.stderr.strip().splitlines() or [f"pip-audit ended with {done.returncode}"]
        return [], said[-1]


if __name__ == "__main__":
    sys.exit(main())
