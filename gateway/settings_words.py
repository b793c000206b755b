"""What is wrong with settings, in words for the person who set them."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

NEAR, NEARER = 0.8, 0.85
"""How alike a name and a setting's are where one is taken for a slip of the other: in ``.env``, which is ours, and in
the environment, which holds everybody's."""

SHOWN = 8
"""Unknown names that are told at once."""

_LETTERS = re.compile(r"\^\[A-Za-z0-9_-\]\{1,(?P<most>\d+)\}\$")

_WORDS = {
    "missing": "is missing",
    "extra_forbidden": "is unknown",
    "string_type": "takes a text",
    "model_type": 'takes an object, as {"name": "crm", "url": "https://…", "secret": "whsec_…"}',
    "tuple_type": "takes an array",
}
"""By pydantic's type of an error. What is wrong by a rule of ours is worded where the rule is."""


def worded(problem: ErrorDetails, fields: Mapping[str, FieldInfo]) -> str:
    """Say what a setting takes, its name in capitals before it.

    Args:
        problem: as pydantic found it.
        fields: of all settings.
    """
    place = problem["loc"]
    if not place:
        return _takes(problem)
    within = "".join(f"{part} of " if isinstance(part, str) else f"number {part + 1}: " for part in place[:0:-1])
    field = fields.get(str(place[0])) if len(place) == 1 else None
    return f"{str(place[0]).upper()}: {within}{_number(problem, field) or _takes(problem)}"


def _takes(problem: ErrorDetails) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "literal_error":
        return f"takes {context['expected'].replace(chr(39), '')}"
    if kind in {"bool_parsing", "bool_type"}:
        return "takes true or false"
    if kind == "string_pattern_mismatch" and (letters := _LETTERS.fullmatch(context["pattern"])):
        return f"takes 1 to {letters['most']} letters, digits, _ and -"
    return _WORDS.get(kind) or problem["msg"].removeprefix("Value error, ")


def _number(problem: ErrorDetails, field: FieldInfo | None) -> str | None:
    """What a number may be; None where the problem is none of a number."""
    numbers = {"int_parsing", "int_type", "int_from_float", "float_parsing", "float_type", "finite_number"}
    bounds = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}
    if field is None or problem["type"] not in numbers | bounds:
        return None
    kinds: Collection[Any] = get_args(field.annotation) or (field.annotation,)
    what = "a whole number" if int in kinds else "a number of seconds"
    limits: dict[str, Any] = {
        name: getattr(rule, name) for rule in field.metadata for name in ("gt", "ge", "le") if hasattr(rule, name)
    }
    if "ge" in limits and "le" in limits:
        return f"takes {what} from {limits['ge']} to {limits['le']}"
    for name, words in (("gt", "more than {}"), ("ge", "{} at least"), ("le", "{} at the most")):
        if name in limits:
            what += ", " + words.format(limits[name])
    return f"takes {what}"


def strangers(known: Collection[str], file: Collection[str], environment: Iterable[str]) -> list[str]:
    """Find what was set and is no setting: it would be ignored, and whoever set it would not know why.

    Args:
        known: the settings' variables.
        file: the names in ``.env``, every one of which is told of.
        environment: the names in the environment, of which those are that are nearly a setting's.

    Returns:
        A sentence each, names in capitals and no values; a setting that is set is what no other name was to be.
    """
    elsewhere = {name.upper() for name in environment}
    ours = {name.upper() for name in file}
    free = sorted(set(known) - elsewhere - ours)
    told, others = [], []
    for name in sorted(ours - set(known)):
        if near := get_close_matches(name, free, n=1, cutoff=NEAR):
            told.append(f".env has {name}, which is no setting: is it to be {near[0]}?")
        else:
            others.append(name)
    told += [
        f"the environment has {name}, which is no setting: is it to be {near[0]}?"
        for name in sorted(elsewhere - ours - set(known))
        if (near := get_close_matches(name, free, n=1, cutoff=NEARER))
    ]
    if others:
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        told.append(f".env has names that are no settings, and are ignored: {', '.join(others[:SHOWN])}{more}")
    return told
