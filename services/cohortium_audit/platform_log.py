"""The platform's log hears how far each study's log has come: every `platform_s`, and when a run ends.

So it puts the studies' histories in one order. Whoever keeps a checkpoint of the platform's log can tell later that a
study's log was not made anew, though no hospital of that study is asked.
"""

import json
from typing import Final

from cohortium_audit.domain import PLATFORM, Entry, LogName
from cohortium_audit.handlers import Handlers, inclusion_at
from cohortium_audit.store import logs
from cohortium_kit.clock import Clock
from cohortium_kit.db import Tx
from cohortium_kit.envelopes import Sender
from cohortium_messages.events import RunStateChanged, StudyCheckpointed
from cohortium_messages.ids import StudyId
from cohortium_platform.recording import put_on_record
from cohortium_protocol.logproof import LogProof

MOST_LOOKED_AT: Final = 5000
MOST_SHOWN: Final = 24
FINAL: Final = frozenset({"FINISHED", "FAILED", "STOPPED"})


class PlatformLog:
    """Says what goes into the platform's log. What was said of a log before is not said again by the same instance."""

    def __init__(self, handlers: Handlers, sender: Sender, clock: Clock, every_s: float) -> None:
        self._handlers = handlers
        self._sender = sender
        self._clock = clock
        self._every_s = every_s
        self._due_at = clock.monotonic()
        self._said: dict[LogName, int] = {}

    async def note_due(self, tx: Tx) -> None:
        """Once in `platform_s`: note every study whose log has grown."""
        if self._clock.monotonic() < self._due_at:
            return
        self._due_at = self._clock.monotonic() + self._every_s
        for state in await logs.states(tx):
            await self.note(tx, state.log)

    async def note(self, tx: Tx, log: LogName) -> None:
        """Put the checkpoint of a study's log, as it stands now, into the platform's log."""
        signed = await self._handlers.checkpoint(tx, log) if log != PLATFORM else None
        if signed is None or self._said.get(log) == signed.size:
            return
        event = StudyCheckpointed(study_id=StudyId(log), size=signed.size, root=signed.root)
        await put_on_record(tx, self._sender, event, study=None)
        # Said twice, after a transaction that is rolled back, is harmless; so it counts from the commit on.
        size = signed.size
        tx.after_commit(lambda _: self._said.update({log: size}))


async def platform_proofs(tx: Tx, handlers: Handlers, study: StudyId) -> tuple[str, ...]:
    """That the platform's log holds what was noted of a study: the newest `MOST_SHOWN`, C2SP tlog-proof each. Nothing
    of other studies is in them."""
    signed, state = await handlers.checkpoint(tx, PLATFORM), await logs.state(tx, PLATFORM)
    if signed is None or state is None:
        return ()
    kind = StudyCheckpointed.type_name
    noted = await logs.newest_of_type(tx, PLATFORM, kind, signed.size, MOST_LOOKED_AT)
    mine = [one for one in noted if json.loads(one.data)["event"]["data"]["study_id"] == study][:MOST_SHOWN]
    found = []
    for one in reversed(mine):
        hashes = await inclusion_at(tx, state, one.index, signed.size)
        found.append(LogProof(one.data, one.index, tuple(hashes), signed.note).text())
    return tuple(found)


def ends_run(entry: Entry) -> bool:
    """Whether the entry says that a run is over."""
    if entry.type != RunStateChanged.type_name:
        return False
    return json.loads(entry.data)["event"]["data"]["state"] in FINAL
