"""What is asked of an application's own functions before they are called."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def is_async(function: object) -> bool:
    """Whether a call of it is to be awaited: of an async function, or of an object whose ``__call__`` is one."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def takes_tenant(function: Callable[..., object]) -> bool:
    """Whether it has a parameter ``tenant``, and so is told it."""
    try:
        return "tenant" in inspect.signature(function).parameters
    except ValueError:  # one of C's that does not say
        return False
