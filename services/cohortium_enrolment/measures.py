"""What enrolment shows: how many sites there are in each state."""

from cohortium_enrolment.store import site_table
from cohortium_kit.db import Tx
from cohortium_kit.metrics import Metrics
from cohortium_kit.sampling import Sampler, count_by


def add_samples(sampler: Sampler, metrics: Metrics) -> None:
    sites = metrics.gauge("cohortium_sites", "Sites, by state.", "state")

    async def read(tx: Tx) -> None:
        await count_by(tx, sites, site_table.c.state)

    sampler.add("sites", read, sites)
