"""Plans with round prices, a chain in memory, and a hospital with a real ledger in a folder."""

import secrets
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from cohortium_connector.ledger.anchor import Anchor
from cohortium_connector.ledger.proofs import Proof
from cohortium_connector.ledger.service import Committed, Ledger, Reserved
from cohortium_kit.bus import Outgoing
from cohortium_kit.clock import Clock, SystemClock
from cohortium_kit.db import Database, Tx
from cohortium_kit.migrate import migrate
from cohortium_messages.ids import RunId, SiteId, StudyId
from cohortium_messages.ledger import (
    FIRST_ORDER,
    LAST_ORDER,
    LedgerEvent,
    LedgerFact,
    LedgerRecorded,
    LedgerStatement,
    Mechanism,
    Part,
)
from cohortium_messages.registry import Message
from cohortium_privacy import ledger as rules
from cohortium_privacy.chain import SealedEntry, extend, replay
from cohortium_privacy.ledger_plan import Exhausted, LedgerPlan, Limits, PlannedPart
from cohortium_privacy.ledger_state import LedgerState
from cohortium_protocol.signing import IdentityKey

SITE = SiteId("00000000-0000-4000-8000-00000000000a")
KEY = IdentityKey.from_seed(b"\x07" * 32)
NOW = datetime(2026, 11, 21, tzinfo=UTC)
LIMITS = Limits(3.0, 1e-5)
ORDER = 7
"""α* of these limits."""
Q1, Q2, Q3 = "2024-Q1", "2024-Q2", "2024-Q3"
Outcome = tuple[LedgerFact, ...] | Exhausted


def run_id(number: int) -> RunId:
    return RunId(f"00000000-0000-4000-8000-{number:012d}")


def window(number: int) -> bytes:
    return number.to_bytes(16, "big")


def part_of(price: float, uses: int, steps_per_use: int = 1, part: Part = "training") -> PlannedPart:
    """A part that costs `price` a use at the order of `LIMITS`; Gaussian noise, so proportional to the order."""
    multiplier = (ORDER * steps_per_use / (2 * price)) ** 0.5
    mechanism = Mechanism(noise_multiplier=multiplier, sampling_rate=1.0, steps=uses * steps_per_use, overlap=1)
    prices = tuple(price * order / ORDER for order in range(FIRST_ORDER, LAST_ORDER + 1))
    return PlannedPart(part, (mechanism,), uses, steps_per_use, prices)


def plan_of(number: int, *parts: PlannedPart, blocks: tuple[str, ...] = (Q1,), study: str = "heart") -> LedgerPlan:
    patients = dict.fromkeys(blocks, 1000)
    return LedgerPlan(StudyId(study), bytes([9]) * 32, run_id(number), "distributed", parts, patients, ORDER)


@dataclass
class Book:
    """A chain in memory. Every outcome is written at once; `extend` refuses what could not be replayed."""

    limits: Limits = LIMITS
    state: LedgerState = field(default_factory=LedgerState)
    rows: list[SealedEntry] = field(default_factory=list)

    def write(self, outcome: Outcome) -> Outcome:
        if not isinstance(outcome, Exhausted):
            self.state, rows = extend(self.state, outcome, SITE, KEY, NOW)
            self.rows += rows
        return outcome

    def reserve(self, plan: LedgerPlan) -> Outcome:
        return self.write(rules.reserve(self.state, plan, self.limits))

    def commit(self, number: int, window_id: bytes | None, part: Part = "training") -> Outcome:
        return self.write(rules.commit(self.state, run_id(number), part, window_id))

    def refund(self, number: int, window_id: bytes) -> Outcome:
        return self.write(rules.refund(self.state, run_id(number), window_id, "ABORT_CERT", bytes(32)))

    def close(self, number: int) -> Outcome:
        return self.write(rules.close(self.state, run_id(number), "RUN_ENDED"))

    def replayed(self) -> LedgerState:
        """What somebody reads from the rows alone."""
        state = LedgerState()
        for row in self.rows:
            _, state = replay(state, row.text, row.sig, SITE, KEY.public)
        return state


@dataclass
class Hospital:
    """A ledger in a folder, as the connector has it; what leaves is in `posted`. `stop` and `start`, and it is read
    again from its file."""

    folder: Path
    site_id: SiteId = SITE
    key: IdentityKey = KEY
    limits: Limits = LIMITS
    clock: Clock = field(default_factory=SystemClock)
    posted: list[tuple[str, Message]] = field(default_factory=list)

    @property
    def file(self) -> Path:
        return self.folder / "spool.db"

    async def start(self) -> None:
        await self.connect()
        await self.ledger.open(self.db)

    async def connect(self) -> None:
        """The database and the ledger, without its check."""
        self.db = Database(f"sqlite:///{self.file}", schema="connector", clock=self.clock)
        await migrate(self.db, "cohortium_connector")
        anchor = Anchor(self.folder / "ledger.head")
        self.ledger = Ledger(self.site_id, self.key, self.limits, anchor, self._post)

    async def stop(self) -> None:
        await self.db.close()

    async def restart(self, **changes: object) -> "Hospital":
        """Another process on the same folder."""
        await self.stop()
        other = replace(self, **changes)  # type: ignore[arg-type]
        await other.start()
        return other

    async def state(self) -> LedgerState:
        async with self.db.reading("test_state") as tx:
            return await self.ledger.state(tx)

    async def _post(self, tx: Tx, service: str, message: Message, _: StudyId) -> None:
        self.posted.append((service, message))
        body = message.model_dump_json().encode()
        await tx.send(Outgoing("uplink", service, body, message_id=secrets.token_hex(16), type=message.type_name))


async def reserve(hospital: Hospital, plan: LedgerPlan) -> Reserved | Exhausted:
    return await hospital.db.run("reserve", lambda tx: hospital.ledger.reserve(tx, plan))


async def commit(
    hospital: Hospital, number: int, window_id: bytes | None, part: Part = "training"
) -> Committed | Exhausted:
    return await hospital.db.run("commit", lambda tx: hospital.ledger.commit(tx, run_id(number), part, window_id))


async def refund(hospital: Hospital, number: int, proof: Proof) -> int:
    return await hospital.db.run("refund", lambda tx: hospital.ledger.refund(tx, run_id(number), proof))


def statements(hospital: Hospital, kind: type[LedgerEvent] | type[LedgerRecorded]) -> list[LedgerStatement]:
    return [message.statement for _, message in hospital.posted if isinstance(message, kind)]
