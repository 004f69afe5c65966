"""What the audit service shows of its logs: how many, how long, and how old what is not signed yet."""

import sqlalchemy as sa

from cohortium_audit.store.tables import checkpoint_table, leaf_table, log_table
from cohortium_kit.db import Tx
from cohortium_kit.metrics import Metrics
from cohortium_kit.sampling import Sampler


class Measures:
    """The audit service's instruments. All logs together: a log bears the name of its study."""

    def __init__(self, metrics: Metrics) -> None:
        self.logs = metrics.gauge("cohortium_audit_logs", "Logs, the platform's own included.")
        self.entries = metrics.gauge("cohortium_audit_entries", "Entries in all logs.")
        self.unsigned = metrics.gauge(
            "cohortium_audit_unsigned_entries", "Entries that no checkpoint covers yet, in all logs."
        )
        self.unsigned_age = metrics.gauge(
            "cohortium_audit_unsigned_age_seconds", "How long the oldest of them has waited for a checkpoint."
        )
        self.checkpoint_age = metrics.gauge(
            "cohortium_audit_checkpoint_age_seconds", "Since the newest checkpoint of any log was signed."
        )


def add_samples(sampler: Sampler, metrics: Metrics) -> None:
    measures = metrics.of(Measures)

    async def read(tx: Tx) -> None:
        grown = log_table.c.size - log_table.c.checkpointed
        logs = await tx.scalar(sa.select(sa.func.count()).select_from(log_table))
        entries = await tx.scalar(sa.select(sa.func.sum(log_table.c.size)))
        unsigned = await tx.scalar(sa.select(sa.func.sum(grown)))
        first = sa.and_(leaf_table.c.log == log_table.c.name, leaf_table.c.idx == log_table.c.checkpointed)
        oldest = await tx.scalar(
            sa.select(sa.func.min(leaf_table.c.recorded_at)).select_from(log_table.join(leaf_table, first))
        )
        newest = await tx.scalar(sa.select(sa.func.max(checkpoint_table.c.created_at)))
        measures.logs.set(logs)
        measures.entries.set(entries or 0)
        measures.unsigned.set(unsigned or 0)
        measures.unsigned_age.set(0.0 if oldest is None else max(0.0, tx.now - oldest))
        measures.checkpoint_age.set(0.0 if newest is None else max(0.0, tx.now - newest))

    gauges = measures.logs, measures.entries, measures.unsigned, measures.unsigned_age, measures.checkpoint_age
    sampler.add("logs", read, *gauges)
