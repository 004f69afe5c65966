"""The hospital watches its studies' logs: each must grow, and prove that it holds what the hospital reported."""

import json
from typing import Any

from connector_world import AheadClock, World
from structlog.testing import capture_logs

from cohortium_connector.commands import LocalSite
from cohortium_connector.store import log_watch
from cohortium_connector.witness import DAMAGED
from cohortium_messages.envelope import KEY_ID_HEADER, SIGNATURE_HEADER
from cohortium_messages.events import AuditEvent, FaultSeen, WitnessNamed
from cohortium_messages.governance import ManifestPublished
from cohortium_messages.ids import StudyId
from cohortium_messages.runs import TaskRefused
from cohortium_messages.witness import (
    CheckpointCosigned,
    CheckpointElsewhere,
    CheckpointOffered,
    EventsIncluded,
    Included,
    InclusionAsked,
)
from cohortium_protocol.logproof import entry_bytes, log_name
from cohortium_protocol.notes import Checkpoint, sign_checkpoint
from cohortium_protocol.translog import Tree, leaf_hash
from cohortium_protocol.witness import Request

QUARTER, HALF_DAY = 900.0, 43200.0
OVERDUE, STALE = "INCLUSION_OVERDUE", "LOG_STALE"


class Log:
    """The study's log as an audit service keeps it that may withhold what it likes."""

    def __init__(self, world: World) -> None:
        stored: dict[Any, bytes] = {}
        self._world = world
        self._tree = Tree(0, stored.__getitem__, stored.__setitem__)
        self.places: dict[str, int] = {}
        self._shown = 0
        self._add("another's", b"another's")

    def _add(self, event_id: str, entry: bytes) -> None:
        self.places[event_id] = self._tree.append(leaf_hash(entry))

    def record(self) -> None:
        """Take in every event that the connector has sent so far, each once."""
        for sent in self._world.sent:
            out = sent.outgoing
            if isinstance(sent.message, AuditEvent) and out.message_id not in self.places:
                signature = bytes.fromhex(out.headers[SIGNATURE_HEADER])
                self._add(out.message_id, entry_bytes(json.loads(out.body), out.headers[KEY_ID_HEADER], signature))

    async def show(self) -> None:
        """Offer the newest checkpoint; returns when the hospital has cosigned it."""
        origin = log_name(self._world.trust().federation, self._world.study.name)
        checkpoint = Checkpoint(origin, self._tree.size, self._tree.root())
        proof = tuple(self._tree.consistency(self._shown, self._tree.size)) if self._shown else ()
        note = sign_checkpoint(checkpoint, self._world.services["audit"])
        request = Request(self._shown, proof, note).text()
        await self._world.say("audit", CheckpointOffered(study_id=self._world.study.name, request=request))
        assert (await self._world.expect(CheckpointCosigned)).size == self._tree.size
        self._shown = self._tree.size

    def answer(self, asked: InclusionAsked, size: int | None = None) -> EventsIncluded:
        size = self._tree.size if size is None else size
        events = tuple(
            Included(event_id=one, index=self.places[one], hashes=tuple(self._tree.inclusion(self.places[one], size)))
            for one in asked.event_ids
            if one in self.places
        )
        return EventsIncluded(study_id=self._world.study.name, size=size, events=events)

    async def prove_all(self) -> None:
        """Record, show, and answer what the hospital asks, until it awaits nothing."""
        self.record()
        await self.show()
        await pass_time(self._world, 61)
        asked = await self._world.expect(InclusionAsked)
        await self._world.say("audit", self.answer(asked))
        await self._world.settled()
        assert await awaited(self._world) == set()


async def pass_time(world: World, seconds: float) -> None:
    """So much time passes, and the connector looks; what it says then has left when this returns."""
    assert isinstance(world.clock, AheadClock)
    world.clock.ahead_s += seconds
    await world.app.log_watch.look()
    await world.settled()


async def awaited(world: World) -> set[str]:
    async with world.app.db.reading("awaited") as tx:
        rows = await tx.rows(log_watch.awaited_event.select())
    return {row.event_id for row in rows}


def standing(world: World) -> list[str]:
    return [code for study, code in world.app.log_watch.standing if study == world.study.name]


async def ready(world: World) -> str:
    _, _, body = await world.app._shown.pages()["/readyz"]()
    return body.decode()


def shown_alarms(world: World, code: str) -> float:
    value = world.app.db.metrics.registry.get_sample_value("cohortium_connector_log_alarms", {"code": code})
    assert value is not None
    return value


async def test_what_is_proven_to_be_in_the_log_is_not_awaited_any_more(joined: World) -> None:
    log = Log(joined)
    await joined.settled()
    told = {sent.outgoing.message_id for sent in joined.sent if isinstance(sent.message, AuditEvent)}
    assert told
    assert await awaited(joined) == told
    await pass_time(joined, 30)
    assert joined.all(InclusionAsked) == []
    await log.prove_all()
    await pass_time(joined, QUARTER)
    assert standing(joined) == []
    assert len(joined.all(InclusionAsked)) == 1


async def test_the_hospital_hears_when_its_events_are_withheld_and_when_they_are_not_any_more(joined: World) -> None:
    log = Log(joined)
    await joined.settled()
    await log.show()  # the log grows, but without what this hospital says
    told = await awaited(joined)
    await pass_time(joined, 61)
    asked = await joined.expect(InclusionAsked)
    assert set(asked.event_ids) == told
    await pass_time(joined, QUARTER / 2)
    # It may have been lost on the way: once more, byte for byte.
    for event_id in told:
        copies = [sent.outgoing for sent in joined.sent if sent.outgoing.message_id == event_id]
        assert len(copies) == 2
        assert copies[0] == copies[1]
    assert standing(joined) == []
    with capture_logs() as logs:
        await pass_time(joined, QUARTER)
    assert standing(joined) == [OVERDUE]
    assert [line["log_level"] for line in logs if line["event"] == "log_alarm_raised"] == ["error"]
    assert await ready(joined) == f"degraded: {OVERDUE} in heart\n"
    assert shown_alarms(joined, OVERDUE) == 1
    async with LocalSite.open(joined.settings(), joined.clock) as site:
        assert [(one.study, one.code) for one in (await site.status()).log_alarms] == [("heart", OVERDUE)]
    # Again when it is twice as old, and not whenever somebody looks.
    await pass_time(joined, 1)
    assert all([one.outgoing.message_id for one in joined.sent].count(event_id) == 3 for event_id in told)
    log.record()
    await log.show()
    await joined.say("audit", log.answer(asked))
    await joined.settled()
    with capture_logs() as logs:
        await pass_time(joined, 0)
    assert standing(joined) == []
    assert [line["code"] for line in logs if line["event"] == "log_alarm_ended"] == [OVERDUE]
    assert await ready(joined) == "ready\n"
    assert shown_alarms(joined, OVERDUE) == 0


async def test_one_event_left_out_is_heard_of_though_later_ones_are_in_the_log(joined: World) -> None:
    log = Log(joined)
    await joined.settled()
    second = FaultSeen(key_id="service:aggregator", code="BAD_SIGNATURE")
    await joined.app.db.run("test", lambda tx: joined.app.desk.record(tx, second, StudyId(joined.study.name)))
    await joined.expect(FaultSeen)
    await joined.settled()
    first = next(sent.outgoing.message_id for sent in joined.sent if isinstance(sent.message, AuditEvent))
    log.places[first] = -1
    log.record()
    del log.places[first]
    assert len(log.places) > 1
    await log.show()
    await pass_time(joined, 61)
    await joined.say("audit", log.answer(await joined.expect(InclusionAsked)))
    await joined.settled()
    assert await awaited(joined) == {first}
    await pass_time(joined, QUARTER)
    assert standing(joined) == [OVERDUE]


async def test_a_proof_that_does_not_hold_is_refused_and_changes_nothing(joined: World) -> None:
    log = Log(joined)
    await joined.settled()
    log.record()
    await log.show()
    told = await awaited(joined)
    await pass_time(joined, 61)
    answer = log.answer(await joined.expect(InclusionAsked))
    false = [
        tuple(one.model_copy(update={"index": one.index - 1}) for one in answer.events),
        tuple(one.model_copy(update={"hashes": (bytes(32),) * len(one.hashes)}) for one in answer.events),
        tuple(one.model_copy(update={"hashes": ()}) for one in answer.events),
    ]
    for events in false:
        await joined.say("audit", answer.model_copy(update={"events": events}))
    await joined.settled()
    assert await joined.dead() == ["log_refused"] * 3
    assert told <= await awaited(joined)


async def test_a_proof_in_a_checkpoint_that_the_hospital_never_held_is_no_proof(joined: World) -> None:
    log = Log(joined)
    await joined.settled()
    await log.show()
    log.record()
    told = await awaited(joined)
    await pass_time(joined, 61)
    await joined.say("audit", log.answer(await joined.expect(InclusionAsked)))
    assert (await joined.expect(CheckpointElsewhere)).size == 1
    await joined.settled()
    assert await awaited(joined) == told


async def test_an_idle_log_is_stirred_and_raises_no_alarm(joined: World) -> None:
    log = Log(joined)
    await joined.settled()
    await log.prove_all()
    before = len(joined.all(WitnessNamed))
    for days in range(1, 4):
        await pass_time(joined, HALF_DAY)
        assert len(joined.all(WitnessNamed)) == before + days
        await log.prove_all()
        assert standing(joined) == []


async def test_a_log_that_stands_still_is_stale_until_it_grows(joined: World) -> None:
    log = Log(joined)
    await joined.settled()
    await log.prove_all()
    await pass_time(joined, HALF_DAY)
    await pass_time(joined, QUARTER)
    assert standing(joined) == [OVERDUE]  # it was stirred, and does not show it
    await pass_time(joined, HALF_DAY)
    assert standing(joined) == [OVERDUE, STALE]
    log.record()
    await log.show()
    await pass_time(joined, 0)
    assert standing(joined) == [OVERDUE]
    await joined.say("audit", log.answer((joined.all(InclusionAsked))[-1]))
    await joined.settled()
    await pass_time(joined, 0)
    assert standing(joined) == []


async def test_a_study_without_a_grant_raises_no_alarm(world: World) -> None:
    async with world.running(policy={"approvals": "manual"}):
        log = Log(world)
        await world.enrol()
        await world.say("enrolment", ManifestPublished(manifest=world.manifest()))
        await world.offer()
        await world.settled()
        await log.prove_all()
        await pass_time(world, 10 * HALF_DAY)
        assert standing(world) == []
        assert await awaited(world) == set()


async def test_an_alarm_outlives_a_restart_and_a_long_night_raises_none(world: World) -> None:
    async with world.running():
        await world.enrol()
        await world.offer()
        log = Log(world)
        await world.expect(WitnessNamed)
        await world.settled()
        await log.prove_all()
    assert isinstance(world.clock, AheadClock)
    world.clock.ahead_s += 4 * HALF_DAY
    async with world.running():
        await pass_time(world, 0)
        assert standing(world) == []
        await pass_time(world, QUARTER)
        assert standing(world) == [OVERDUE, STALE]  # stirred at the start, and nothing came of it
    async with world.running():
        await pass_time(world, 0)
        assert standing(world) == [OVERDUE, STALE]


async def test_what_has_not_left_yet_is_not_overdue(joined: World) -> None:
    log = Log(joined)
    await joined.settled()
    await log.prove_all()
    joined.refuse = lambda outgoing: outgoing.routing_key.endswith(".audit")
    assert isinstance(joined.clock, AheadClock)
    joined.clock.ahead_s += HALF_DAY
    await joined.app.log_watch.look()  # stirs, and it does not leave
    joined.clock.ahead_s += 2 * QUARTER
    await joined.app.log_watch.look()
    assert standing(joined) == []
    joined.refuse = None


async def test_a_damaged_witness_file_is_told_stops_no_part_and_ends_when_people_begin_anew(joined: World) -> None:
    log = Log(joined)
    await joined.settled()
    await log.prove_all()
    file = joined.folder / "spool" / "witness" / f"{joined.study.name}.json"
    file.write_bytes(file.read_bytes()[:40])
    await pass_time(joined, 0)
    assert standing(joined) == [DAMAGED]
    assert await ready(joined) == f"degraded: {DAMAGED} in heart\n"
    assert shown_alarms(joined, DAMAGED) == 1
    await joined.open(joined.params())  # it may have told of a fork
    assert (await joined.expect(TaskRefused)).code == DAMAGED
    async with LocalSite.open(joined.settings(), joined.clock) as site:
        assert (await site.status()).damaged_witness == ("heart",)
        await site.trust_logs_anew()
    await pass_time(joined, 0)
    assert standing(joined) == []
    assert await ready(joined) == "ready\n"


async def test_people_who_settled_a_fork_end_the_alarms_about_it(joined: World) -> None:
    await joined.settled()
    await pass_time(joined, QUARTER)
    await pass_time(joined, QUARTER)
    assert standing(joined) == [OVERDUE]
    async with LocalSite.open(joined.settings(), joined.clock) as site:
        await site.trust_logs_anew()
    await pass_time(joined, 0)
    assert standing(joined) == []
