"""One hospital sends rubbish by the thousand: few dead letters, few events, and the others are heard as ever."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cohortium_aggregator.app import App as Aggregator
from cohortium_aggregator.settings import AggregatorSettings
from cohortium_audit.app import App as Audit
from cohortium_audit.settings import AuditSettings
from cohortium_consent.app import App as Consent
from cohortium_consent.settings import ConsentSettings
from cohortium_enrolment.app import App as Enrolment
from cohortium_enrolment.settings import EnrolmentSettings
from cohortium_kit.bus import Outgoing
from cohortium_kit.memory import MemoryBus
from cohortium_kit.penalties import MOST_REFUSED, SILENCE_S, TOO_MANY_REFUSED
from cohortium_messages.events import FaultSeen
from cohortium_messages.governance import SiteRegistered, SiteRevoked
from cohortium_messages.topology import SERVICE_NAMES, UPLINK, dead_letters, uplink_key
from cohortium_scheduler.app import App as Scheduler
from cohortium_scheduler.settings import SchedulerSettings
from governance_stage import Hospital, Stage, eventually, hear, sent_of

MANY = 2000
BUILT: dict[str, tuple[Any, Any]] = {
    "enrolment": (Enrolment, EnrolmentSettings),
    "consent": (Consent, ConsentSettings),
    "scheduler": (Scheduler, SchedulerSettings),
    "aggregator": (Aggregator, AggregatorSettings),
    "audit": (Audit, AuditSettings),
}


@contextlib.asynccontextmanager
async def inbox_of(stage: Stage, role: str) -> AsyncIterator[tuple[Any, MemoryBus]]:
    """The service as it is wired, its inbox consumed, with two sites that it knows; nothing else of it runs."""
    app_type, settings_type = BUILT[role]
    await (await stage.database(role)).close()
    bus = await stage.bus()
    app = await app_type.build(settings_type.model_validate(stage.settings(role)), bus=bus, clock=stage.clock)
    app.db = app.ctx.db if role == "aggregator" else app._db if role == "scheduler" else app.db
    if role != "enrolment":
        for site in stage.hospitals[:2]:
            word = SiteRegistered(site_id=site.site_id, name=site.name, identity_pk=site.key.public)
            await hear(app, role, stage.from_service("enrolment", role, word))
    await app.consumer.start()
    stop = asyncio.Event()
    listening = asyncio.create_task(app._listen_for_presence(stop) if role == "scheduler" else stop.wait())
    try:
        yield app, bus
    finally:
        await app.consumer.stop()
        stop.set()
        await listening
        await app.db.close()
        await bus.close()


def unsigned(stage: Stage, site: Hospital, receiver: str) -> Outgoing:
    return Outgoing(UPLINK.name, uplink_key(site.site_id, receiver), b"{}", "rubbish", "x")


def proven(stage: Stage, site: Hospital, receiver: str) -> Outgoing:
    """Signed well, and not for a site to say."""
    return stage.from_site(site, receiver, SiteRevoked(site_id=site.site_id, reason="KEY_LOST"))


async def flood(bus: MemoryBus, outgoing: Outgoing, count: int) -> None:
    """Send it so often, each a message of its own, and return when all of it is answered."""
    for number in range(count):
        await bus.publish(replace(outgoing, message_id=f"rubbish-{number}"))

    async def answered() -> bool:
        return not any(one._queue.ready or one._working for one in bus._subscriptions)

    await eventually(answered, timeout_s=60)


@pytest.mark.parametrize("rubbish", [unsigned, proven])
@pytest.mark.parametrize("receiver", [*SERVICE_NAMES, "presence"])
async def test_thousands_of_bad_messages_are_few_letters_and_few_events(
    tmp_path: Path, receiver: str, rubbish: Any
) -> None:
    stage = Stage.at(tmp_path)
    noisy, calm = stage.hospitals[:2]
    role = "scheduler" if receiver == "presence" else receiver
    async with inbox_of(stage, role) as (app, bus):

        async def parked() -> int:
            """What goes to the dead letters; presence has none, and what is wrong there is a line in the log."""
            if receiver == "presence":
                return 0
            return await bus.queue_depth(dead_letters(role))

        few = 0 if receiver == "presence" else 1

        async def silences() -> list[str]:
            told = [event for _, event in await sent_of(app, FaultSeen)]
            return [event.key_id for event in told if event.code == TOO_MANY_REFUSED]

        await flood(bus, rubbish(stage, noisy, receiver), MANY)
        assert await parked() == few * (MOST_REFUSED + 1)
        assert len(await sent_of(app, FaultSeen)) <= MOST_REFUSED + 1
        assert await silences() == [f"site:{noisy.site_id}"]

        await flood(bus, rubbish(stage, calm, receiver), 1)
        assert await parked() == few * (MOST_REFUSED + 2), "who sends one bad message is parked as ever"

        await stage.clock.advance(SILENCE_S)
        await flood(bus, rubbish(stage, noisy, receiver), 1)
        assert await parked() == few * (MOST_REFUSED + 3), "a silence is over after a while"
