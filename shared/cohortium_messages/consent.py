"""The institution plane of consent: documents, the people who sign them, and their signatures.

A document never changes. Its name is its digest, the SHA-256 of its RFC 8785 JSON; an edit is another document, which
may say what it takes the place of. What people do with it (submit, approve, suspend, ...) are acts: each is signed by
one person over the document's digest, the printed name, the moment and the meaning (21 CFR 11.50 and 11.70). The state
of a document follows from its acts and the moment of the question (`cohortium_protocol.consent`).
"""

from datetime import datetime
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from cohortium_messages.duo import DuoTerm, UseRequest
from cohortium_messages.ids import Bytes32, Bytes64, SiteIdField, StudyIdField, Wire
from cohortium_messages.registry import Message


def _zoned(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError("needs a time zone, such as 2027-01-31T00:00:00Z")
    return moment


Moment = Annotated[datetime, AfterValidator(_zoned)]
"""A time without a zone is another moment to each reader."""
PersonId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,62}$")]
"""An opaque id, unique at its institution. It is what logs show; the printed name is in cards and signatures only."""
Line = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
Number = Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[^\x00-\x1f\x7f]+$")]

Role = Literal["officer", "study_lead", "reviewer", "site_admin", "site_approver"]
"""What a person may sign as. `officer`: governance officer or data protection officer of the federation."""


Effect = Literal["stop_future", "retrain", "retire"]
"""What becomes of models that learnt from who left: nothing, training again without, or out of use."""


class Dated(Wire):
    """A document that counts from one moment until another. Expiry is never written down: it follows from the moment
    of the question."""

    period_fields: ClassVar[tuple[str, str]] = ("effective_from", "effective_to")

    @property
    def period(self) -> tuple[datetime, datetime]:
        """From when until when the document counts; the end is no part of it."""
        first, last = self.period_fields
        return getattr(self, first), getattr(self, last)

    @model_validator(mode="after")
    def _begins_before_it_ends(self) -> Self:
        first, last = self.period_fields
        if self.period[0] >= self.period[1]:
            raise ValueError(f"{last} must be later than {first}")
        return self


class RootSignature(Wire):
    """`key` is a governance officer's or the site's own identity key."""

    key: Bytes32
    sig: Bytes64


class PersonCard(Dated):
    """Whose key is whose, in which role. People of a hospital are vouched for by its identity key, all others by as
    many governance officers as a manifest needs. The officers themselves need no card: their keys are pinned."""

    period_fields: ClassVar[tuple[str, str]] = ("not_before", "not_after")
    kind: Literal["person"] = "person"
    person: PersonId
    name: Line
    role: Role
    site_id: SiteIdField | None = None
    """The hospital; None for people of the federation."""
    key: Bytes32
    not_before: Moment
    not_after: Moment
    signatures: Annotated[tuple[RootSignature, ...], Field(max_length=32)] = ()

    @model_validator(mode="after")
    def _role_has_its_place(self) -> "PersonCard":
        if self.role.startswith("site_") != (self.site_id is not None):
            raise ValueError(f"role {self.role} {'needs' if self.site_id is None else 'has no'} site_id")
        return self


AgreementKind = Literal["dpa", "joint_controller", "dua", "dta", "baa", "consortium", "ehds_permit"]


class Agreement(Dated):
    """A contract between the operator and hospitals: metadata and the digest of the signed paper."""

    kind: Literal["agreement"] = "agreement"
    number: Number
    type: AgreementKind
    parties: Annotated[tuple[SiteIdField, ...], Field(min_length=1, max_length=200)]
    governing_law: Annotated[str, Field(pattern=r"^[A-Z]{2}(-[A-Z0-9]{1,3})?$")]
    doc_sha256: Bytes32
    signed_on: Moment
    effective_from: Moment
    effective_to: Moment
    supersedes: Bytes32 | None = None


class EthicsApproval(Dated):
    """An ethics board's decision on a study at one hospital: what was decided, on which protocol, until when."""

    period_fields: ClassVar[tuple[str, str]] = ("approved_on", "expires_on")
    kind: Literal["ethics"] = "ethics"
    number: Number
    site_id: SiteIdField
    study_id: StudyIdField
    board: Line
    protocol_version: Number
    protocol_sha256: Bytes32
    decision: Literal["approved", "exempt", "not_human_subjects", "waiver"]
    waiver_basis: Literal["45_cfr_46_116_f", "164_512_i", "national"] | None = None
    approved_on: Moment
    expires_on: Moment
    doc_sha256: Bytes32
    supersedes: Bytes32 | None = None

    @model_validator(mode="after")
    def _waiver_has_a_basis(self) -> "EthicsApproval":
        if (self.decision == "waiver") != (self.waiver_basis is not None):
            raise ValueError("waiver_basis must be given for a waiver, and for nothing else")
        return self


class PrivacyCap(Wire):
    """The most that all runs of one study together may cost this hospital's patients: (ε, δ) of everything that it was
    charged for them, by its own signed statements (`cohortium_privacy.agreed`)."""

    epsilon: Annotated[float, Field(gt=0, le=100)]
    delta: Annotated[float, Field(gt=0, lt=1e-2)]


def _is_none(value: object) -> bool:
    return value is None


class DataUseTerms(Dated):
    """Under which terms a hospital lets its data be used, in GA4GH DUO codes; and its privacy and egress limits."""

    kind: Literal["terms"] = "terms"
    number: Number
    site_id: SiteIdField
    uses: Annotated[tuple[DuoTerm, ...], Field(min_length=1, max_length=32)]
    legal_basis: Line
    patient_consent: Literal["required", "opt_out_only", "not_required"]
    epsilon_max: Annotated[float, Field(gt=0, le=100)] | None = None
    """Most ε a study may ask for, in each of its runs; None: a study without differential privacy is allowed, too."""
    privacy_cap: Annotated[PrivacyCap | None, Field(exclude_if=_is_none)] = None
    """Of each study, all its runs together. Not written where there is none, so that older terms keep their digest."""
    model_egress: Literal["never", "aggregate_only"] = "aggregate_only"
    withdrawal_effect: Effect = "stop_future"
    """The least that is decided about models that learnt from the hospital, when it leaves a study."""
    patient_withdrawal_effect: Annotated[Effect | None, Field(exclude_if=_is_none)] = None
    """The same when patients leave; left out: `withdrawal_effect`."""
    effective_from: Moment
    effective_to: Moment
    supersedes: Bytes32 | None = None


class StudyVersion(Dated):
    """One version of a study as officers approve it: the study file's digest, who answers for it, and the use it asks
    for."""

    kind: Literal["study_version"] = "study_version"
    study_id: StudyIdField
    version: Annotated[int, Field(ge=1, le=100_000)]
    study_digest: Bytes32
    title: Line
    sponsor: Line
    lead: Line
    protocol_sha256: Bytes32
    request: UseRequest
    epsilon: Annotated[float, Field(gt=0, le=100)] | None = None
    """What the study file asks for; None: no differential privacy."""
    rounds: Annotated[int, Field(ge=1, le=1_000_000)]
    effective_from: Moment
    effective_to: Moment
    supersedes: Bytes32 | None = None


class GrantBasis(Dated):
    """What two people of a hospital approve before its connector signs a grant, and which documents it rests on."""

    period_fields: ClassVar[tuple[str, str]] = ("not_before", "not_after")
    kind: Literal["grant_basis"] = "grant_basis"
    site_id: SiteIdField
    study_id: StudyIdField
    study_digest: Bytes32
    study_version: Bytes32
    agreements: Annotated[tuple[Bytes32, ...], Field(min_length=1, max_length=16)]
    ethics: Bytes32
    terms: Bytes32
    max_rounds: Annotated[int, Field(ge=1, le=1_000_000)]
    max_epsilon: Annotated[float, Field(gt=0, le=100)] | None = None
    """Most ε the study may ask for, in each of its runs."""
    privacy_cap: Annotated[PrivacyCap | None, Field(exclude_if=_is_none)] = None
    """Of all runs of the study together, under this approval and earlier ones. As in `DataUseTerms`."""
    not_before: Moment
    not_after: Moment
    supersedes: Bytes32 | None = None


class Delegation(Dated):
    """One person lets another sign in the same role for a while. Whoever signs for somebody is both of them: neither
    may sign beside the other."""

    period_fields: ClassVar[tuple[str, str]] = ("not_before", "not_after")
    kind: Literal["delegation"] = "delegation"
    site_id: SiteIdField | None = None
    from_key: Bytes32
    to_key: Bytes32
    role: Role
    study_id: StudyIdField | None = None
    """Left out: in every study."""
    not_before: Moment
    not_after: Moment
    cause: Literal["leave", "illness", "vacancy", "conflict_of_interest"]


WithdrawalType = Literal["institution", "patient_set", "regulator"]


class Withdrawal(Wire):
    """A hospital, a regulator, or patients of a hospital leave a study, and what they ask to follow."""

    kind: Literal["withdrawal"] = "withdrawal"
    type: WithdrawalType
    site_id: SiteIdField
    study_id: StudyIdField
    study_digest: Bytes32
    received_at: Moment
    effective_at: Moment
    from_round: Annotated[int, Field(ge=0)] | None = None
    requested_effect: Effect


class WithdrawalEffect(Wire):
    """What officers decide about the models that a withdrawal touches. `withdrawal`: the digest of what was signed. Of
    several for one withdrawal the newest that enough people signed counts, until it is carried out."""

    kind: Literal["withdrawal_effect"] = "withdrawal_effect"
    withdrawal: Bytes32
    site_id: SiteIdField
    study_id: StudyIdField
    study_digest: Bytes32
    effect: Effect
    decided_at: Moment


Document = Annotated[
    Agreement | EthicsApproval | DataUseTerms | StudyVersion | GrantBasis | Delegation | Withdrawal | WithdrawalEffect,
    Field(discriminator="kind"),
]
DocumentKind = Literal[
    "agreement",
    "ethics",
    "terms",
    "study_version",
    "grant_basis",
    "delegation",
    "withdrawal",
    "withdrawal_effect",
]

Deed = Literal["submit", "approve", "reject", "suspend", "terminate"]
Meaning = Literal[
    "I am the author of this record.",
    "I have reviewed this record and approve it.",
    "I have reviewed this record and reject it.",
    "This record is suspended from this moment.",
    "This record is ended from this moment.",
]
MEANINGS: dict[Deed, Meaning] = {
    "submit": "I am the author of this record.",
    "approve": "I have reviewed this record and approve it.",
    "reject": "I have reviewed this record and reject it.",
    "suspend": "This record is suspended from this moment.",
    "terminate": "This record is ended from this moment.",
}


class Act(Wire):
    """One signature of one person: printed name, moment, meaning, bound to the record's digest."""

    record: Bytes32
    deed: Deed
    key: Bytes32
    name: Line
    meaning: Meaning
    at: Moment
    sig: Bytes64

    @model_validator(mode="after")
    def _means_what_it_does(self) -> "Act":
        if MEANINGS[self.deed] != self.meaning:
            raise ValueError(f"meaning of {self.deed} must be: {MEANINGS[self.deed]}")
        return self


MOST_ACTS = 64


class Record(Wire):
    """A document with all signatures that are known of it, in no particular order."""

    document: Document
    acts: Annotated[tuple[Act, ...], Field(max_length=MOST_ACTS)] = ()


class ConsentFile(Wire):
    """Documents that belong together, their signatures, and the cards of the people who signed: all that is needed to
    judge them, on any machine."""

    people: Annotated[tuple[PersonCard, ...], Field(max_length=2000)] = ()
    ended_cards: Annotated[tuple[Act, ...], Field(max_length=500)] = ()
    """Acts `terminate` over the digest of a card: its key signs nothing from then on."""
    records: Annotated[tuple[Record, ...], Field(max_length=2000)] = ()


class DocumentsShared(Message, type_name="cohortium.consent.documents.v1"):
    """Site to consent, and consent to the sites that documents concern. What is new is added to what is known; nothing
    that comes later takes anything away, so the order of these messages does not matter."""

    file: ConsentFile
