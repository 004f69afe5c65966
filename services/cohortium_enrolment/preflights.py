"""Hospitals' trials: probes are sent back, and the newest report of each site is kept for the operator.

Enrolment hears two kinds of senders here: a site that asks to be registered, whose key is in the message, and a
registered site, whose key is on record. `SiteKeyring` tells them apart before anything is believed.
"""

import hashlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import sqlalchemy as sa
import structlog
from pydantic import ValidationError

from cohortium_enrolment import store
from cohortium_enrolment.domain.sites import Active
from cohortium_enrolment.handlers import MAX_REGISTRATION_BYTES, RegistrationVerifier
from cohortium_kit.clock import Clock
from cohortium_kit.consumer import Received
from cohortium_kit.db import Tx
from cohortium_kit.envelopes import Sender
from cohortium_kit.errors import Poison
from cohortium_messages.envelope import Envelope
from cohortium_messages.governance import RegisterSite
from cohortium_messages.ids import SiteId
from cohortium_messages.oversight import PreflightRecorded
from cohortium_messages.preflight import MOST_PROBES, PreflightEcho, PreflightProbe, PreflightReport
from cohortium_messages.topology import BULK, results_queue, uplink_key
from cohortium_platform.recording import put_on_record
from cohortium_protocol.documents import canonical
from cohortium_protocol.signing import Keyring, site_key_id

log = structlog.get_logger(__name__)

PROBES_A_SPAN = 4 * MOST_PROBES
SPAN = timedelta(minutes=10)
ECHO_LIFE_MS = 60_000
RECORD_AGAIN = timedelta(hours=1)
"""So long after a site's report was put on record no other one of it is: the log keeps every entry for good."""

Spoken = TypeVar("Spoken", RegisterSite, PreflightProbe, PreflightReport)
Work = Callable[[Tx, Received[Spoken]], Awaitable[None]]


class SiteKeyring(Keyring):
    """Registered sites' keys; and for a registration, and nothing else, the key that the message itself names."""

    def verify(self, key_id: str, body: bytes, signature: bytes) -> None:
        """Raise `BadSignature` unless it is a registration by its own key, or signed by a key on record."""
        if len(body) <= MAX_REGISTRATION_BYTES and _says_registration(body):
            RegistrationVerifier().verify(key_id, body, signature)
        else:
            super().verify(key_id, body, signature)


def in_its_own_name(work: Work[Spoken]) -> Work[Spoken]:
    """Let a handler hear only what a site says of itself, under its own routing key."""

    async def checked(tx: Tx, received: Received[Spoken]) -> None:
        site = received.message.site_id
        if received.key_id != site_key_id(site):
            raise Poison("wrong_sender")
        if received.routing_key != uplink_key(site, "enrolment"):
            raise Poison("site_mismatch", "the routing key is another site's")
        await work(tx, received)

    return checked


class Preflights:
    """Answers probes, as far as is decent, and keeps reports."""

    def __init__(self, sender: Sender, clock: Clock) -> None:
        self._sender = sender
        self._clock = clock
        self._answered: dict[SiteId, deque[datetime]] = {}

    async def on_probe(self, tx: Tx, received: Received[PreflightProbe]) -> None:
        """Send as much back. A site that asks too often is not answered: its own trial says so."""
        probe = received.message
        if not self._may_ask(probe.site_id):
            log.info("preflight_probe_ignored", site=probe.site_id)
            return
        echo = PreflightEcho(
            nonce=probe.nonce, sequence=probe.sequence, received_at=self._clock.now(), padding=probe.padding
        )
        key = results_queue(probe.site_id)
        outgoing = self._sender.outgoing(BULK.name, key, echo, persistent=False, ttl_ms=ECHO_LIFE_MS)
        await tx.send(outgoing)

    async def on_report(self, tx: Tx, received: Received[PreflightReport]) -> None:
        """Keep the newest report of this site, and put it on record: the same one once, and one an hour."""
        report = received.message
        known = await find_report(tx, report.site_id)
        if known is not None and (known[0] == report or known[0].made_at > report.made_at):
            return
        await save_report(tx, report, "preflight_report")
        if await _may_record(tx, report.site_id):
            await put_on_record(tx, self._sender, recorded(report), study=None)
        worst = sorted({check.state for check in report.checks})
        log.info("preflight_reported", site=report.site_id, state=",".join(worst))

    def _may_ask(self, site: SiteId) -> bool:
        # Counted again when a transaction is repeated: a few too many do no harm.
        now = self._clock.now()
        asked = self._answered.setdefault(site, deque(maxlen=PROBES_A_SPAN))
        while asked and now - asked[0] > SPAN:
            asked.popleft()
        if len(asked) == PROBES_A_SPAN:
            return False
        asked.append(now)
        return True


def recorded(report: PreflightReport) -> PreflightRecorded:
    """What the log hears of a report: which it is, and what did not go well."""
    return PreflightRecorded(
        site_id=report.site_id,
        report_sha256=hashlib.sha256(canonical(report)).digest(),
        failed=tuple(check.name for check in report.checks if check.state == "failed"),
        warned=tuple(check.name for check in report.checks if check.state == "warning"),
    )


async def good_keys(tx: Tx) -> Mapping[SiteId, bytes]:
    """The keys of the sites that are active now."""
    return {site.site_id: bytes(site.identity_pk) for site in await store.sites(tx) if isinstance(site, Active)}


async def save_report(tx: Tx, report: PreflightReport, by: str) -> None:
    """In place of an earlier one."""
    table = store.preflight_table
    values = {"report_json": report.model_dump_json(), "received_at": tx.now, "updated_by": by}
    done = await tx.execute(sa.update(table).where(table.c.site_id == report.site_id).values(values))
    if done.rowcount == 0:
        await tx.execute(sa.insert(table).values(site_id=report.site_id, **values))


async def _may_record(tx: Tx, site: SiteId) -> bool:
    """Whether a kept report of this site may go on record now; if so, the next one may not for `RECORD_AGAIN`."""
    table = store.preflight_table
    long_ago = sa.or_(table.c.recorded_at.is_(None), table.c.recorded_at <= tx.now - RECORD_AGAIN.total_seconds())
    done = await tx.execute(sa.update(table).where(table.c.site_id == site, long_ago).values(recorded_at=tx.now))
    return done.rowcount > 0


async def find_report(tx: Tx, site: SiteId) -> tuple[PreflightReport, datetime] | None:
    """A site's newest report, and when it came."""
    table = store.preflight_table
    row = await tx.row(sa.select(table.c.report_json, table.c.received_at).where(table.c.site_id == site))
    return None if row is None else _report(row)


async def reports_of(tx: Tx, sites: Iterable[SiteId]) -> dict[SiteId, tuple[PreflightReport, datetime]]:
    """The newest report of each of these sites that made one."""
    table = store.preflight_table
    query = sa.select(table.c.site_id, table.c.report_json, table.c.received_at)
    rows = await tx.rows(query.where(table.c.site_id.in_(list(sites))))
    return {SiteId(row.site_id): _report(row) for row in rows}


def _report(row: sa.Row[tuple[str, str, float]] | sa.Row[tuple[str, float]]) -> tuple[PreflightReport, datetime]:
    return PreflightReport.model_validate_json(row.report_json), datetime.fromtimestamp(row.received_at, UTC)


def _says_registration(body: bytes) -> bool:
    try:
        return Envelope.model_validate_json(body).type == RegisterSite.type_name
    except ValidationError:
        return False
