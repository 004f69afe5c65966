"""One honest message of each type, made of constants: what `contracts/fixtures` holds.

Keys and digests are hashes of their own names, so the files are the same on every machine. A fixture that was released
is never made again: a type whose shape changes gets a new name, and both names keep their fixture.
"""

import hashlib
from datetime import UTC, datetime, timedelta

from cohortium_messages import consent, duo, ledger, runs, witness
from cohortium_messages import events as ev
from cohortium_messages import governance as gov
from cohortium_messages import oversight as ov
from cohortium_messages import people as pe
from cohortium_messages import preflight as trial
from cohortium_messages import secure_sum as sums
from cohortium_messages import withdrawals as wd
from cohortium_messages.ids import RunId, SiteId, StudyId
from cohortium_messages.registry import Message
from cohortium_messages.study import Deadlines, Study
from cohortium_protocol.logproof import LogProof, authorisation_id
from cohortium_protocol.notes import Checkpoint, sign_checkpoint
from cohortium_protocol.signing import IdentityKey
from cohortium_protocol.witness import Request, cosign

NOW = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
STUDY_ID = StudyId("heart-disease")
RUN_ID = RunId("5f0c8f0a-4b7e-4f57-9a4b-1d2c3e4f5a6b")
SITES = tuple(SiteId(f"{number}{number}000000-0000-4000-8000-00000000000{number}") for number in (1, 2, 3, 4))
NAMES = ("Basel", "Budapest", "Cleveland", "Long Beach")


def octets(name: str, length: int = 32) -> bytes:
    """Bytes that stand for the thing of this name."""
    return hashlib.shake_256(f"cohortium fixture: {name}".encode()).digest(length)


WINDOW = octets("window", 16)
DIGEST = octets("study digest")
MODEL = sums.ModelRef(version=7, model_hash=octets("model 7"))
BASE = sums.ModelRef(version=6, model_hash=octets("model 6"))
LINK = {"run_id": RUN_ID, "window_id": WINDOW}
STEP = {"window_id": WINDOW, "step": 0}
INDEXED = {**STEP, "index": 2, "sig": octets("site signature", 64)}

STUDY = Study.model_validate(
    {
        "apiVersion": "cohortium/study/1",
        "governance": "trial",
        "name": STUDY_ID,
        "purpose": "Predict coronary disease from routine findings",
        "dataset": {
            "features": [
                {"name": "age", "type": "float", "range": [18, 110]},
                {"name": "sex", "type": "category", "levels": ["0", "1"], "missing": "level"},
                {"name": "trestbps", "type": "float", "range": [50, 260], "missing": "impute"},
            ],
            "label": {"name": "disease", "type": "binary"},
            "split": {"column": "split", "train": "train", "test": "test"},
        },
        "recipe": {"trainer": "torch.mlp", "hidden": [32, 16]},
        "federation": {"mode": "buffered", "rounds": 30, "min_sites": 3},
    }
)

MANIFEST = gov.Manifest(
    study_id=STUDY_ID,
    version=1,
    prev_hash=bytes(32),
    study_digest=DIGEST,
    members=tuple(
        gov.Member(site_id=site, name=name, identity_pk=octets(f"identity {name}"))
        for site, name in zip(SITES, NAMES, strict=True)
    ),
    collusion=1,
    k_min_floor=3,
    signatures=(gov.GovernanceSignature(key=octets("officer"), sig=octets("officer signature", 64)),),
)

TERMS = consent.DataUseTerms(
    number="T-1",
    site_id=SITES[1],
    uses=(duo.DuoTerm(code="HMB"), duo.DuoTerm(code="GS", values=("CH", "DE")), duo.DuoTerm(code="TS", months=24)),
    legal_basis="GDPR 6(1)(e), 9(2)(j)",
    patient_consent="required",
    effective_from=NOW,
    effective_to=NOW + timedelta(days=365),
)
CONSENT_FILE = consent.ConsentFile(
    people=(
        consent.PersonCard(
            person="b.braun",
            name="Bea Braun",
            role="site_approver",
            site_id=SITES[1],
            key=octets("key of Bea Braun"),
            not_before=NOW,
            not_after=NOW + timedelta(days=365),
            signatures=(consent.RootSignature(key=octets("identity Budapest"), sig=octets("card signature", 64)),),
        ),
    ),
    records=(
        consent.Record(
            document=TERMS,
            acts=(
                consent.Act(
                    record=octets("record"),
                    deed="approve",
                    key=octets("key of Bea Braun"),
                    name="Bea Braun",
                    meaning=consent.MEANINGS["approve"],
                    at=NOW,
                    sig=octets("act signature", 64),
                ),
            ),
        ),
    ),
)

GRANT = gov.SiteGrant(
    study_id=STUDY_ID,
    study_digest=DIGEST,
    site_id=SITES[1],
    not_before=NOW,
    not_after=NOW + timedelta(days=90),
    max_rounds=200,
    approvers=("Data Protection Office",),
    sig=octets("grant signature", 64),
)

PARAMS = sums.WindowParams(
    study_id=STUDY_ID,
    study_digest=DIGEST,
    run_id=RUN_ID,
    window_id=WINDOW,
    purpose="update",
    kind="buffered",
    round=7,
    manifest_hash=octets("manifest"),
    bases=(BASE, MODEL),
    max_staleness=5,
    vector=sums.VectorSpec(
        encoding="grid",
        dimension=737,
        ring_bits=16,
        rotate=True,
        rotation_seed=octets("rotation"),
        keep=1.0,
        keep_seed=octets("choice"),
        clip_norm_l2=10.0,
        range_factor=4.0,
        weight_cap=303,
        chunk_bytes=1 << 18,
    ),
    privacy_mode="none",
    target_cohort=3,
    least_cohort=3,
    deadlines=Deadlines(ready_s=60, upload_s=30, echo_s=15, unmask_s=30),
    aggregator_seal_pk=octets("aggregator seal key"),
)
CHECKPOINT = Checkpoint("example/audit/heart-disease", 12, octets("root 12"))
NOTE = sign_checkpoint(CHECKPOINT, IdentityKey.from_seed(octets("log")))
LOGGED = witness.Logged(
    proof=LogProof(b"entry", 11, (octets("sibling"),), NOTE).text(),
    continues=(witness.Continuation(from_size=10, hashes=(octets("node"),)),),
)
OPEN = sums.WindowOpen(params=PARAMS, sig=octets("scheduler signature", 64), logged=LOGGED)


def _ready(name: str, site: SiteId) -> sums.Ready:
    return sums.Ready(
        window_id=WINDOW,
        site_id=site,
        params_hash=octets("params"),
        base_model_hash=MODEL.model_hash,
        mask_pk=octets(f"mask key {name}"),
        seal_pk=octets(f"seal key {name}"),
        sig=octets(f"ready {name}", 64),
    )


ROSTER = sums.Roster(
    window_id=WINDOW,
    params_hash=octets("params"),
    n=3,
    t=2,
    c=1,
    k_min=3,
    entries=tuple(_ready(name, site) for name, site in zip(NAMES[:3], SITES[:3], strict=True)),
)
BOXES = tuple(sums.Box(box=octets(f"box {k}", 112), sig=octets(f"box signature {k}", 64)) for k in (1, 3))
VOTES = tuple(sums.Vote(index=index, sig=octets(f"vote {index}", 64)) for index in (1, 3))
SURVIVORS = {"bitmap": b"\x07", "header_hashes": tuple(octets(f"header {index}") for index in (1, 2, 3))}
PERMITS = (
    gov.Permit(site_id=SITES[0], permitted=True, grant_digest=octets("grant")),
    gov.Permit(site_id=SITES[3], permitted=False, deny_code="GRANT_EXPIRED"),
)
RESULT = runs.EvaluationResult(
    model=MODEL,
    rows=276,
    positives=150,
    auc=0.871,
    auc_error_bound=0.0042,
    accuracy=0.79,
    brier=0.146,
    calibration={"slope": 0.94, "intercept": None},
)

GOVERNANCE: tuple[Message, ...] = (
    gov.RegisterSite(
        site_id=SITES[1],
        identity_pk=octets("identity Budapest"),
        token_mac=octets("token mac"),
        proof=octets("proof", 64),
    ),
    gov.SiteRegistered(site_id=SITES[1], name=NAMES[1], identity_pk=octets("identity Budapest")),
    gov.RegistrationRefused(site_id=SITES[1], reason="TOKEN_SPENT", identity_pk=octets("refused key")),
    gov.SiteRevoked(site_id=SITES[1], reason="SITE_REVOKED"),
    gov.ManifestPublished(manifest=MANIFEST),
    gov.GrantGiven(grant=GRANT),
    consent.DocumentsShared(file=CONSENT_FILE),
    gov.GrantWithdrawn(study_id=STUDY_ID, study_digest=DIGEST, site_id=SITES[1], at=NOW, sig=octets("withdrawal", 64)),
    gov.GrantRecorded(
        study_id=STUDY_ID,
        study_digest=DIGEST,
        site_id=SITES[1],
        grant_digest=octets("grant"),
        not_after=GRANT.not_after,
    ),
    gov.GrantEnded(study_id=STUDY_ID, study_digest=DIGEST, site_id=SITES[1], reason="GRANT_WITHDRAWN"),
    gov.AuthoriseAsked(
        question_id=octets("question", 16),
        run_id=RUN_ID,
        study_id=STUDY_ID,
        study_digest=DIGEST,
        round=7,
        sites=SITES,
    ),
    gov.Authorised(question_id=octets("question", 16), run_id=RUN_ID, permits=PERMITS),
)

SECURE_SUM: tuple[Message, ...] = (
    OPEN,
    ROSTER.entries[1],
    ROSTER,
    sums.UploadHeader(
        **INDEXED,
        roster_hash=octets("roster"),
        vec_root=octets("vector root"),
        vec_len=2080,
        self_commit=octets("self commitment"),
        edges_root=octets("edges root"),
        edge_commits=(octets("edge 1"), octets("edge 3")),
        boxes=BOXES,
    ),
    sums.Receipt(**STEP, header_stored=True, chunks_stored=b"\x01", complete=True),
    sums.ReceiptAsked(**STEP, index=2),
    sums.Survivors(
        **STEP,
        **SURVIVORS,
        boxes=(sums.DealtBox(dealer=1, box=BOXES[0].box, sig=BOXES[0].sig),),
    ),
    sums.Echo(**INDEXED, survivors_hash=octets("survivors")),
    sums.EchoCert(**STEP, **SURVIVORS, survivors_hash=octets("survivors"), echoes=VOTES),
    sums.Unmask(**INDEXED, survivors_hash=octets("survivors"), sealed=octets("shares", 145)),
    sums.AbortAsked(**STEP, reason="NOT_ENOUGH_UPLOADS"),
    sums.AbortVote(**INDEXED),
    sums.AbortCert(**STEP, votes=VOTES),
    sums.SessionKey(window_id=WINDOW, roster_hash=octets("roster"), sealed=octets("session key", 112)),
    sums.SessionLeft(**STEP, code="DATA_CHANGED"),
    sums.WindowClosed(**STEP, state="RELEASED", reason="", survivors_hash=octets("survivors"), model=MODEL),
)

RUNS: tuple[Message, ...] = (
    runs.StudyOffered(study=STUDY, study_digest=DIGEST, run_id=RUN_ID, manifest=MANIFEST),
    runs.TaskRefused(**LINK, site_id=SITES[3], code="VALUE_OUT_OF_RANGE", column="trestbps"),
    runs.Presence(site_id=SITES[1], state="training", run_id=RUN_ID, progress=0.25, sent_at=NOW),
    runs.RunStarted(run_id=RUN_ID, study=STUDY, study_digest=DIGEST, manifest=MANIFEST),
    runs.SessionOpened(open=OPEN, roster=ROSTER, manifest=MANIFEST),
    runs.SessionClosed(
        **LINK,
        purpose="evaluation",
        state="RELEASED",
        survivors=SITES[:2],
        dropped=SITES[2:3],
        bytes_up=6240,
        bytes_down=18000,
        training_rows=644,
        model=MODEL,
        parameters=737,
        evaluation=RESULT,
    ),
    runs.RunEnded(run_id=RUN_ID, study_id=STUDY_ID, state="FINISHED", model=MODEL),
    runs.ModelWanted(run_id=RUN_ID, version=7, site_id=SITES[1], seal_pk=octets("model seal key"), have=b"\x00"),
    runs.ModelOffered(
        run_id=RUN_ID,
        version=7,
        model_hash=MODEL.model_hash,
        parameters_sha256=octets("parameters"),
        size=2948,
        chunk_bytes=1 << 18,
        chunks=1,
        preprocessing={"features": [{"name": "age", "mean": 53.5, "std": 9.4}]},
        wrapped_key=octets("wrapped key", 80),
    ),
    runs.ModelUnavailable(run_id=RUN_ID, version=7, reason="BASE_MODEL_UNKNOWN"),
)

EVENTS: tuple[Message, ...] = (
    ev.SiteEnrolled(site_id=SITES[1], identity_pk=octets("identity Budapest")),
    ev.SiteRevocation(site_id=SITES[1], reason="SITE_REVOKED"),
    ev.ManifestRecorded(
        study_id=STUDY_ID, version=1, manifest_hash=octets("manifest"), study_digest=DIGEST, members=SITES
    ),
    ev.StudySubmitted(study_id=STUDY_ID, study_digest=DIGEST, run_id=RUN_ID),
    ev.GrantStarted(
        site_id=SITES[1],
        study_digest=DIGEST,
        grant_digest=octets("grant"),
        not_before=GRANT.not_before,
        not_after=GRANT.not_after,
    ),
    ev.ConsentActRecorded(
        record=octets("record"),
        kind="terms",
        act=octets("act"),
        deed="approve",
        person="b.braun",
        at=NOW,
        standing="active",
        site_id=SITES[1],
    ),
    ev.GrantStopped(site_id=SITES[1], study_digest=DIGEST, reason="GRANT_WITHDRAWN"),
    ev.RunStateChanged(run_id=RUN_ID, state="FAILED", reason="NOT_ENOUGH_READY"),
    ev.WindowAuthorised(**LINK, round=7, purpose="update", params_hash=octets("params"), permits=PERMITS),
    ev.CohortFixed(**LINK, roster_hash=octets("roster"), sites=SITES[:3], n=3, t=2, c=1, k_min=3),
    ev.AggregateOpened(**LINK, survivors_hash=octets("survivors"), survivors=SITES[:3], dropped=()),
    ev.StrictSessionSummed(
        **LINK,
        roster_hash=octets("roster"),
        sites=SITES[:3],
        steps=1204,
        sums=602,
        trees=43,
        chain=octets("chain"),
    ),
    ev.WindowEnded(**LINK, purpose="update", state="RELEASED"),
    ev.ModelReleased(run_id=RUN_ID, model=MODEL, parent=BASE, window_id=WINDOW),
    ev.ModelBundled(run_id=RUN_ID, model=MODEL, attestation_sha256=octets("attestation")),
    ev.ReleaseSigned(
        run_id=RUN_ID,
        model=MODEL,
        attestation_sha256=octets("attestation"),
        release_sha256=octets("release"),
        officers=(octets("officer"),),
        sites=(SITES[0],),
    ),
    ev.ModelEvaluated(**LINK, result=RESULT),
    ev.TaskTaken(**LINK, site_id=SITES[1], grant_digest=octets("grant")),
    ev.TaskDeclined(**LINK, site_id=SITES[3], code="DATA_NOT_FOUND"),
    ev.UploadSealed(**LINK, site_id=SITES[1], header_hash=octets("header 2"), bytes=2080),
    ev.SharesGiven(**LINK, site_id=SITES[1], survivors_hash=octets("survivors")),
    ev.ConsentSnapshot(
        **LINK,
        site_id=SITES[1],
        grant_digest=octets("grant"),
        source="fhir",
        query_digest=octets("query"),
        context=octets("context", 16),
        root=octets("cohort"),
        approved_root=octets("approved cohort"),
        persons="300-309",
        permitted="280-289",
        denied="<11",
    ),
    ev.WitnessNamed(site_id=SITES[1], witness_key=octets("witness key")),
    ev.ForkDetected(
        site_id=SITES[1], held_size=10, held_root=octets("root 10"), offered_size=12, offered_root=octets("root 12")
    ),
    pe.AuthLogin(person="p-0001", method="local", mfa=True),
    pe.AuthFailed(person=None, method="local", reason="SIGN_IN_REFUSED"),
    pe.AuthFailedAgain(person=None, method="local", count=8),
    pe.AuthSteppedUp(person="p-0001", method="oidc", mfa=True),
    pe.AuthRoleChanged(
        person="p-0002",
        by="p-0001",
        roles=(
            pe.Assignment(role=pe.Role.SITE_ADMIN, site_id=SITES[1]),
            pe.Assignment(role=pe.Role.STUDY_LEAD, study_id=StudyId(STUDY.name)),
        ),
    ),
    ev.StudyCheckpointed(study_id=STUDY_ID, size=12, root=octets("root 12")),
    ev.DeadLetterSettled(
        consumer="scheduler", act="REDRIVEN", reason="HANDLER_ERROR", body_sha256=octets("parked body")
    ),
    ev.BundleExported(study_id=STUDY_ID, size=12, root=octets("root 12"), person="p-0001"),
    ov.ConfigurationChanged(part="settings", before=octets("settings before"), after=octets("settings")),
    ov.PreflightRecorded(
        site_id=SITES[1], report_sha256=octets("preflight report"), failed=("rights",), warned=("clock", "disk")
    ),
    ov.Expired(kind="ethics", record=octets("ethics approval"), ended_at=GRANT.not_after, site_id=SITES[1]),
    ov.StudyCosigned(study_id=STUDY_ID, size=12, root=octets("root 12"), sites=SITES[:3]),
    ov.LogReviewed(study_id=STUDY_ID, size=12, root=octets("root 12"), person="p-0003", finding="NOTHING_FOUND"),
    ev.FaultSeen(key_id=f"site:{SITES[3]}", code="BAD_SIGNATURE", window_id=WINDOW),
    ev.BrokerRefusal(site_id=SITES[3], code="LOGIN_ENDED", count=7),
    ev.BrokerCut(site_id=SITES[3], reason="SITE_REVOKED", connections=2),
)

STATEMENT = ledger.LedgerStatement(
    site_id=SITES[1],
    study_id=STUDY_ID,
    study_digest=DIGEST,
    run_id=RUN_ID,
    part="training",
    state="COMMITTED",
    reason="UPLOADED",
    first_step=6,
    steps=1,
    attempt=1,
    order=7,
    rdp=0.0125,
    head=octets("ledger row"),
    sig=octets("statement", 64),
)

BUDGET: tuple[Message, ...] = (ledger.LedgerEvent(statement=STATEMENT), ledger.LedgerRecorded(statement=STATEMENT))

WITNESS: tuple[Message, ...] = (
    witness.CheckpointOffered(
        study_id=STUDY_ID,
        request=Request(10, (octets("node"),), NOTE).text(),
    ),
    witness.CheckpointCosigned(
        study_id=STUDY_ID,
        site_id=SITES[1],
        size=12,
        root=CHECKPOINT.root,
        witness_key=IdentityKey.from_seed(octets("witness")).public,
        line=cosign(CHECKPOINT, f"example/witness/{SITES[1]}", IdentityKey.from_seed(octets("witness")), 1_700_000_000),
    ),
    witness.CheckpointElsewhere(study_id=STUDY_ID, site_id=SITES[1], size=10),
    witness.EventProven(
        study_id=STUDY_ID,
        event_id=authorisation_id(WINDOW),
        logged=LOGGED.model_copy(update={"continues": ()}),
        continues=(witness.ContinuationFor(from_size=10, hashes=(octets("node"),), sites=(SITES[1],)),),
    ),
    witness.ProofAsked(study_id=STUDY_ID, event_id=authorisation_id(WINDOW)),
    witness.InclusionAsked(study_id=STUDY_ID, site_id=SITES[1], event_ids=(authorisation_id(WINDOW),)),
    witness.EventsIncluded(
        study_id=STUDY_ID,
        size=12,
        events=(witness.Included(event_id=authorisation_id(WINDOW), index=10, hashes=(octets("node"),)),),
    ),
)

PREFLIGHT: tuple[Message, ...] = (
    trial.PreflightProbe(site_id=SITES[1], nonce=octets("preflight", 16), sequence=4, padding="0" * 16),
    trial.PreflightEcho(nonce=octets("preflight", 16), sequence=4, received_at=NOW, padding="0" * 16),
    trial.PreflightReport(
        site_id=SITES[1],
        made_at=NOW,
        connector="0.1.0",
        checks=(
            trial.PreflightCheck(name="connection", state="ok"),
            trial.PreflightCheck(name="clock", state="warning", code="CLOCK_OFF"),
        ),
        capacity=trial.Capacity(
            cpus=4,
            memory_mb=15990,
            disk_free_mb=120_000,
            fsync_ms=2.5,
            up_mbit_s=38.1,
            down_mbit_s=93.4,
            round_trip_ms=24.0,
            clock_offset_s=-7.25,
            training_s=1.875,
        ),
    ),
)

LEFT = {"withdrawal": octets("withdrawal digest")}
DECIDED = {**LEFT, "decision": octets("decision digest")}
TOUCHED = (wd.RunModel(run_id=RUN_ID, model=BASE), wd.RunModel(run_id=RUN_ID, model=MODEL))
WITHOUT = (wd.RoundWithout(run_id=RUN_ID, round=8),)
AGAIN = RunId("6f0c8f0a-4b7e-4f57-9a4b-1d2c3e4f5a6b")
RETRAINED = wd.Retrained(run_id=AGAIN, from_run=RUN_ID, start=BASE, basis="CHECKPOINT", model=MODEL)

WITHDRAWALS: tuple[Message, ...] = (
    wd.WithdrawalNoticed(
        **LEFT, study_id=STUDY_ID, study_digest=DIGEST, site_id=SITES[1], type="patient_set", from_round=6
    ),
    wd.WithdrawalTraced(**LEFT, without=WITHOUT, models=TOUCHED, sums=3),
    wd.WithdrawalFollowed(**LEFT, models=TOUCHED[1:], sums=1, retired=TOUCHED[1:]),
    wd.EffectOrdered(**DECIDED, effect="retrain"),
    wd.EffectStarted(**DECIDED, retrained=RETRAINED),
    wd.EffectRefused(**DECIDED, run_id=AGAIN, site_id=SITES[0], code="COHORT_DIFFERS_BY_ONE"),
    wd.EffectDone(**DECIDED, retired=TOUCHED, retrained=RETRAINED),
    wd.RunPrepared(run_id=AGAIN, model=BASE),
    wd.RetireModels(**LEFT, study_id=STUDY_ID, run_id=RUN_ID, models=(BASE, MODEL)),
    wd.ModelsRetired(**LEFT, run_id=RUN_ID),
    wd.WithdrawalRecorded(
        **LEFT,
        type="institution",
        site_id=SITES[1],
        study_digest=DIGEST,
        requested_effect="retrain",
        received_at=NOW,
    ),
    wd.WithdrawalEffective(**LEFT, site_id=SITES[1], without=WITHOUT, models=TOUCHED, sums=3),
    wd.WithdrawalExtended(**LEFT, models=TOUCHED[1:], sums=1),
    wd.WithdrawalDecided(**DECIDED, effect="retrain", people=("olga", "otto")),
    wd.WithdrawalProven(**LEFT, effect="retrain", receipt_sha256=octets("receipt")),
    wd.WithdrawalOverdue(**LEFT, deadline="DECIDED", due=NOW),
    wd.WithdrawalClosed(**LEFT),
    wd.RetrainingStarted(**LEFT, run_id=AGAIN, from_run=RUN_ID, without=SITES[1], start=BASE, basis="CHECKPOINT"),
    wd.ModelCarried(run_id=AGAIN, model=BASE, from_run=RUN_ID),
    wd.ModelRetired(**LEFT, run_id=RUN_ID, model=MODEL),
    wd.SumSetAside(**LINK, sites=(SITES[1],), opened=True),
    wd.WorkWiped(site_id=SITES[1], study_digest=DIGEST, code="GRANT_WITHDRAWN", windows=1),
)

MESSAGES: tuple[Message, ...] = (
    *GOVERNANCE,
    *SECURE_SUM,
    *RUNS,
    *EVENTS,
    *WITNESS,
    *BUDGET,
    *PREFLIGHT,
    *WITHDRAWALS,
)
