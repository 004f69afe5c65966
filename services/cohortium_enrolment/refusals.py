"""What the broker refused, put on record without letting anybody fill the log: one event a minute for each site and
code, with how often it happened. Names that are no site's are counted together."""

from collections import Counter
from dataclasses import dataclass, field

from cohortium_kit.clock import Clock
from cohortium_kit.db import Database, Tx
from cohortium_kit.envelopes import Sender
from cohortium_messages.events import BrokerCut, BrokerRefusal
from cohortium_messages.ids import SiteId
from cohortium_platform.recording import put_on_record

QUIET_S = 60.0

Kind = tuple[SiteId | None, str]


@dataclass(slots=True)
class Refusals:
    """Counts of this instance. What was counted and not yet reported is lost with the process: less than a minute's."""

    sender: Sender
    clock: Clock
    quiet_s: float = QUIET_S
    _waiting: Counter[Kind] = field(default_factory=Counter)
    _reported: dict[Kind, float] = field(default_factory=dict)

    def note(self, site_id: SiteId | None, code: str) -> None:
        """Count one refusal. `site_id` must be a known site's: that bounds what is kept here."""
        self._waiting[site_id, code] += 1

    async def report(self, db: Database) -> int:
        """Send what is due: at once the first time, then once a minute; returns how many events."""
        now = self.clock.monotonic()
        due = [kind for kind in self._waiting if now >= self._reported.get(kind, -self.quiet_s) + self.quiet_s]
        if not due:
            return 0
        counts = {kind: self._waiting[kind] for kind in due}

        async def send(tx: Tx) -> None:
            for (site_id, code), count in counts.items():
                event = BrokerRefusal(site_id=site_id, code=code, count=count)
                await put_on_record(tx, self.sender, event, study=None)

        await db.run("report_refusals", send)
        for kind, count in counts.items():
            self._waiting[kind] -= count
            self._reported[kind] = now
        self._waiting += Counter()  # drops what is zero
        return len(due)

    async def report_cut(self, db: Database, site_id: SiteId, reason: str, connections: int) -> None:
        """Send that open connections of a site were closed."""
        event = BrokerCut(site_id=site_id, reason=reason, connections=connections)
        await db.run("report_cut", lambda tx: put_on_record(tx, self.sender, event, study=None))
