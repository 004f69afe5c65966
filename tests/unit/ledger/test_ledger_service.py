"""The ledger in a hospital's database: what is on record, what leaves, and how a changed record is found."""

import math
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from federation_in_memory import Federation, integer_spec
from ledger_stage import LIMITS, ORDER, Q1, Q2, Hospital, part_of, plan_of, run_id, window

from cohortium_connector.ledger.errors import LedgerBroken, ProofRefused
from cohortium_connector.ledger.plans import ledger_plan
from cohortium_connector.ledger.proofs import Aborted, Excluded, Proof, RunOver
from cohortium_connector.ledger.service import Committed, Reserved
from cohortium_connector.ledger.tables import ledger_row
from cohortium_connector.ledger.tables import metadata as ledger_metadata
from cohortium_connector.ledger.view import explain, look
from cohortium_connector.store.tables import metadata
from cohortium_kit.db import Tx
from cohortium_kit.migrate import check_schema
from cohortium_messages.ids import StudyId
from cohortium_messages.ledger import LedgerEvent, LedgerRecorded, LedgerStatement, Part
from cohortium_messages.privacy import DistributedPrivacy, LocalPrivacy, SitePrivacy
from cohortium_messages.secure_sum import AbortCert, EchoCert, Vote
from cohortium_messages.study import LocalTraining, LogisticRecipe
from cohortium_privacy.chain import verify_statement
from cohortium_privacy.filter import budget
from cohortium_privacy.ledger_plan import Exhausted, LedgerPlan, Limits
from cohortium_privacy.ledger_state import spent
from cohortium_privacy.plan import Course, PrivacyPlan
from cohortium_privacy.plan import plan_of as privacy_plan_of
from cohortium_protocol.survivors import abort_quorum, build_abort_vote

B = budget(3.0, 1e-5, ORDER)


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


async def test_the_migration_makes_the_tables_that_the_code_has(hospital: Hospital) -> None:
    assert await check_schema(hospital.db, metadata, ledger_metadata) == []


async def test_a_plan_is_on_record_after_a_restart(hospital: Hospital) -> None:
    reserved = await reserve(hospital, plan_of(1, part_of(0.1, 5), blocks=(Q1, Q2)))
    assert reserved == Reserved(run_id(1), (Q1, Q2))
    begun = await commit(hospital, 1, window(1))
    assert begun == Committed(run_id(1), "training", 4)
    before = await hospital.state()
    again = await hospital.restart()
    assert await again.state() == before
    assert await commit(again, 1, window(1)) == begun
    assert await reserve(again, plan_of(1, part_of(0.1, 5), blocks=(Q1,))) == reserved
    assert await again.state() == before
    await again.stop()


async def test_a_refusal_is_explained_to_the_hospital_alone(hospital: Hospital) -> None:
    await reserve(hospital, plan_of(1, part_of(B / 10, 6), study="lung"))
    await commit(hospital, 1, window(1))
    hospital.posted.clear()
    refused = await reserve(hospital, plan_of(2, part_of(B / 10, 5)))
    assert isinstance(refused, Exhausted)
    assert hospital.posted == []
    words = explain(refused)
    assert "study heart: account 2024-Q1 (epsilon 3 at delta 1e-05) has 40.0% of its budget left" in words
    assert "needs 50.0%" in words
    assert "lung 10.0% used and 50.0% reserved" in words


async def test_every_refusal_has_words(hospital: Hospital) -> None:
    await reserve(hospital, plan_of(1, part_of(0.1, 1)))
    await commit(hospital, 1, window(1))
    used_up = await commit(hospital, 1, window(2))
    assert isinstance(used_up, Exhausted)
    assert "rounds that it reserved are used up" in explain(used_up)
    hospital.limits = Limits(3.0, 1e-5, {"heart": 0.5})
    capped = await hospital.restart()
    refused = await reserve(capped, plan_of(2, part_of(0.5, 1)))
    assert isinstance(refused, Exhausted)
    assert "what privacy.studies allows heart of account" in explain(refused)
    await capped.db.run("freeze", lambda tx: capped.ledger.freeze(tx, None, "SITE_LEFT"))
    frozen = await reserve(capped, plan_of(3, part_of(0.1, 1)))
    assert isinstance(frozen, Exhausted)
    assert "frozen" in explain(frozen)
    assert "delta" in explain(Exhausted("DELTA_TOO_LARGE", StudyId("heart"), (Q1,)))
    await capped.stop()


async def test_what_leaves_is_the_public_price_of_public_steps(hospital: Hospital) -> None:
    await reserve(hospital, plan_of(1, part_of(0.1, 5), blocks=(Q1, Q2)))
    await commit(hospital, 1, window(1))
    told = statements(hospital, LedgerEvent)
    assert told == statements(hospital, LedgerRecorded)
    assert [service for service, _ in hospital.posted] == ["consent", "audit"] * 2
    assert [(one.state, one.reason, one.first_step, one.steps, one.rdp) for one in told] == [
        ("RESERVED", "PLANNED", 0, 5, 0.5),
        ("COMMITTED", "UPLOADED", 0, 1, 0.1),
    ]
    for one in told:
        verify_statement(one, hospital.key.public)
        text = one.model_dump_json()
        assert Q1 not in text
        assert "1000" not in text
    assert told[-1].head == (await hospital.state()).head.entry_hash


async def test_asking_again_tells_nothing_again(hospital: Hospital) -> None:
    for _ in range(3):
        await reserve(hospital, plan_of(1, part_of(0.1, 5)))
        await commit(hospital, 1, window(1))
    assert len(statements(hospital, LedgerEvent)) == 2


async def test_uses_left_say_whether_a_round_may_begin(hospital: Hospital) -> None:
    async def left(number: int) -> int:
        async with hospital.db.reading("left") as tx:
            return await hospital.ledger.uses_left(tx, run_id(number), "training")

    assert await left(1) == 0
    await reserve(hospital, plan_of(1, part_of(0.1, 2)))
    assert await left(1) == 2
    await commit(hospital, 1, None)
    assert await left(1) == 2  # the one that began may be taken up again
    await commit(hospital, 1, window(1))
    assert await left(1) == 1
    await refund(hospital, 1, RunOver("RUN_ENDED"))
    assert await left(1) == 0


async def test_changed_settings_are_on_record_from_the_next_start_on(hospital: Hospital) -> None:
    await reserve(hospital, plan_of(1, part_of(0.1, 2)))
    hospital.limits = Limits(1.0, 1e-5)
    again = await hospital.restart()
    account = (await again.state()).accounts[Q1]
    assert (account.epsilon_max, account.order, account.limit) == (1.0, ORDER, budget(1.0, 1e-5, ORDER))
    rows = (await again.state()).head.sequence
    third = await again.restart()
    assert (await third.state()).head.sequence == rows
    await third.stop()


# ------------------------------------------------------------------------------------------------------------- proofs


@pytest.fixture
def members() -> Federation:
    """Four sites, c = 1; all have uploaded."""
    federation = Federation.of(4, integer_spec(8))
    for index in federation.view.indices:
        federation.send_integers(index, np.full(8, index, dtype=np.int64))
    return federation


@pytest.fixture
async def member(members: Federation, tmp_path: Path) -> AsyncIterator[Hospital]:
    """The hospital that is site 1 there, with one use in that window."""
    site = members.site(1)
    hospital = Hospital(tmp_path / "member", site.site_id, site.identity)
    await hospital.start()
    await reserve(hospital, plan_of(1, part_of(0.1, 3)))
    await commit(hospital, 1, members.view.window_id)
    yield hospital
    await hospital.stop()


def abort_cert(members: Federation, votes: int) -> AbortCert:
    cast = [build_abort_vote(members.view, 0, index, members.site(index).identity) for index in range(1, votes + 1)]
    return AbortCert(
        window_id=members.view.window_id, step=0, votes=tuple(Vote(index=one.index, sig=one.sig) for one in cast)
    )


def echo_cert(members: Federation, *survivors: int) -> EchoCert:
    frozen, _ = members.freeze(survivors)
    return members.certificate(frozen, members.view.indices)


async def charged(hospital: Hospital) -> float:
    return spent(await hospital.state(), Q1, ORDER)


@pytest.mark.parametrize("kind", ["abort", "echo"])
async def test_a_certificate_frees_the_use_once(member: Hospital, members: Federation, kind: str) -> None:
    proof: Proof = (
        Aborted(members.view, abort_cert(members, abort_quorum(members.view)))
        if kind == "abort"
        else Excluded(members.view, echo_cert(members, 2, 3, 4))
    )
    await refund(member, 1, RunOver("RUN_ENDED"))
    assert await charged(member) == 0.1
    assert await refund(member, 1, proof) == 1
    assert await refund(member, 1, proof) == 0
    assert await charged(member) == 0
    told = statements(member, LedgerEvent)[-1]
    assert (told.state, told.reason) == ("RELEASED_BACK", "ABORT_CERT" if kind == "abort" else "ECHO_CERT")


async def test_a_certificate_of_a_plan_that_goes_on_lets_it_try_again(member: Hospital, members: Federation) -> None:
    assert await refund(member, 1, Excluded(members.view, echo_cert(members, 2, 3, 4))) == 2
    assert await charged(member) == pytest.approx(0.3)
    assert await commit(member, 1, window(5)) == Committed(run_id(1), "training", 2)
    assert [one.state for one in statements(member, LedgerEvent)][-3:] == ["RELEASED_BACK", "RESERVED", "COMMITTED"]


Forgery = Callable[[Federation], Aborted | Excluded]
FORGED: dict[str, Forgery] = {
    "a set that holds this site": lambda m: Excluded(m.view, echo_cert(m, 1, 2, 3)),
    "too few promises": lambda m: Aborted(m.view, abort_cert(m, abort_quorum(m.view) - 1)),
    "a promise counted twice": lambda m: Aborted(
        m.view, abort_cert(m, 1).model_copy(update={"votes": abort_cert(m, 1).votes * abort_quorum(m.view)})
    ),
    "a promise of another site's key": lambda m: Aborted(m.view, _swapped(abort_cert(m, abort_quorum(m.view)))),
    "promises of another window": lambda m: Aborted(
        m.view, abort_cert(Federation.of(4, integer_spec(8), window_name="other"), abort_quorum(m.view))
    ),
    "another step": lambda m: Aborted(m.view, abort_cert(m, abort_quorum(m.view)).model_copy(update={"step": 1})),
    "a set changed after it was confirmed": lambda m: Excluded(
        m.view, echo_cert(m, 1, 2, 3).model_copy(update={"bitmap": bytes([0b1110])})
    ),
}


def _swapped(cert: AbortCert) -> AbortCert:
    first, second, *rest = cert.votes
    votes = (Vote(index=first.index, sig=second.sig), Vote(index=second.index, sig=first.sig), *rest)
    return cert.model_copy(update={"votes": votes})


@pytest.mark.parametrize("forgery", FORGED)
async def test_what_proves_nothing_gives_nothing_back(member: Hospital, members: Federation, forgery: str) -> None:
    rows = (await member.state()).head.sequence
    with pytest.raises(ProofRefused, match="stay charged"):
        await refund(member, 1, FORGED[forgery](members))
    assert (await member.state()).head.sequence == rows


async def test_a_roster_with_another_key_for_this_site_proves_nothing(tmp_path: Path, members: Federation) -> None:
    stranger = Hospital(tmp_path / "stranger", members.site(1).site_id, members.site(2).identity)
    await stranger.start()
    await reserve(stranger, plan_of(1, part_of(0.1, 3)))
    await commit(stranger, 1, members.view.window_id)
    with pytest.raises(ProofRefused, match="another key"):
        await refund(stranger, 1, Excluded(members.view, echo_cert(members, 2, 3, 4)))
    await stranger.stop()


async def test_a_valid_certificate_of_another_window_frees_nothing(member: Hospital) -> None:
    other = Federation.of(4, integer_spec(8), window_name="other")
    proof = Aborted(other.view, abort_cert(other, abort_quorum(other.view)))
    assert await refund(member, 1, proof) == 0


# --------------------------------------------------------------------------------------------- changed and lost rows


async def with_rows(hospital: Hospital) -> None:
    await reserve(hospital, plan_of(1, part_of(0.1, 5)))
    for number in (1, 2, 3):
        await commit(hospital, 1, window(number))
    await hospital.ledger.note_head(hospital.db)


def tamper(file: Path, *statements_: str) -> None:
    """As somebody with the database file would: without the triggers."""
    with sqlite3.connect(file) as connection:
        for trigger in ("ledger_row_is_final", "ledger_row_stays"):
            connection.execute(f"DROP TRIGGER IF EXISTS {trigger}")
        for statement in statements_:
            assert connection.execute(statement).rowcount != 0
    connection.close()


CHANGES = {
    "a price": "UPDATE ledger_row SET entry = CAST(replace(entry, '0.1', '0.0') AS BLOB) WHERE sequence = 4",
    "the kind of a value": "UPDATE ledger_row SET entry = CAST(entry AS TEXT) WHERE sequence = 4",
    "a signature": "UPDATE ledger_row SET sig = zeroblob(64) WHERE sequence = 3",
    "a hash": "UPDATE ledger_row SET entry_hash = zeroblob(32) WHERE sequence = 3",
    "a column beside": "UPDATE ledger_row SET first_step = 9 WHERE sequence = 4",
    "the state beside": "UPDATE ledger_row SET state = 'RELEASED_BACK' WHERE sequence = 4",
    "a row in the middle": "DELETE FROM ledger_row WHERE sequence = 3",
    "the first row": "DELETE FROM ledger_row WHERE sequence = 1",
    "the last row": "DELETE FROM ledger_row WHERE sequence = 5",
    "every row": "DELETE FROM ledger_row",
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_changed_ledger_stops_at_the_start(hospital: Hospital, change: str) -> None:
    await with_rows(hospital)
    await hospital.stop()
    tamper(hospital.file, CHANGES[change])
    await hospital.connect()
    with pytest.raises(LedgerBroken, match=r"privacy ledger (was changed|ends at)"):
        await hospital.ledger.open(hospital.db)
    with pytest.raises(LedgerBroken):
        await reserve(hospital, plan_of(2, part_of(0.1, 1)))
    with pytest.raises(LedgerBroken):
        await commit(hospital, 1, window(9))


async def test_the_database_itself_keeps_rows_as_they_are(hospital: Hospital) -> None:
    await with_rows(hospital)

    async def change(tx: Tx) -> None:
        await tx.execute(sa.update(ledger_row).values(steps=1))

    async def delete(tx: Tx) -> None:
        await tx.execute(sa.delete(ledger_row))

    for work in (change, delete):
        with pytest.raises(sa.exc.IntegrityError, match="append-only"):
            await hospital.db.run("forbidden", work)


async def test_the_database_itself_refuses_a_second_row_for_the_same_steps(hospital: Hospital) -> None:
    await with_rows(hospital)
    columns = [column.name for column in ledger_row.columns]

    async def double(tx: Tx) -> None:
        row = await tx.row(sa.select(ledger_row).where(ledger_row.c.sequence == 4))
        assert row is not None
        values = {**dict(zip(columns, row, strict=True)), "sequence": 6, "entry_hash": bytes(32)}
        await tx.execute(sa.insert(ledger_row).values(values))

    with pytest.raises(sa.exc.IntegrityError, match="UNIQUE"):
        await hospital.db.run("double", double)


async def test_a_restored_copy_is_not_believed_until_it_is_written_off(hospital: Hospital) -> None:
    await reserve(hospital, plan_of(1, part_of(0.1, 5)))
    await hospital.ledger.note_head(hospital.db)
    await hospital.stop()
    with sqlite3.connect(hospital.file) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    copy = hospital.file.read_bytes()
    await hospital.start()
    await commit(hospital, 1, window(1))
    await reserve(hospital, plan_of(2, part_of(0.5, 1)))
    await hospital.ledger.note_head(hospital.db)
    await hospital.stop()
    for file in hospital.folder.glob("spool.db*"):
        file.unlink()
    hospital.file.write_bytes(copy)
    await hospital.connect()
    with pytest.raises(LedgerBroken, match="older copy"):
        await hospital.ledger.open(hospital.db)
    await hospital.ledger.write_off(hospital.db, Q1)
    again = await hospital.restart()
    refused = await reserve(again, plan_of(3, part_of(0.1, 1)))
    assert isinstance(refused, Exhausted)
    assert refused.code == "LEDGER_FROZEN"
    assert isinstance(await reserve(again, plan_of(3, part_of(0.1, 1), blocks=(Q2,))), Reserved)
    await again.stop()


async def test_a_damaged_anchor_stops_the_ledger(hospital: Hospital) -> None:
    await with_rows(hospital)
    (hospital.folder / "ledger.head").write_text("{")
    await hospital.stop()
    await hospital.connect()
    with pytest.raises(LedgerBroken, match="damaged"):
        await hospital.ledger.open(hospital.db)


async def test_rows_that_were_rolled_back_leave_no_trace(hospital: Hospital) -> None:
    await reserve(hospital, plan_of(1, part_of(0.1, 5)))

    async def fails(tx: Tx) -> None:
        await hospital.ledger.commit(tx, run_id(1), "training", window(1))
        await hospital.ledger.commit(tx, run_id(1), "training", window(2))
        raise RuntimeError("after the ledger, before the commit")

    before = await hospital.state()
    for _ in range(2):
        with pytest.raises(RuntimeError):
            await hospital.db.run("fails", fails)
        assert await hospital.state() == before
    assert await commit(hospital, 1, window(3)) == Committed(run_id(1), "training", 4)


async def test_two_processes_on_one_spool_see_each_others_rows(hospital: Hospital) -> None:
    other = Hospital(hospital.folder)
    await other.start()
    await reserve(hospital, plan_of(1, part_of(0.6 * B, 1)))
    assert isinstance(await reserve(other, plan_of(2, part_of(0.6 * B, 1))), Exhausted)
    await reserve(other, plan_of(3, part_of(0.4 * B, 1)))
    assert isinstance(await reserve(hospital, plan_of(4, part_of(0.1 * B, 1))), Exhausted)
    await other.stop()


# --------------------------------------------------------------------------------------------------- from real studies


def course(rounds: int = 10) -> Course:
    recipe = LogisticRecipe(trainer="torch.logistic", local=LocalTraining(epochs=2))
    return Course(recipe=recipe, rounds=rounds, dimension=20, buffered=False, least_sites=4, colluding=1)


def entry_of(plan: PrivacyPlan, rounds: int = 10) -> LedgerPlan:
    return ledger_plan(StudyId("heart"), bytes(32), run_id(1), plan, rounds, {Q1: 500})


async def test_a_distributed_study_that_asks_for_all_of_it_fits_exactly(hospital: Hospital) -> None:
    privacy = DistributedPrivacy(
        mode="distributed", epsilon=3.0, delta=1e-5, patients=5000, sampling_rate=0.2, evaluation_epsilon=1.0
    )
    plan = entry_of(privacy_plan_of(privacy, course()))
    assert [(part.part, part.uses, part.steps_per_use) for part in plan.parts] == [
        ("training", 10, 1),
        ("evaluation", 1, 1),
    ]
    assert LIMITS.epsilon_max == 3.0
    assert isinstance(await reserve(hospital, plan), Reserved)
    view = look(await hospital.state(), report=True)
    (account,) = view.accounts
    assert account.left_share == pytest.approx(0, abs=1e-3)
    assert account.epsilon_set_aside == pytest.approx(3.0, rel=1e-3)
    assert (account.epsilon_used, account.epsilon_report, account.committed_share) == (0.0, 0.0, 0.0)
    for number in range(1, 11):
        assert isinstance(await commit(hospital, 1, window(number)), Committed)
    (account,) = look(await hospital.state(), report=True).accounts
    assert account.epsilon_report is not None
    assert account.epsilon_report < account.epsilon_used == pytest.approx(3.0, rel=1e-3)
    assert [(run.study, run.reserved_share) for run in account.runs] == [("heart", 0.0)]
    assert account.runs[0].committed_share == pytest.approx(1.0, rel=1e-3)


def test_local_training_charges_the_steps_of_a_round_together() -> None:
    privacy = LocalPrivacy(mode="local", epsilon=3.0, delta=1e-6, patients=1000, sampling_rate=0.1, overlap=2)
    plan = privacy_plan_of(privacy, course())
    entry = entry_of(plan)
    (training,) = entry.parts
    assert (training.uses, training.steps_per_use) == (10, 20)
    (mechanism,) = training.mechanism
    assert mechanism.steps == 400  # of both hospitals that a patient may be at
    price = training.prices[plan.order - 2]
    assert price is not None
    assert math.isclose(price * 10, plan.divergence)


def test_where_a_hospital_is_the_unit_a_patient_is_charged_for_twice_the_distance() -> None:
    privacy = SitePrivacy(mode="site", epsilon=8.0, delta=1e-5, sites=60)
    plan = privacy_plan_of(privacy, Course(**{**_fields(course()), "least_sites": 60}))  # type: ignore[arg-type]
    (training,) = entry_of(plan).parts
    price = training.prices[plan.order - 2]
    assert price is not None
    assert math.isclose(price * 10, 4 * plan.divergence)


def _fields(value: Course) -> dict[str, object]:
    return {name: getattr(value, name) for name in Course.__dataclass_fields__}
