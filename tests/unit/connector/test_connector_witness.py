"""The hospital as a witness: it cosigns what continues its log; on a fork it stops, keeps the evidence and says so."""

from typing import Any

import pytest
from connector_world import World
from structlog.testing import capture_logs

from cohortium_connector.commands import LocalSite
from cohortium_messages.events import ForkDetected, WitnessNamed
from cohortium_messages.governance import ManifestPublished
from cohortium_messages.runs import TaskRefused
from cohortium_messages.secure_sum import Ready
from cohortium_messages.witness import CheckpointCosigned, CheckpointElsewhere, CheckpointOffered
from cohortium_protocol.notes import Checkpoint, sign_checkpoint
from cohortium_protocol.signing import IdentityKey
from cohortium_protocol.translog import Tree, leaf_hash
from cohortium_protocol.witness import CosignerKey, Request, check_cosignature, witness_name


class Log:
    """The study's log as the audit service keeps it, or a second history of it."""

    def __init__(self, world: World, word: bytes = b"leaf") -> None:
        stored: dict[Any, bytes] = {}
        self._world = world
        self._tree = Tree(0, stored.__getitem__, stored.__setitem__)
        for number in range(40):
            self._tree.append(leaf_hash(word + b"%d" % number))

    def checkpoint(self, size: int) -> Checkpoint:
        origin = f"{self._world.trust().federation}/audit/{self._world.study.name}"
        return Checkpoint(origin, size, self._tree.root(size))

    def offer(self, old: int, new: int, key: IdentityKey | None = None) -> CheckpointOffered:
        note = sign_checkpoint(self.checkpoint(new), key or self._world.services["audit"])
        proof = tuple(self._tree.consistency(old, new)) if old else ()
        return CheckpointOffered(study_id=self._world.study.name, request=Request(old, proof, note).text())


async def known(world: World) -> None:
    await world.enrol()
    await world.say("enrolment", ManifestPublished(manifest=world.manifest()))
    await world.settled()


def checked(world: World, answer: CheckpointCosigned, log: Log) -> None:
    name = witness_name(world.trust().federation, world.site_id)
    assert answer.size
    check_cosignature(answer.line, log.checkpoint(answer.size), CosignerKey(name, answer.witness_key))


async def test_each_checkpoint_that_continues_the_log_is_cosigned(world: World) -> None:
    log = Log(world)
    async with world.running():
        await known(world)
        await world.say("audit", log.offer(0, 10))
        first = await world.expect(CheckpointCosigned)
        named = await world.expect(WitnessNamed)
        assert named.witness_key == first.witness_key != world.site_pk
        checked(world, first, log)
        await world.say("audit", log.offer(10, 25))
        second = await world.expect(CheckpointCosigned)
        checked(world, second, log)
        assert second.size == 25
        assert len(world.all(WitnessNamed)) == 1


async def test_what_was_cosigned_outlives_a_restart(world: World) -> None:
    log = Log(world)
    async with world.running():
        await known(world)
        await world.say("audit", log.offer(0, 10))
        key = (await world.expect(CheckpointCosigned)).witness_key
        await world.settled()
    async with world.running():
        await world.say("audit", log.offer(0, 12))
        assert (await world.expect(CheckpointElsewhere)).size == 10
        await world.say("audit", log.offer(10, 12))
        assert (await world.expect(CheckpointCosigned)).witness_key == key
        await world.settled()
        assert len(world.all(WitnessNamed)) == 1


async def test_a_fork_stops_all_work_and_is_kept_as_evidence(world: World) -> None:
    log, other = Log(world), Log(world, b"other")
    async with world.running():
        await known(world)
        await world.offer()
        await world.say("audit", log.offer(0, 10))
        await world.expect(CheckpointCosigned)
        with capture_logs() as logs:
            await world.say("audit", other.offer(10, 20))
            seen = await world.expect(ForkDetected)
        assert (seen.held_size, seen.offered_size) == (10, 20)
        assert (seen.held_root, seen.offered_root) == (log.checkpoint(10).root, other.checkpoint(20).root)
        assert [line["log_level"] for line in logs if line["event"] == "log_forked"] == ["critical"]
        await world.say("audit", log.offer(10, 20))
        await world.none_of(CheckpointCosigned)  # not even the history that it knew: people must look first
        await world.open(world.params())
        assert (await world.expect(TaskRefused)).code == "LOG_FORKED"
        await world.none_of(Ready)
    evidence = (world.folder / "spool" / "witness" / f"{world.study.name}.fork.txt").read_text()
    held, _, offered = evidence.partition("\n----\n")
    assert held == sign_checkpoint(log.checkpoint(10), world.services["audit"])
    assert offered == sign_checkpoint(other.checkpoint(20), world.services["audit"])


async def test_a_person_can_begin_anew_with_a_new_key(world: World) -> None:
    log, other = Log(world), Log(world, b"other")
    async with world.running():
        await known(world)
        await world.say("audit", log.offer(0, 10))
        old = await world.expect(CheckpointCosigned)
        await world.say("audit", other.offer(10, 20))
        await world.expect(ForkDetected)
        await world.settled()
    async with LocalSite.open(world.settings(), world.clock) as site:
        assert (await site.status()).forked_logs == (world.study.name,)
        assert await site.trust_logs_anew() == (world.study.name,)
        assert (await site.status()).forked_logs == ()
    async with world.running():
        await world.say("audit", other.offer(0, 20))
        new = await world.expect(CheckpointCosigned)
        await world.settled()
        assert new.witness_key != old.witness_key
        assert [named.witness_key for named in world.all(WitnessNamed)] == [old.witness_key, new.witness_key]


async def test_a_connector_that_runs_forgets_the_old_key_with_what_it_signed(world: World) -> None:
    log, other = Log(world), Log(world, b"other")
    async with world.running():
        await known(world)
        await world.say("audit", log.offer(0, 10))
        old = await world.expect(CheckpointCosigned)
        async with LocalSite.open(world.settings(), world.clock) as site:
            await site.trust_logs_anew()
        await world.say("audit", other.offer(0, 20))
        assert (await world.expect(CheckpointCosigned)).witness_key != old.witness_key


async def test_what_is_held_already_is_signed_again(world: World) -> None:
    """The file was written and the answer was lost: a crash between the two, or a transaction that began anew."""
    log = Log(world)
    async with world.running():
        await known(world)
        await world.say("audit", log.offer(0, 10))
        first = await world.expect(CheckpointCosigned)
        await world.say("audit", log.offer(10, 10))
        again = await world.expect(CheckpointCosigned)
        checked(world, again, log)
        assert (again.size, again.root) == (first.size, first.root)


@pytest.mark.parametrize("role", ["aggregator", "scheduler"])
async def test_only_audit_may_ask(world: World, role: str) -> None:
    async with world.running():
        await known(world)
        await world.say(role, Log(world).offer(0, 10))
        await world.none_of(CheckpointCosigned)
        await world.settled()
        assert await world.dead() == ["wrong_sender"]


async def test_a_checkpoint_that_the_log_key_did_not_sign_is_parked(world: World) -> None:
    async with world.running():
        await known(world)
        await world.say("audit", Log(world).offer(0, 10, IdentityKey.generate()))
        await world.none_of(CheckpointCosigned)
        await world.settled()
        assert await world.dead() == ["log_refused"]


async def test_a_log_of_a_study_that_is_not_ours_is_not_cosigned(world: World) -> None:
    async with world.running():
        await world.enrol()
        await world.say("audit", Log(world).offer(0, 10))
        await world.none_of(CheckpointCosigned)
