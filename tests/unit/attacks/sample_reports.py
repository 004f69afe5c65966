"""Reports as a benchmark and a calibration give them, with figures that are made up."""

from cohortium_connector.training.privacy_report import (
    AttackFigures,
    BenchmarkReport,
    CalibrationReport,
    CanaryFigures,
    InversionFigures,
    MembershipFigures,
    Promise,
    Quality,
    UtilityPoint,
)
from cohortium_messages.ids import StudyId

VERSIONS = {"torch": "2.9.0", "opacus": "1.5.4"}


def promise(epsilon: float) -> Promise:
    return Promise(
        epsilon=epsilon, delta=1e-5, epsilon_pld=0.9 * epsilon, noise_multiplier=5.0, sampling_rate=0.1, steps=150
    )


def attack(kind: str, auc: float, half: float, limit: float | None = None) -> AttackFigures:
    return AttackFigures.model_validate(
        {
            "attack": kind,
            "auc": auc,
            "auc_low": auc - half,
            "auc_high": auc + half,
            "advantage": 0.1,
            "hits_at_1_percent": 0.03,
            "auc_limit": limit,
            "advantage_limit": limit,
            "curve": [(0, 0), (0.2, 0.4), (1, 1)],
        }
    )


def members(kind: str, auc: float, epsilon: float | None = None) -> MembershipFigures:
    limit = None if epsilon is None else 0.731
    return MembershipFigures.model_validate(
        {
            "kind": kind,
            "promise": None if epsilon is None else promise(epsilon),
            "models": 16,
            "member_auc": 0.9,
            "other_auc": 0.8,
            "attacks": [attack("loss", 0.5, 0.01, limit), attack("likelihood", auc, 0.01, limit)],
        }
    )


def inverted(seen: str, patients: int, identified: int, epsilon: float | None = None) -> InversionFigures:
    return InversionFigures.model_validate(
        {
            "seen": seen,
            "promise": None if epsilon is None else promise(epsilon),
            "patients": patients,
            "sites": 3,
            "error": 0.5,
            "identified": identified,
            "wanted": 24,
            "guessed": 0.01,
        }
    )


def canaries(mode: str, epsilon: float, bound: float, *, control: bool = False) -> CanaryFigures:
    return CanaryFigures.model_validate(
        {
            "mode": mode,
            "control": control,
            "promise": promise(epsilon),
            "hits": 40,
            "present": 100,
            "alarms": 20,
            "absent": 100,
            "bound": bound,
            "error": 0.001,
        }
    )


def benchmark() -> BenchmarkReport:
    return BenchmarkReport(
        study=StudyId("made-up-patients"),
        study_digest="ab" * 32,
        sites=3,
        rows=600,
        seed=7,
        membership=(
            members("recipe", 0.54),
            members("overfitted", 0.71),
            members("private", 0.505, 1.0),
        ),
        inversion=tuple(
            inverted(seen, count, found, epsilon)
            for count in (1, 4)
            for seen, found, epsilon in (
                ("update", 24, None),
                ("masked", 0, None),
                ("sum", 11, None),
                ("local", 1, 1.0),
                ("distributed", 2, 1.0),
            )
        ),
        canaries=(
            canaries("local", 1.0, 0.2),
            canaries("distributed", 8.0, 0.7),
            canaries("local", 1.0, 2.1, control=True),
        ),
        seconds=100.0,
        versions=VERSIONS,
    )


def calibration() -> CalibrationReport:
    points = [
        UtilityPoint(
            promise=promise(epsilon),
            noise_to_signal=20 / epsilon,
            quality=Quality(auc=auc, auc_least=auc - 0.01, auc_most=auc + 0.01),
        )
        for epsilon, auc in ((0.5, 0.7), (1.0, 0.8), (8.0, 0.9))
    ]
    return CalibrationReport(
        study=StudyId("made-up-patients"),
        study_digest="cd" * 32,
        trainer="torch.logistic",
        mode="distributed",
        sites=4,
        training_rows=1400,
        test_rows=600,
        patients=1000,
        clip=1.0,
        repeats=3,
        seed=0,
        without=Quality(auc=0.89, auc_least=0.88, auc_most=0.9),
        points=tuple(points),
        seconds=50.0,
        versions=VERSIONS,
    )
