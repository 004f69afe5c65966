"""The platform's log hears how far each study's log has come."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from cohortium_audit.app import App
from cohortium_audit.domain import PLATFORM, LogName
from cohortium_audit.platform_log import platform_proofs
from cohortium_audit.store import logs
from cohortium_kit.bus import Ack
from cohortium_messages import events as ev
from cohortium_messages.ids import StudyId
from cohortium_messages.topology import inbox
from cohortium_verify.log import MerkleTree
from cohortium_verify.platform import check_platform
from governance_stage import STUDY, Stage, delivery, sent
from study_story import RUN


async def noted(stage: Stage, app: App) -> list[ev.StudyCheckpointed]:
    """What was said so far; the first time that it is seen, the log hears it."""
    found = [one for one in await sent(app) if isinstance(one.message, ev.StudyCheckpointed)]
    for one in found:
        assert one.key == f"-.{ev.StudyCheckpointed.type_name}"
        assert await app.consumer.handle(delivery(one.outgoing, inbox("audit"))) == Ack()
    return [one.message for one in found if isinstance(one.message, ev.StudyCheckpointed)]


async def hear(stage: Stage, app: App, state: str) -> None:
    said = stage.event("scheduler", ev.RunStateChanged.model_validate({"run_id": RUN, "state": state}))
    assert await app.consumer.handle(delivery(said, inbox("audit"))) == Ack()


async def test_a_study_is_noted_every_hour_and_when_its_run_ends(stage: Stage, audit: App) -> None:
    async def tick() -> None:
        await audit.db.run("tick", audit._sign_and_ask)

    await hear(stage, audit, "PREPARING")
    for _ in range(2):
        await tick()
    (first,) = await noted(stage, audit)
    await hear(stage, audit, "TRAINING")
    await stage.clock.advance(1800)
    await tick()
    assert await noted(stage, audit) == [first], "not before its time"
    await stage.clock.advance(1800)
    await tick()
    assert [one.size for one in await noted(stage, audit)] == [1, 2]
    await hear(stage, audit, "FINISHED")
    found = await noted(stage, audit)
    assert [(one.study_id, one.size) for one in found] == [(STUDY, 1), (STUDY, 2), (STUDY, 3)]
    async with audit.db.reading("logs") as tx:
        for one in found:
            signed = await logs.checkpoint(tx, LogName(STUDY), one.size)
            assert signed is not None
            assert signed.root == one.root
        state = await logs.state(tx, PLATFORM)
    assert state is not None
    assert state.size == 3
    proofs = await audit.db.run("proofs", lambda tx: platform_proofs(tx, audit.handlers, STUDY))
    assert await audit.db.run("proofs", lambda tx: platform_proofs(tx, audit.handlers, StudyId("another"))) == ()
    trust = stage.files.trust

    def checked(texts: Sequence[str], tree: MerkleTree, study: str = STUDY) -> str:
        shown: Any = SimpleNamespace(platform=lambda: tuple(texts))
        check = check_platform(shown, trust, study, tree)
        return check.fact if check.state == "passed" else check.failures[0].text

    async with audit.db.reading("entries") as tx:
        entries = await logs.entries(tx, LogName(STUDY), 0, 3)
    assert "3 states that the platform's log noted, the last of 3 entries" in checked(proofs, MerkleTree(entries))
    assert "has not noted this study yet" in checked((), MerkleTree(entries))
    assert "the rest was cut off" in checked(proofs, MerkleTree(entries[:2]))
    assert "not those that" in checked(proofs, MerkleTree([b"another first", *entries[1:]]))
    assert "something else" in checked(proofs, MerkleTree(entries), "lungs")
    assert "does not hold" in checked([proofs[0].replace("index 0", "index 1")], MerkleTree(entries))
