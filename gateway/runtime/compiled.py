"""Marks for mypyc, by which some modules are compiled; to ordinary Python they mean nothing.

`mypyc_attr(allow_interpreted_subclasses=True)` on a compiled class lets ordinary Python derive from it, as tests do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mypy_extensions import mypyc_attr
else:

    def mypyc_attr(**_marks: Any) -> Any:
        """Mark a class; see the module."""
        return lambda marked: marked


__all__ = ["mypyc_attr"]
