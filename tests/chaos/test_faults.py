"""Each fault alone."""

import pytest

from chaos.report import summary
from chaos.run import ALONE, SCENARIOS, Plan, replay, run, seed


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "name",
    # Two at a time at the most, however many workers there are: what is measured is time.
    [pytest.param(name, marks=pytest.mark.xdist_group(f"chaos-{place % 2}")) for place, name in enumerate(ALONE)],
)
async def test_fault(name: str) -> None:
    plan = Plan.make(SCENARIOS[name], seed(), 0)
    outcome = await run(plan)
    assert not outcome.violations, f"again: {replay(plan)}\n{summary([outcome], plan.seed)}"
    if SCENARIOS[name].webhooks:
        events, times = outcome.webhooks
        assert 0 < events < times, "nothing was repeated: the run proves nothing"
    if SCENARIOS[name].faults in {("kill",), ("stop",), ("cut",), ("swallow",)}:
        assert outcome.leaves, "nobody was watched leaving: the run proves nothing"
