"""All faults at random, for ``CHAOS_SECONDS``, by the seed ``CHAOS_SEED``."""

import os

import pytest

from chaos.report import summary
from chaos.run import MIXED, SCENARIOS, Plan, replay, run, seed

SECONDS = float(os.environ.get("CHAOS_SECONDS", "60"))


@pytest.mark.timeout(SECONDS + 240)
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.xdist_group(f"chaos-{place % 2}")) for place, name in enumerate(MIXED)],
)
async def test_mixed(name: str) -> None:
    # Sentinel and Cluster add one fault each to those of the first, and take less time.
    plan = Plan.make(SCENARIOS[name], seed(), SECONDS if name == "mixed" else SECONDS / 2)
    outcome = await run(plan)
    assert not outcome.violations, f"again: {replay(plan)}\n{summary([outcome], plan.seed)}"
