"""What consent shows: how many grants there are in each state."""

from collections.abc import Callable

from cohortium_consent.cases import case_table
from cohortium_consent.store import grant_table
from cohortium_kit.db import Tx
from cohortium_kit.metrics import Metrics
from cohortium_kit.sampling import Sampler, count_by


def add_samples(sampler: Sampler, metrics: Metrics, overdue: Callable[[], float]) -> None:
    metrics.gauge(
        "cohortium_withdrawals_overdue",
        "Deadlines of withdrawals that passed and are not met, where this instance looks.",
    ).set_function(overdue)
    grants = metrics.gauge("cohortium_grants", "Grants of sites, by state.", "state")

    async def read(tx: Tx) -> None:
        await count_by(tx, grants, grant_table.c.state)

    sampler.add("grants", read, grants)
    cases = metrics.gauge("cohortium_withdrawals", "Withdrawals, by state.", "state")

    async def read_cases(tx: Tx) -> None:
        await count_by(tx, cases, case_table.c.state)

    sampler.add("withdrawals", read_cases, cases)
