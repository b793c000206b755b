"""Which release this is, and how it runs."""

from __future__ import annotations

from gateway.access import buckets

__version__ = "0.1.0"

COMPILED = not str(buckets.__file__).endswith(".py")
"""Whether what every message goes through was compiled when the gateway was installed; see ``hatch_build.py``."""
