"""The ledger in a hospital's database: what is on record, what leaves, and what real studies are charged."""

import math

import pytest
from ledger_stage import (
    LIMITS,
    ORDER,
    Q1,
    Q2,
    Hospital,
    commit,
    part_of,
    plan_of,
    refund,
    reserve,
    run_id,
    statements,
    window,
)

from cohortium_connector.ledger.plans import ledger_plan
from cohortium_connector.ledger.proofs import RunOver
from cohortium_connector.ledger.service import Committed, Reserved
from cohortium_connector.ledger.tables import metadata as ledger_metadata
from cohortium_connector.ledger.view import explain, look
from cohortium_connector.store.tables import metadata
from cohortium_kit.migrate import check_schema
from cohortium_messages.ids import StudyId
from cohortium_messages.ledger import LedgerEvent, LedgerRecorded
from cohortium_messages.privacy import DistributedPrivacy, LocalPrivacy, SitePrivacy
from cohortium_messages.study import LocalTraining, LogisticRecipe
from cohortium_privacy.chain import verify_statement
from cohortium_privacy.filter import budget
from cohortium_privacy.ledger_plan import Exhausted, LedgerPlan, Limits
from cohortium_privacy.plan import Course, PrivacyPlan
from cohortium_privacy.plan import plan_of as privacy_plan_of

B = budget(3.0, 1e-5, ORDER)


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
    await capped.db.run("freeze", lambda tx: capped.ledger.freeze(tx, Q1, "ROWS_LOST"))
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
