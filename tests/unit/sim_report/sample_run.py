"""A made-up run as the simulation reports it: four hospitals, thirty rounds, one dropped, one slow, one refusing."""

import math
import uuid
from datetime import UTC, datetime, timedelta

from cohortium_messages.problems import sentence
from cohortium_messages.result import (
    AuditCheck,
    AuditResult,
    MetricsResult,
    MetricsTable,
    Result,
    RoundResult,
    RunOptions,
    SecureSumResult,
    SiteResult,
    Timing,
    federated_metrics,
)
from cohortium_messages.runs import EvaluationResult
from cohortium_messages.secure_sum import ModelRef
from cohortium_messages.status import RoundStatus, RunStatus, SecureSumStatus, SiteStatus, WindowStatus

SITES = ("Cleveland", "Budapest", "Zurich", "Long Beach VA")
DROPPED, SLOW, REFUSING = SITES[2], SITES[3], SITES[1]
ROUNDS = 30
RUN_ID = "8f14e45f-ceea-467f-9c5b-0d8a5c3b7a11"
BEGUN = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
CALIBRATION = {"ece": 0.041, "slope": 1.12, "intercept": -0.08, "observed_expected": 0.97}


def wobble(number: int) -> float:
    """A reproducible something between -1 and 1."""
    return math.sin(number * 12.9898) * math.cos(number * 4.1414)


def evaluation(number: int, *, calibration: bool = True) -> EvaluationResult:
    """The metrics of one round's model: they rise quickly, then hardly."""
    auc = 0.904 - 0.34 * math.exp(-number / 4.5) + 0.004 * wobble(number)
    return EvaluationResult(
        model=model(number),
        rows=276,
        positives=152,
        auc=auc,
        auc_error_bound=0.0085 * math.exp(-number / 12) + 0.0021,
        accuracy=auc - 0.075 + 0.006 * wobble(number + 7),
        brier=0.132 + 0.12 * math.exp(-number / 5) + 0.001 * wobble(number + 3),
        calibration=CALIBRATION if calibration else None,
    )


def model(number: int) -> ModelRef:
    return ModelRef(version=number, model_hash=bytes([number % 256]) * 32)


def cohort_of(number: int) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Who is in the sum of a round, who dropped out of it, who refused it."""
    dropped = (DROPPED,) if number == 7 else ()
    refused = (REFUSING,) if number in (19, 20) else ()
    slow = (SLOW,) if number % 4 == 0 or number >= 29 else ()
    others = tuple(name for name in SITES if name not in dropped + refused and (name != SLOW or slow))
    return others, dropped, refused


def round_status(number: int, *, evaluated: bool = True) -> RoundStatus:
    cohort, dropped, _ = cohort_of(number)
    return RoundStatus(
        number=number,
        model_version=number,
        cohort=cohort,
        dropped=dropped,
        seconds=0.62 + 0.1 * wobble(number) + (3.4 if dropped else 0.0),
        bytes_up=len(cohort) * (2 * 1313 + 2300),
        bytes_down=len(cohort) * (4 * 1313 + 4100 + number),
        evaluation=evaluation(number) if evaluated else None,
    )


def site_status(place: int, name: str, rounds: int, *, state: str = "idle") -> SiteStatus:
    code = "VALUE_OUT_OF_RANGE" if name == REFUSING and rounds in (18, 19) else None
    return SiteStatus(
        site_id=str(uuid.UUID(int=place + 1)),
        name=name,
        state=state,
        last_seen=BEGUN + timedelta(seconds=rounds + 2 - 0.3 * place),
        progress=0.25 * (place + 1) if state == "training" else None,
        code=code,
        sentence=None if code is None else sentence(code),
        updates_used=sum(name in cohort_of(number)[0] for number in range(1, rounds + 1)),
    )


def running(rounds: int) -> RunStatus:
    """The run when `rounds` rounds are done and the next one's window is open."""
    states = ("training", "uploading", "silent", "training")
    return finished(rounds).model_copy(
        update={
            "state": "TRAINING",
            "ended_at": None,
            "rounds_done": tuple(round_status(number, evaluated=number < rounds) for number in range(1, rounds + 1)),
            "window": WindowStatus(
                purpose="update",
                round=rounds + 1,
                attempt=1,
                phase="OPEN",
                opened_at=BEGUN + timedelta(seconds=rounds),
                ready=(SITES[1],),
                roster=(),
            ),
            "sites": tuple(
                site_status(place, name, rounds, state=state)
                for place, (name, state) in enumerate(zip(SITES, states, strict=True))
            ),
        }
    )


def finished(rounds: int = ROUNDS) -> RunStatus:
    """The scheduler's last word on the run."""
    return RunStatus(
        run_id=RUN_ID,
        study_id="heart-disease",
        study_digest=b"\x5a" * 32,
        state="FINISHED",
        reason="",
        sentence=None,
        round=rounds,
        rounds=ROUNDS,
        created_at=BEGUN,
        ended_at=BEGUN + timedelta(seconds=rounds + 3),
        purpose="Predict coronary disease from routine findings",
        mode="buffered",
        model=model(rounds),
        rounds_done=tuple(round_status(number) for number in range(1, rounds + 1)),
        window=None,
        sites=tuple(site_status(place, name, rounds) for place, name in enumerate(SITES)),
        secure_sum=SecureSumStatus(n=4, t=3, c=1, k_min=3, ring_bits=16, parameters=1313, bytes_per_parameter=3.751),
        attempts_failed=1,
    )


def metrics(auc: float, accuracy: float, brier: float) -> MetricsResult:
    return MetricsResult(rows=276, positives=152, auc=auc, accuracy=accuracy, brier=brier)


LOCAL = {
    SITES[0]: metrics(0.861, 0.786, 0.151),
    SITES[1]: metrics(0.842, 0.757, 0.163),
    SITES[2]: metrics(0.437, 0.551, 0.293),
    SITES[3]: metrics(0.741, 0.688, 0.214),
}

CHECKS = (
    AuditCheck(name="trust document", state="passed", fact="version 1, signed by 2 of 2 officers"),
    AuditCheck(name="entries", state="passed", fact="487 entries, each signed by the key that it names"),
    AuditCheck(name="checkpoints", state="passed", fact="34 checkpoints, each a beginning of the next"),
    AuditCheck(name="models", state="passed", fact="31 released models, each included in the last checkpoint"),
)


def result(status: RunStatus | None = None) -> Result:
    """What the simulation writes about the run."""
    status = status or finished()
    rounds = tuple(RoundResult.of(done, cohort_of(done.number)[2]) for done in status.rounds_done)
    return Result(
        study=status.study_id,
        run_id=status.run_id,
        state=status.state,
        mode="buffered",
        rounds_planned=status.rounds,
        rounds=rounds,
        metrics=MetricsTable(federated=federated_metrics(rounds), pooled=metrics(0.899, 0.826, 0.129), local=LOCAL),
        sites=tuple(SiteResult.of(site) for site in status.sites),
        secure_sum=SecureSumResult.of(status.secure_sum) if status.secure_sum else None,
        audit=AuditResult(tree_size=487, root="3f2a91c0" * 8, verified=True, checks=CHECKS),
        timing=Timing(setup_s=2.31, run_s=41.7, compare_s=6.2, verify_s=0.4, total_s=50.9),
        processes={"scheduler": 96.4, "aggregator": 88.1, "audit": 74.0, "connector": 312.9},
        options=RunOptions(
            parts="real",
            processes="many",
            seed=7,
            drop={DROPPED: "7:after"},
            slow={SLOW: 2.5},
            compare=True,
            trainer="torch.mlp",
            versions={"cohortium": "0.1.0", "torch": "2.9.1", "numpy": "2.4.6"},
        ),
    )
