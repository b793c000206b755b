"""Break things for a while, and print the table: ``python -m tests.chaos``, or ``make chaos``."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from itertools import count, cycle
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # as pytest has it: helpers are imported by name

from chaos.report import summary
from chaos.run import ALONE, MIXED, SCENARIOS, Outcome, Plan, replay, run, say, seed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run rounds until the time is over.

    Returns:
        The exit status: 0 where every rule was followed, 1 where not.
    """
    options = _parser().parse_args(arguments)
    first = seed() if options.seed is None else options.seed
    outcomes: list[Outcome] = []
    end = time.monotonic() + options.seconds
    for number, name in zip(count(), cycle(options.fault or (*ALONE, *MIXED)), strict=False):
        plan = Plan.make(SCENARIOS[name], first + number, options.round)
        outcome = asyncio.run(run(plan))
        outcomes.append(outcome)
        if outcome.violations:
            say(f"  again: {replay(plan)}")
        if time.monotonic() >= end:
            break
    say(f"\n{summary(outcomes, first)}")
    return int(any(outcome.violations for outcome in outcomes))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600, help="begin rounds for so long (3600)")
    parser.add_argument("--round", type=float, default=60, help="seconds of a round in which anything goes (60)")
    parser.add_argument("--seed", type=int, help="of the first round; each next one has the next (random)")
    parser.add_argument("--fault", nargs="+", choices=SCENARIOS, metavar="NAME", help=f"only: {', '.join(SCENARIOS)}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
