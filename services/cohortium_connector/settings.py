"""The connector's settings: one file in the hospital, read once at the start."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from cohortium_connector.simulation import VanishSettings
from cohortium_connector.training.jobs import DataSource
from cohortium_kit.settings import SecretText, Settings
from cohortium_messages.governance import ShortName
from cohortium_messages.ids import Bytes32, StudyIdField
from cohortium_privacy.ledger_plan import Limits

ANY = "*"


class PolicySettings(BaseModel):
    """What this hospital demands, and which studies it lets in without asking a person."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    approvals: Literal["manual", "listed"] = "manual"
    approved_studies: tuple[Annotated[str, Field(pattern=r"^(\*|[0-9a-f]{64})$")], ...] = ()
    """Study digests. `*` approves every study: a warning is logged each time it is used."""
    approvers: Annotated[tuple[ShortName, ...], Field(min_length=1, max_length=8)] = ("local policy",)
    grant_days: Annotated[float, Field(gt=0, le=3660)] = 365
    max_rounds: Annotated[int, Field(ge=1, le=1_000_000)] = 100_000
    min_cohort: Annotated[int, Field(ge=3, le=200)] = 3
    min_collusion: Annotated[int, Field(ge=0, le=198)] = 0
    """Refuse studies that assume fewer colluding sites than this."""
    refuse_cohort_differing_by_one: bool | None = None
    """Rule R9. Left out: refused, but in the sessions of a study whose file says `allow_cohort_change`, which this
    hospital approved as it is. True: refused even there. False: never."""

    min_persons: Annotated[int, Field(ge=1, le=1_000_000_000)] = 11
    """Refuse where fewer patients may be used; of a table without `person_column`, fewer rows, unless in a trial."""
    cohort_tolerance: Annotated[float, Field(ge=0, le=1)] | None = None
    """By so much of the approved cohort its number of patients may change, at most, before the site asks its people
    again. The study says how much; what is stricter counts. Left out: as the study says."""


class TrainerSettings(BaseModel):
    """The training process. `artificial_delay_s` is for simulations only."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    isolation: Literal["require", "warn"] = "require"
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    timeout_s: Annotated[float, Field(gt=0)] = 6 * 3600.0
    artificial_delay_s: Annotated[float, Field(ge=0)] = 0.0


class PrivacySettings(BaseModel):
    """What this hospital's patients may be charged in all private studies together: the caps of the privacy ledger.

    The caps are of each account (`cohortium_privacy.ledger`), not of a study. δ lies below 1/(10 · patients).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epsilon_max: Annotated[float, Field(gt=0, le=100)] = 10.0
    delta: Annotated[float, Field(gt=0, lt=1e-2)] = 1e-6
    studies: dict[StudyIdField, Annotated[float, Field(gt=0, le=100)]] = Field(default_factory=dict)
    """At most so much of it for a study, by its name."""

    @property
    def limits(self) -> Limits:
        return Limits(self.epsilon_max, self.delta, {str(name): most for name, most in self.studies.items()})


class ConnectorSettings(Settings):
    """Read from a YAML file; the service's README says what each does. The spool is always SQLite, in `spool_dir`."""

    database_url: Annotated[str, AfterValidator(SecretText)] = ""
    db_schema: Annotated[str, Field(alias="schema", pattern=r"^[a-z_][a-z0-9_]{0,62}$")] = "connector"
    spool_dir: Path
    invitation_file: Path | None = None
    identity_key_file: Path | None = None
    governance_keys: Annotated[tuple[Bytes32, ...], Field(min_length=1, max_length=32)]
    governance_threshold: Annotated[int, Field(ge=1, le=32)]
    datasets: dict[str, DataSource] = Field(default_factory=dict)
    policy: PolicySettings = PolicySettings()
    privacy: PrivacySettings = PrivacySettings()
    trainer: TrainerSettings = TrainerSettings()
    credential_s: Annotated[float, Field(ge=10, le=86400)] = 3600.0
    """This site's login at the broker lasts so long; at most what the federation's enrolment allows."""
    presence_s: Annotated[float, Field(gt=0, le=3600)] = 5.0
    poll_s: Annotated[float, Field(gt=0, le=60)] = 0.5
    receipt_silence_s: Annotated[float, Field(gt=0, le=600)] = 5.0
    step_silence_s: Annotated[float, Field(gt=0, le=600)] = 5.0
    """After so long without its result, a step of a strict session is sent again."""
    model_silence_s: Annotated[float, Field(gt=0, le=600)] = 5.0
    retry_s: Annotated[float, Field(gt=0, le=600)] = 2.0
    log_stale_s: Annotated[float, Field(ge=60, le=30 * 86400)] = 86400.0
    """Alarm when a study's log has shown this hospital no newer checkpoint for so long."""
    inclusion_s: Annotated[float, Field(gt=0, le=86400)] = 900.0
    """Alarm when the log has not proven for so long that it holds an event of this hospital."""
    metrics_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Show `/metrics`, `/healthz` and `/readyz` on 127.0.0.1 under this port; without it nothing listens."""
    vanish: VanishSettings | None = None
    """Simulations only: end for good at this point."""

    @model_validator(mode="before")
    @classmethod
    def _spool_database(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "spool_dir" not in values:
            return values
        url = f"sqlite:///{Path(values['spool_dir']).absolute() / 'spool.db'}"
        if values.get("database_url", url) != url:
            raise ValueError("database_url cannot be set: the spool is the SQLite file spool.db in spool_dir")
        return {**values, "database_url": url}

    @field_validator("http_port")
    @classmethod
    def _no_port(cls, port: int | None) -> int | None:
        if port is not None:
            raise ValueError("the connector listens on no port; remove http_port")
        return port

    @model_validator(mode="after")
    def _log_has_time(self) -> "ConnectorSettings":
        if self.log_stale_s < 2 * self.inclusion_s:
            raise ValueError("log_stale_s must be at least twice inclusion_s: an idle log is stirred at half of it")
        return self

    @model_validator(mode="after")
    def _enough_officers(self) -> "ConnectorSettings":
        if self.governance_threshold > len(set(self.governance_keys)):
            raise ValueError("governance_threshold is larger than the number of distinct governance_keys")
        return self

    def dataset(self, study: str) -> DataSource | None:
        """The table bound to this study, or to every study."""
        return self.datasets.get(study, self.datasets.get(ANY))

    @property
    def key_file(self) -> Path:
        return self.identity_key_file or self.spool_dir / "identity.key"
