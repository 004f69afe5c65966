"""A service's consumer, as far as it speaks to the audit log about who sent it what is refused."""

from cohortium_kit.bus import Bus, Delivery
from cohortium_kit.clock import Clock
from cohortium_kit.consumer import Consumer
from cohortium_kit.db import Database
from cohortium_kit.envelopes import Sender, Verifier
from cohortium_platform.faults import UNPROVEN, FaultReporter


class ReportingConsumer(Consumer):
    """A consumer whose log is told when a sender is silenced; single faults are each service's own affair."""

    def __init__(
        self,
        bus: Bus,
        db: Database,
        verifier: Verifier,
        sender: Sender,
        queue: str,
        name: str,
        prefetch: int = 32,
        *,
        clock: Clock,
    ) -> None:
        """`sender` signs the events, `name` is the service's."""
        super().__init__(bus, db, verifier, queue, name, prefetch, clock=clock)
        self._faults = FaultReporter(sender)

    async def record_silence(self, sender: str) -> None:
        """As the kit's consumer."""
        await self._db.run("report_silence", lambda tx: self._faults.report_silence(tx, sender))

    async def record_proven_fault(self, delivery: Delivery, reason: str) -> None:
        """For `record_fault`: tell the log, unless the sender is only claimed. Raises `DatabaseError`."""
        if reason not in UNPROVEN:
            await self._db.run("report_fault", lambda tx: self._faults.report(tx, delivery, reason))
