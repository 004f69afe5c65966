"""The newest checkpoint that a quorum of a study's hospitals cosigned, and waiting for one."""

from dataclasses import dataclass

from cohortium_audit.domain import LogName
from cohortium_audit.handlers import Handlers
from cohortium_audit.store import logs
from cohortium_audit.witnessing import Witnessing
from cohortium_kit.clock import Clock
from cohortium_kit.db import Database, Tx

POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Quorums:
    """Asks hospitals, waits for them, and says what they cosigned."""

    handlers: Handlers
    witnessing: Witnessing
    db: Database
    clock: Clock

    async def fresh(self, log: LogName) -> logs.SignedCheckpoint | None:
        """A checkpoint of the log as it is now, which its hospitals are asked to cosign; None for an empty log."""

        async def sign_and_ask(tx: Tx) -> logs.SignedCheckpoint | None:
            signed = await self.handlers.checkpoint(tx, log)
            state = await logs.state(tx, log)
            if state is not None:
                await self.witnessing.ask(tx, state)
            return signed

        return await self.db.run("checkpoint", sign_and_ask)

    async def wait(self, log: LogName, size: int, wait_s: float) -> None:
        """Until a quorum cosigned a checkpoint of `size` entries or more, `wait_s` at most."""
        deadline = self.clock.monotonic() + wait_s
        while self.clock.monotonic() < deadline:
            async with self.db.reading("await_quorum") as tx:
                if await self.witnessing.witnessed(tx, log) >= size:
                    return
            await self.clock.sleep(min(POLL_S, wait_s))

    async def newest(self, log: LogName) -> logs.SignedCheckpoint | None:
        """The newest one with a quorum, followed by all cosignature lines that there are; None without one."""
        async with self.db.reading("newest_witnessed") as tx:
            size = await self.witnessing.witnessed(tx, log)
            stored = await logs.checkpoint(tx, log, size) if size else None
            return None if stored is None else (await self.witnessing.cosigned(tx, log, [stored]))[0]
