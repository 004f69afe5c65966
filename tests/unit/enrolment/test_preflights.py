"""Trials at enrolment: who may speak, how often, and what is kept."""

import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import rfc8785
from sqlalchemy import select

from cohortium_enrolment.preflights import (
    PROBES_A_SPAN,
    RECORD_AGAIN,
    SPAN,
    Preflights,
    SiteKeyring,
    in_its_own_name,
    reports_of,
)
from cohortium_kit.bus import Delivery
from cohortium_kit.consumer import Received
from cohortium_kit.db import Database
from cohortium_kit.envelopes import BadSignature, Sender, open_envelope
from cohortium_kit.errors import Poison
from cohortium_kit.migrate import migrate
from cohortium_kit.tables import outbox
from cohortium_kit.testing.clock import ManualClock
from cohortium_kit.testing.deliveries import delivered
from cohortium_messages.governance import RegisterSite
from cohortium_messages.ids import SiteId
from cohortium_messages.oversight import PreflightRecorded
from cohortium_messages.preflight import Capacity, PreflightCheck, PreflightProbe, PreflightReport
from cohortium_messages.topology import UPLINK, results_queue, uplink_key
from cohortium_protocol.documents import make_registration
from cohortium_protocol.errors import BadSignature as WrongSignature
from cohortium_protocol.signing import EnvelopeSigner, IdentityKey, service_key_id, site_key_id

SITE, OTHER = SiteId("22000000-0000-4000-8000-000000000001"), SiteId("22000000-0000-4000-8000-000000000002")
KEY, OTHER_KEY = IdentityKey.generate(), IdentityKey.generate()
CLOCK = ManualClock()


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    made = Database(f"sqlite:///{tmp_path / 'enrolment.db'}", schema="enrolment", clock=CLOCK)
    await migrate(made, "cohortium_enrolment")
    yield made
    await made.close()


def sent(message: PreflightProbe | PreflightReport | RegisterSite, signer: SiteId, key: IdentityKey) -> Delivery:
    """What enrolment's queue would hold of it, sent by `signer` under the routing key of the site it speaks of."""
    sender = Sender(f"/site/{signer}", EnvelopeSigner(site_key_id(signer), key), CLOCK)
    outgoing = sender.outgoing(UPLINK.name, uplink_key(message.site_id, "enrolment"), message)
    return delivered(outgoing, "enrolment.inbox")


def keyring() -> SiteKeyring:
    made = SiteKeyring()
    made.add(site_key_id(SITE), KEY.public)
    made.add(site_key_id(OTHER), OTHER_KEY.public)
    return made


def received(message: PreflightProbe | PreflightReport, signer: SiteId = SITE, key: IdentityKey = KEY) -> Received:  # type: ignore[type-arg]
    delivery = sent(message, signer, key)
    envelope, opened, key_id = open_envelope(delivery, keyring())
    return Received(envelope, opened, key_id, delivery.routing_key, delivery)


def probe(sequence: int = 0) -> PreflightProbe:
    return PreflightProbe(site_id=SITE, nonce=bytes(16), sequence=sequence, padding="00")


def report(**changes: object) -> PreflightReport:
    check = PreflightCheck(name="line", state="ok")
    capacity = Capacity(cpus=2, memory_mb=100, training_s=1.5)
    made = PreflightReport(site_id=SITE, made_at=CLOCK.now(), connector="1", checks=(check,), capacity=capacity)
    return made.model_copy(update=changes)


def preflights() -> Preflights:
    sender = Sender("/enrolment", EnvelopeSigner(service_key_id("enrolment"), IdentityKey.generate()), CLOCK)
    return Preflights(sender, CLOCK)


def registration(site: SiteId, key: IdentityKey) -> RegisterSite:
    return make_registration("t" * 43, "example", site, key)


def test_a_registration_is_believed_by_its_own_key_alone() -> None:
    newcomer = IdentityKey.generate()
    third = SiteId("22000000-0000-4000-8000-000000000003")
    open_envelope(sent(registration(third, newcomer), third, newcomer), keyring())
    for signer, key in ((SITE, KEY), (third, KEY)):
        with pytest.raises(Poison, match="bad_signature"):
            open_envelope(sent(registration(third, newcomer), signer, key), keyring())


async def test_a_registered_site_cannot_pass_off_a_padded_registration_as_anothers(db: Database) -> None:
    honest = sent(registration(OTHER, KEY), SITE, KEY)
    padded = honest.body + b" " * 5000
    signed = KEY.sign(envelope_signed(padded))
    delivery = replace(honest, body=padded, headers={**honest.headers, "cohortium-signature": signed.hex()})
    envelope, message, key_id = open_envelope(delivery, keyring())

    async def never(*_: object) -> None:
        raise AssertionError("it must not come so far")

    async with db.transaction("test") as tx:
        with pytest.raises(Poison, match="wrong_sender"):
            await in_its_own_name(never)(tx, Received(envelope, message, key_id, delivery.routing_key, delivery))  # type: ignore[arg-type]


def envelope_signed(body: bytes) -> bytes:
    from cohortium_protocol.signing import envelope_bytes

    return envelope_bytes(site_key_id(SITE), body)


def test_who_is_not_registered_is_not_heard() -> None:
    ring = keyring()
    ring.remove(site_key_id(SITE))
    with pytest.raises(Poison, match="bad_signature"):
        open_envelope(sent(probe(), SITE, KEY), ring)
    with pytest.raises((BadSignature, WrongSignature)):
        ring.verify(site_key_id(SITE), b"not json", b"")


async def test_a_site_speaks_in_its_own_name(db: Database) -> None:
    trial = preflights()
    async with db.transaction("test") as tx:
        with pytest.raises(Poison, match="wrong_sender"):
            await in_its_own_name(trial.on_report)(tx, received(report(), OTHER, OTHER_KEY))
        honest = received(report())
        with pytest.raises(Poison, match="site_mismatch"):
            await in_its_own_name(trial.on_report)(tx, replace(honest, routing_key=uplink_key(OTHER, "enrolment")))
        assert await reports_of(tx, [SITE]) == {}
        await in_its_own_name(trial.on_report)(tx, honest)
        assert set(await reports_of(tx, [SITE])) == {SITE}


async def test_a_probe_is_sent_back_to_the_sites_own_queue_and_not_for_ever(db: Database) -> None:
    trial = preflights()
    async with db.transaction("probes") as tx:
        for number in range(PROBES_A_SPAN + 5):
            await trial.on_probe(tx, received(probe(number % 16)))
    async with db.reading("answers") as tx:
        rows = await tx.rows(select(outbox))
    assert len(rows) == PROBES_A_SPAN
    assert {row.routing_key for row in rows} == {results_queue(SITE)}
    assert all(row.ttl_ms and not row.persistent for row in rows), "nobody may be there to read it"
    await CLOCK.advance(SPAN.total_seconds() + 1)
    async with db.transaction("later") as tx:
        await trial.on_probe(tx, received(probe()))
    async with db.reading("answers") as tx:
        assert len(await tx.rows(select(outbox))) == PROBES_A_SPAN + 1


async def test_the_newest_report_is_kept(db: Database) -> None:
    trial = preflights()
    old, new = report(), report(made_at=CLOCK.now() + timedelta(minutes=1), connector="2")
    for one in (old, new, old):
        async with db.transaction("report") as tx:
            await trial.on_report(tx, received(one))
    async with db.reading("reports") as tx:
        kept, _ = (await reports_of(tx, [SITE]))[SITE]
    assert kept == new


async def test_a_site_cannot_fill_the_log_with_trials(db: Database) -> None:
    trial, first = preflights(), report()

    async def on_record(reports: list[PreflightReport]) -> int:
        for one in reports:
            async with db.transaction("report") as tx:
                await trial.on_report(tx, received(one))
        async with db.reading("told") as tx:
            rows = await tx.rows(select(outbox.c.type))
        return sum(row.type == PreflightRecorded.type_name for row in rows)

    later = [report(made_at=CLOCK.now() + timedelta(seconds=number)) for number in range(1, 6)]
    assert await on_record([first] * 3) == 1
    assert await on_record(later) == 1, "one an hour"
    async with db.reading("reports") as tx:
        assert (await reports_of(tx, [SITE]))[SITE][0] == later[-1], "the newest is kept all the same"
    await CLOCK.advance(RECORD_AGAIN.total_seconds() + 1)
    assert await on_record([later[-1]]) == 1, "it is the one that is kept"
    assert await on_record([report(connector="2"), report(connector="3")]) == 2


async def test_a_report_is_on_record_by_its_digest_and_by_what_went_wrong(db: Database) -> None:
    checks = (
        PreflightCheck(name="line", state="ok"),
        PreflightCheck(name="rights", state="failed", code="NO_RIGHT"),
        PreflightCheck(name="clock", state="warning", code="CLOCK_OFF"),
        PreflightCheck(name="gpu", state="skipped"),
    )
    made, older = report(checks=checks), report(made_at=CLOCK.now() - timedelta(days=1))
    async with db.transaction("test") as tx:
        await preflights().on_report(tx, received(made))
        await preflights().on_report(tx, received(older))
    async with db.reading("told") as tx:
        rows = await tx.rows(select(outbox.c.type, outbox.c.body, outbox.c.routing_key))
    (told,) = [row for row in rows if row.type == PreflightRecorded.type_name]
    data = PreflightRecorded.model_validate(json.loads(told.body)["data"])
    assert (data.failed, data.warned) == (("rights",), ("clock",))
    assert data.report_sha256 == hashlib.sha256(rfc8785.dumps(made.model_dump(mode="json"))).digest()
    assert told.routing_key.startswith("-.")
