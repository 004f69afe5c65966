"""Private studies at the hospital: what is asked must follow from the study, and is charged before it is done."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from connector_private import CAPS, DISTRIBUTED, LOCAL, ROUNDS, PrivateWorld, private_study
from connector_session import Session
from connector_world import STUDY

from cohortium_connector.commands import LocalSite
from cohortium_connector.domain.policy import noise_objection
from cohortium_connector.training.jobs import ComputeStatistics, CountPatients, Evaluate, TrainLocally
from cohortium_messages.consent import ConsentFile, DocumentsShared
from cohortium_messages.events import ConsentSnapshot
from cohortium_messages.governance import GrantGiven
from cohortium_messages.ids import StudyId
from cohortium_messages.ledger import LedgerEvent
from cohortium_messages.runs import RunEnded, TaskRefused
from cohortium_messages.secure_sum import AbortVote, Echo, Ready, UploadHeader, WindowParams
from cohortium_messages.study import Study
from cohortium_protocol.codec import codec_for
from cohortium_protocol.grid import GridCodec
from consent_stage import Plane

pytest.importorskip("dp_accounting", reason="the privacy extra is not installed")


@pytest.fixture
async def private(tmp_path: Path) -> AsyncIterator[PrivateWorld]:
    """The connector runs, is registered, and has granted a study in mode distributed."""
    world = PrivateWorld(tmp_path)
    await world.declare()
    async with world.running():
        await world.join()
        yield world


async def update_session(world: PrivateWorld, version: int = 0, **changes: Any) -> Session:
    """An update window that is opened, with its model given where it is not there yet."""
    ref, _, _ = world.model(version)
    session = Session(world, world.private_params("update", ref, round=version + 1, **changes), world.manifest())
    await world.open(session.params)
    return session


async def up_to_upload(world: PrivateWorld, session: Session) -> UploadHeader:
    await session.fix_roster()
    header = await session.collect()
    await session.receipt()
    await world.reaches(session.params.window_id, "UPLOADED")
    return header


async def whole_round(world: PrivateWorld, version: int = 0) -> None:
    """One update from its window to its release."""
    session = await update_session(world, version)
    await world.give_model(version)
    await up_to_upload(world, session)
    await session.close()
    await world.reaches(session.params.window_id, "DONE")


# ------------------------------------------------------------------------------------------------ what may be asked


async def test_the_first_window_reads_no_row_and_charges_nobody(private: PrivateWorld) -> None:
    session = Session(private, private.private_params("statistics"), private.manifest())
    await session.up_to_upload()
    assert [type(job) for job in private.trained()] == [ComputeStatistics]
    assert (await private.ledger()).holdings == {}


async def test_an_update_is_planned_counted_charged_and_then_trained(private: PrivateWorld) -> None:
    session = await update_session(private)
    await private.give_model(0)
    ready = await private.expect(Ready)
    assert ready.window_id == session.params.window_id
    held = await private.holding()
    assert (held.reserved, held.committed) == (ROUNDS, 0)
    assert [type(job) for job in private.trained()] == [CountPatients, TrainLocally]
    work = private.trained()[-1].private
    assert work.noise == session.params.noise
    assert work.sites == 4
    assert len(set(work.seed)) > 8


async def test_the_upload_is_charged_with_the_commit_that_saves_it(private: PrivateWorld) -> None:
    session = await update_session(private)
    await private.give_model(0)
    header = await up_to_upload(private, session)
    held = await private.holding()
    assert (held.reserved, held.committed) == (ROUNDS - 1, 1)
    assert dict(held.bound) == {session.params.window_id: 0}
    assert header.vec_len == codec_for(session.params.vector, 4).plan.vec_len
    events = [event.statement for event in private.all(LedgerEvent)]
    assert [(one.state, one.reason, one.steps) for one in events if one.part == "training"] == [
        ("RESERVED", "PLANNED", ROUNDS),
        ("COMMITTED", "UPLOADED", 1),
    ]
    assert not any(b"patients" in sent.outgoing.body for sent in private.sent)


NOISE_CHANGES: list[dict[str, Any]] = [
    {"multiplier": 0.5},
    {"sampling_rate": 0.25},
    {"clip": 2.0},
    {"step": 1.0},
    {"site_sigma": 10.0},
    {"site_sigma": 0.0},
]


@pytest.mark.parametrize("change", NOISE_CHANGES, ids=lambda change: "".join(change))
async def test_other_noise_than_the_study_s_is_refused(private: PrivateWorld, change: dict[str, Any]) -> None:
    params = private.private_params("update", private.model(0)[0])
    assert params.noise is not None
    noise = params.noise.model_copy(update=change)
    assert noise != params.noise
    await refused(private, params.model_copy(update={"noise": noise}), "POLICY_REFUSED")


def as_before(params: WindowParams) -> WindowParams:
    return params.model_copy(update={"noise": None, "privacy_mode": "none"})


VECTORS: list[dict[str, Any]] = [{"ring_bits": 64}, {"dimension": 3}, {"encoding": "grid"}, {"rotate": True}]


async def test_a_window_without_the_promised_noise_is_refused(private: PrivateWorld) -> None:
    params = private.private_params("update", private.model(0)[0])
    await refused(private, as_before(params), "POLICY_REFUSED")
    await refused(private, fresh(params, noise=None), "POLICY_REFUSED")
    for change in VECTORS:
        vector = params.vector.model_copy(update=change)
        await refused(private, fresh(params, vector=vector), "POLICY_REFUSED")
    usual = private.params().vector
    await refused(private, private.private_params("statistics", vector=usual), "POLICY_REFUSED")
    for purpose in ("refinement", "training"):
        await refused(private, fresh(params, purpose=purpose), "POLICY_REFUSED")
    assert private.trained() == []


def fresh(params: WindowParams, **changes: Any) -> WindowParams:
    """The same again, as a window of its own."""
    return params.model_copy(update={"window_id": uuid4().bytes, **changes})


async def refused(world: PrivateWorld, params: WindowParams, code: str) -> None:
    before = len(world.trained())
    await world.open(params)
    refusal = await world.expect(TaskRefused)
    assert (refusal.window_id, refusal.code) == (params.window_id, code)
    assert len(world.trained()) == before


async def test_noise_for_a_larger_cohort_than_the_window_s_is_refused(private: PrivateWorld) -> None:
    """Fewer sites would then add too little between them."""
    base = private.model(0)[0]
    larger = private.private_params("update", base, least_cohort=4).noise
    usual = private.private_params("update", base)
    assert larger is not None
    assert usual.noise is not None
    assert larger.site_sigma < usual.noise.site_sigma
    await refused(private, fresh(usual, noise=larger), "POLICY_REFUSED")


async def test_the_hospital_is_told_why_a_windows_noise_is_refused(private: PrivateWorld) -> None:
    """In words that name the field, and the number that would be right."""
    base = private.model(0)[0]
    usual = private.private_params("update", base)
    study, manifest = private.study, private.manifest()
    assert usual.noise is not None
    assert noise_objection(usual, study, manifest) is None
    less = usual.model_copy(update={"noise": usual.noise.model_copy(update={"multiplier": 0.5})})
    told = noise_objection(less, study, manifest)
    assert told is not None
    assert "'multiplier': 0.5" in told
    assert f"'multiplier': {usual.noise.multiplier}" in told
    assert noise_objection(usual.model_copy(update={"noise": None}), study, manifest) is not None
    early = private.private_params("evaluation", base, round=ROUNDS - 1)
    assert noise_objection(early, study, manifest) == (
        f"the window evaluates round {ROUNDS - 1}; what is paid for is after round {ROUNDS}"
    )
    loud = study.model_copy(update={"privacy": study.privacy.model_copy(update={"noise_multiplier": 1e-3})})
    assert "privacy.noise_multiplier is 0.001, with which" in str(noise_objection(usual, loud, manifest))


async def test_a_hospital_hides_among_as_many_as_were_promised_or_takes_no_part(private: PrivateWorld) -> None:
    """Whatever the operator's own check of the study let pass."""
    members = private.manifest().members
    fields = {"mode": "site", "epsilon": 4.0, "delta": 1e-3, "sites": 50}
    study = private_study(fields, min_sites=34)
    usual = private.private_params("update", private.model(0)[0])
    few = private.manifest().model_copy(update={"members": members})
    assert noise_objection(usual, study, few) == (
        f"the study promises to hide a hospital among 50, and the manifest has {len(members)}"
    )
    enough = private.manifest().model_copy(update={"members": members[:1] * 50})
    assert "a sum of 3 hospitals could open; among 50 the fewest are 34" in str(noise_objection(usual, study, enough))
    larger = usual.model_copy(update={"least_cohort": 34})
    assert "the window's noise is" in str(noise_objection(larger, study, enough))


async def test_only_the_last_model_is_evaluated(private: PrivateWorld) -> None:
    base = private.model(2)[0]
    await refused(private, private.private_params("evaluation", base, round=ROUNDS - 1), "POLICY_REFUSED")
    params = private.private_params("evaluation", base)
    await private.open(params)
    await private.give_model(2)
    await private.expect(Ready)
    assert private.trained()[-1].private.noise == params.noise
    assert isinstance(private.trained()[-1], Evaluate)
    held = await private.holding("evaluation")
    assert (held.reserved, held.committed) == (1, 0)


async def test_an_evaluation_that_nobody_pays_for_is_refused(tmp_path: Path) -> None:
    unpaid = {**DISTRIBUTED, "evaluation_epsilon": None}
    world = PrivateWorld(tmp_path, private_study(unpaid))
    await world.declare()
    async with world.running():
        await world.join()
        asked = PrivateWorld(tmp_path).private_params("evaluation", world.model(2)[0])
        params = world.private_params("update", world.model(2)[0], round=ROUNDS)
        evaluation = fresh(params, purpose="evaluation", vector=asked.vector, noise=asked.noise)
        await refused(world, evaluation, "POLICY_REFUSED")


async def test_a_study_without_privacy_is_asked_for_no_noise(tmp_path: Path) -> None:
    world = PrivateWorld(tmp_path)
    noise = world.private_params("update", world.model(0)[0]).noise
    world.study = Study.model_validate(STUDY)
    await world.declare()
    async with world.running():
        await world.join()
        await refused(world, world.update_params(world.model(0)[0], noise=noise), "POLICY_REFUSED")


async def test_a_set_below_the_cohort_that_the_noise_is_for_is_not_confirmed(private: PrivateWorld) -> None:
    """Three sites are enough for the protocol, but the noise of three is not what was promised."""
    session = await update_session(private, least_cohort=4)
    await private.give_model(0)
    await session.fix_roster()
    await session.collect(without=private.peers[:1])
    await session.receipt()
    await private.reaches(session.params.window_id, "UPLOADED")
    await private.say("aggregator", session.show())
    refusal = await private.expect(TaskRefused)
    assert refusal.code == "COHORT_TOO_SMALL"
    await private.none_of(Echo)


async def test_private_cohorts_may_differ_by_one_site(private: PrivateWorld) -> None:
    """R9 is for sums whose difference shows a vector; here both have their noise."""
    first = await update_session(private)
    await private.give_model(0)
    await up_to_upload(private, first)
    await private.say("aggregator", first.show())
    await private.expect(Echo)
    await first.close()
    await private.reaches(first.params.window_id, "SPENT", "DONE")
    second = await update_session(private)
    await second.fix_roster(private.peers[:2])
    await second.collect(without=private.peers[2:])
    await second.receipt()
    await private.say("aggregator", second.show())
    await private.expect(Echo)


# ------------------------------------------------------------------------------------------------------- the ledger


async def test_proof_gives_a_use_back_and_the_same_vector_goes_out_again(private: PrivateWorld) -> None:
    session = await update_session(private)
    await private.give_model(0)
    await up_to_upload(private, session)
    await session.ask_abort()
    vote = await private.expect(AbortVote)
    votes = [vote, *(peer.vote(session.view) for peer in private.peers)]
    await private.say("aggregator", session.abort_cert(votes))
    await private.reaches(session.params.window_id, "FREED")
    held = await private.holding()
    assert (held.reserved, held.committed, held.releases) == (ROUNDS, 0, 1)
    again = await update_session(private)
    await up_to_upload(private, again)
    held = await private.holding()
    assert (held.reserved, held.committed) == (ROUNDS - 1, 1)
    assert dict(held.bound) == {again.params.window_id: 0}
    assert len([job for job in private.trained() if isinstance(job, TrainLocally)]) == 1


async def test_a_set_that_leaves_the_site_out_gives_its_use_back(private: PrivateWorld) -> None:
    session = await update_session(private)
    await private.give_model(0)
    await session.fix_roster()
    own = await session.collect()
    await session.receipt()
    await private.reaches(session.params.window_id, "UPLOADED")
    others = {index: header for index, header in session.headers.items() if index != own.index}
    await private.say("aggregator", session.show(others))
    echo = await private.expect(Echo)
    await private.say("aggregator", session.certify([echo, *session.others(others)]))
    await private.reaches(session.params.window_id, "UNMASKED", "FREED")
    held = await private.holding()
    assert (held.reserved, held.committed, held.releases) == (ROUNDS, 0, 1)


async def test_without_proof_a_use_stays_charged_and_the_next_one_has_other_noise(private: PrivateWorld) -> None:
    session = await update_session(private)
    await private.give_model(0)
    await up_to_upload(private, session)
    await session.close("ABORTED")
    await private.reaches(session.params.window_id, "SPENT")
    again = await update_session(private)
    await up_to_upload(private, again)
    held = await private.holding()
    assert (held.reserved, held.committed) == (ROUNDS - 2, 2)
    first, second = (job.private.seed for job in private.trained() if isinstance(job, TrainLocally))
    assert first != second


async def test_more_rounds_than_planned_are_refused_before_a_row_is_read(private: PrivateWorld) -> None:
    for version in range(ROUNDS):
        await whole_round(private, version)
    jobs = len(private.trained())
    ref, _, _ = private.model(ROUNDS)
    await private.open(private.private_params("update", ref, round=ROUNDS))
    await private.give_model(ROUNDS)
    assert (await private.expect(TaskRefused)).code == "EPSILON_EXHAUSTED"
    assert len(private.trained()) == jobs


async def test_the_end_of_a_run_gives_back_what_was_never_begun(private: PrivateWorld) -> None:
    await whole_round(private)
    ended = RunEnded(study_id=private.study.name, run_id=private.run_id, state="FAILED", reason="STOPPED_BY_OPERATOR")
    await private.say("scheduler", ended)
    await private.settled()
    held = await private.holding()
    assert (held.reserved, held.committed, bool(held.closed)) == (0, 1, True)
    assert (await private.holding("evaluation")).closed


async def test_a_table_with_too_many_patients_for_the_delta_is_refused_untrained(tmp_path: Path) -> None:
    world = PrivateWorld(tmp_path)
    await world.declare()
    async with world.running():
        await world.join()
        world.runners[0].rows = 20_000
        await world.open(world.private_params("update", world.model(0)[0]))
        await world.give_model(0)
        assert (await world.expect(TaskRefused)).code == "DELTA_TOO_LARGE"
        assert [type(job) for job in world.trained()] == [CountPatients]
        assert (await world.ledger()).holdings == {}


@pytest.fixture
def dated(tmp_path: Path) -> dict[str, Any]:
    """Settings of a hospital whose table says who its patients are, and since when."""
    table = tmp_path / "rows.csv"
    table.write_text("mrn,since\n" + "".join(f"p{number},2024-05-01\n" for number in range(20)))
    return {"datasets": {"*": {"path": str(table), "person_column": "mrn", "first_record_column": "since"}}}


async def test_a_plan_is_charged_to_the_quarters_of_the_patients_and_they_alone_are_used(
    dated: dict[str, Any], tmp_path: Path
) -> None:
    world = PrivateWorld(tmp_path)
    await world.declare()
    async with world.running(**dated):
        await world.join()
        world.runners[0].blocks = {"2024-Q2": 15, "2025-Q1": 5}
        await update_session(world)
        await world.give_model(0)
        await world.expect(Ready)
        assert {one.plan.block for one in (await world.ledger()).of_run(world.run_id)} == {"2024-Q2", "2025-Q1"}
        assert world.trained()[-1].private.blocks == ("2024-Q2", "2025-Q1")


async def test_newcomers_have_a_budget_of_their_own(dated: dict[str, Any], tmp_path: Path) -> None:
    """What an earlier study was charged to one quarter is no matter for a later study of another one's patients."""
    world = PrivateWorld(tmp_path)
    await world.declare()
    async with world.running(**dated):
        await world.join()
        world.runners[0].blocks = {"2024-Q2": 20}
        await update_session(world)
        await world.give_model(0)
        await world.expect(Ready)
        for name, blocks, code in (("second", {"2024-Q2": 20}, "EPSILON_EXHAUSTED"), ("third", {"2025-Q1": 20}, None)):
            await world.turn_to(private_study(name=name))
            world.runners[0].blocks = blocks
            await update_session(world)
            await world.give_model(0)
            if code is not None:
                assert (await world.expect(TaskRefused)).code == code
            else:
                await world.expect(Ready)
        assert {one.plan.block for one in (await world.ledger()).of_run(world.run_id)} == {"2025-Q1"}


async def test_a_plan_that_has_no_room_for_newcomers_either_is_refused_before_they_are_counted(
    dated: dict[str, Any], tmp_path: Path
) -> None:
    world = PrivateWorld(tmp_path)
    await world.declare()
    async with world.running(**dated, privacy={"epsilon_max": 0.5, "delta": 1e-5}):
        await world.join()
        await update_session(world)
        await world.give_model(0)
        assert (await world.expect(TaskRefused)).code == "EPSILON_EXHAUSTED"
        assert world.trained() == []


async def test_a_ledger_that_was_changed_stops_private_work_alone(tmp_path: Path) -> None:
    world = PrivateWorld(tmp_path)
    await world.declare()
    async with world.running():
        await world.join()
        await whole_round(world)
    with sqlite3.connect(tmp_path / "spool" / "spool.db") as database:
        database.execute("DROP TRIGGER ledger_row_is_final")
        database.execute("UPDATE ledger_row SET steps = 1 WHERE kind = 'PLAN'")
    database.close()
    world.runners.clear()
    async with world.running():
        ref, _, _ = world.model(1)
        await world.open(world.private_params("update", ref, round=2))
        await world.give_model(1)
        assert (await world.expect(TaskRefused)).code == "LEDGER_BROKEN"
        await world.turn_to(Study.model_validate({**STUDY, "name": "open"}))
        await world.open(world.params())
        assert (await world.expect(Ready)).params_hash
        assert [type(job) for runner in world.runners for job in runner.jobs] == [ComputeStatistics]


# ------------------------------------------------------------------------------------------------------- local noise


async def test_what_the_hospital_s_documents_agree_is_what_its_ledger_lets_through(tmp_path: Path) -> None:
    """The hospital's own limits have room for a second run; its signed data-use terms have not."""
    world = PrivateWorld(tmp_path, private_study(governance="required"))
    await world.declare()
    async with world.running(privacy={"epsilon_max": 50.0, "delta": 1e-5}):
        await world.enrol()
        await world.offer()
        await world.settled()
        plane = Plane(
            now=world.clock.now(),
            study=StudyId("heart"),
            study_digest=world.study.digest(),
            officers=tuple(world.officers),
            site_keys={world.site_id: world.app.desk.identity.key},
        )
        agreed = {"version": {"epsilon": 3.0}, "terms": {"privacy_cap": {"epsilon": 3.5, "delta": 1e-5}}}
        parts = plane.signed(world.site_id, plane.parts(world.site_id, **agreed))
        file = ConsentFile(people=plane.cards(), records=tuple(parts.values()))
        await world.say("consent", DocumentsShared(file=file))
        cohort = (await world.expect(GrantGiven)).grant.cohort
        await update_session(world)
        await world.give_model(0)
        await world.expect(Ready)
        told = await world.expect(ConsentSnapshot)
        assert cohort is not None
        assert (cohort.band, told.permitted, told.unit) == (None, None, "row"), "counts would be outside of the budget"
        assert (await world.holding()).reserved == ROUNDS
        await world.another_run()
        await world.open(world.private_params("update", world.model(0)[0]))
        await world.give_model(0)
        assert (await world.expect(TaskRefused)).code == "EPSILON_EXHAUSTED"
        assert (await world.ledger()).of_run(world.run_id) == ()


async def local_world(folder: Path, **federation: Any) -> PrivateWorld:
    world = PrivateWorld(folder, private_study(LOCAL, **federation))
    await world.declare()
    return world


async def test_local_training_is_charged_before_its_first_step(tmp_path: Path) -> None:
    world = await local_world(tmp_path)
    await world.start()
    await world.join()
    for runner in world.runners:
        runner.hold.clear()
    ref, _, _ = world.model(0)
    params = world.private_params("update", ref)
    await world.open(params)
    await world.give_model(0)
    await until_trained(world, 1)
    held = await world.holding()
    assert (held.reserved, held.committed) == (ROUNDS - 1, 1)
    await world.crash()
    await world.start()
    await world.expect(Ready)
    held = await world.holding()
    assert (held.reserved, held.committed) == (ROUNDS - 1, 1)
    first, second = (job.private.seed for job in world.trained() if isinstance(job, TrainLocally))
    assert first == second
    await world.crash()


async def until_trained(world: PrivateWorld, count: int) -> None:
    async with asyncio.timeout(60):
        while len([job for job in world.trained() if isinstance(job, TrainLocally)]) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_local_update_weighs_as_much_at_every_site(tmp_path: Path) -> None:
    world = await local_world(tmp_path)
    async with world.running():
        await world.join()
        ref, _, _ = world.model(0)
        params = world.private_params("update", ref)
        assert params.noise is not None
        assert params.noise.site_sigma == 0
        heavy = params.vector.model_copy(update={"weight_cap": 1000})
        await refused(world, fresh(params, vector=heavy), "POLICY_REFUSED")
        session = Session(world, params, world.manifest())
        await world.open(params)
        await world.give_model(0)
        await up_to_upload(world, session)
        assert (await world.holding()).committed == 1


def test_the_tail_of_a_quiet_update_says_nothing() -> None:
    world = PrivateWorld(Path("/nowhere"), private_study(LOCAL))
    spec = world.private_params("update", world.model(0)[0]).vector.model_copy(update={"clip_norm_l2": 1.0})
    spec = spec.model_copy(update={"rotate": False, "range_factor": 1e-3, "chunk_bytes": 2048})
    codec = codec_for(spec, 4)
    assert isinstance(codec, GridCodec)
    update = np.full(spec.dimension, 0.5, dtype=np.float32)

    def tail(*, quiet: bool) -> list[int]:
        encoder = codec.encoder(update, staleness=0, rows=1, uniforms=lambda _, n: np.zeros(n), quiet=quiet)
        return [int(word) for word in encoder.chunk(0)[-7:]]

    assert tail(quiet=False) == [1, 1, 1, 1, 255, 255, 1]
    assert tail(quiet=True) == [1, 1, 1, 1, 255, 255, 0]


# ------------------------------------------------------------------------------------------- two studies, one budget


async def test_the_second_study_is_cut_off_by_what_the_first_one_spent(tmp_path: Path) -> None:
    """Everything is restarted in between: broker, connector, platform. What was spent is in the hospital's own file."""
    world = PrivateWorld(tmp_path)
    await world.declare()
    async with world.running():
        await world.join()
        for version in range(ROUNDS):
            await whole_round(world, version)
        ended = RunEnded(study_id=world.study.name, run_id=world.run_id, state="FINISHED", reason="")
        await world.say("scheduler", ended)
        await world.settled()
    first = world.run_id
    await world.new_broker()
    world.runners.clear()
    async with world.running():
        await world.turn_to(private_study(name="stroke"))
        await world.open(world.private_params("update", world.model(0)[0]))
        await world.give_model(0)
        refusal = await world.expect(TaskRefused)
        assert (refusal.code, refusal.column) == ("EPSILON_EXHAUSTED", None)
        assert world.trained() == []
        assert (await world.ledger()).of_run(world.run_id) == ()
        held = await world.holding(run_id=first)
        assert (held.reserved, held.committed) == (0, ROUNDS)
        assert world.all(LedgerEvent) == []
    async with world.running(privacy={**CAPS["privacy"], "epsilon_max": 8.0}):
        await world.open(fresh(world.private_params("update", world.model(0)[0])))
        await world.expect(Ready)
        assert (await world.holding()).reserved == ROUNDS


async def test_a_study_has_no_more_than_the_hospital_gives_it(tmp_path: Path) -> None:
    world = PrivateWorld(tmp_path)
    await world.declare()
    async with world.running(privacy={**CAPS["privacy"], "studies": {"heart": 2.0}}):
        await world.join()
        await world.open(world.private_params("update", world.model(0)[0]))
        await world.give_model(0)
        assert (await world.expect(TaskRefused)).code == "EPSILON_EXHAUSTED"
        assert world.trained() == []


async def test_a_study_that_never_began_leaves_its_budget_to_another(tmp_path: Path) -> None:
    world = PrivateWorld(tmp_path)
    await world.declare()
    async with world.running():
        await world.join()
        await world.open(world.private_params("update", world.model(0)[0]))
        await world.give_model(0)
        await world.expect(Ready)
        ended = RunEnded(study_id=world.study.name, run_id=world.run_id, state="FAILED", reason="STOPPED_BY_OPERATOR")
        await world.say("scheduler", ended)
        await world.settled()
        await world.turn_to(private_study(name="stroke"))
        await world.open(world.private_params("update", world.model(0)[0]))
        await world.give_model(0)
        await world.expect(Ready)
        assert (await world.holding()).reserved == ROUNDS
        assert world.all(GrantGiven)


async def test_a_hospital_that_withdraws_gets_back_what_was_never_begun(private: PrivateWorld) -> None:
    """By a command in another process, beside the running connector."""
    await whole_round(private)
    async with LocalSite.open(private.settings()) as site:
        assert await site.withdraw("heart") == 1
    held = await private.holding()
    assert (held.reserved, held.committed, bool(held.closed)) == (0, 1, True)
    await private.open(private.private_params("update", private.model(1)[0], round=2))
    assert (await private.expect(TaskRefused)).code == "GRANT_WITHDRAWN"
