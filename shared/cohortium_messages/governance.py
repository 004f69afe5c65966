"""Who is who and who may what: trust document, invitations, membership manifests, grants, permits.

Signatures inside these documents are Ed25519 over PAE of a label and the RFC 8785 canonical JSON of the document
without its signatures (`cohortium_protocol.documents`).
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from cohortium_messages.consent import Effect
from cohortium_messages.ids import (
    Bytes16,
    Bytes32,
    Bytes64,
    RunIdField,
    SiteIdField,
    StudyIdField,
    Wire,
)
from cohortium_messages.registry import Message

MAX_ROSTER = 200
"""Sites of one secure sum. Its work grows with the cube of their number."""
MAX_MEMBERS = 2000
"""Members of one study: of more than a roster holds, some are asked at a time. A manifest of so many has half a
megabyte, and a control message may have four."""
ShortName = Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")]
Reason = Annotated[str, Field(max_length=64, pattern=r"^[A-Z][A-Z0-9_]*(:[A-Z]{2,8})?$")]
"""A stable code; `problems.SENTENCES` has the human sentence for each. After a colon: the term of the data-use ontology
that a study does not fit."""


class GovernanceSignature(Wire):
    """`key` is the public key of one governance officer."""

    key: Bytes32
    sig: Bytes64


class ServiceKeys(Wire):
    """The public keys that sites and services rely on, by role. Key ids on the wire are `service:<role>`."""

    enrolment: Bytes32
    consent: Bytes32
    scheduler: Bytes32
    aggregator: Bytes32
    audit: Bytes32
    aggregator_seal: Bytes32
    """X25519, for what is sealed to the aggregator; the others are Ed25519."""


class TrustDocument(Wire):
    """The root of a federation: its services' keys, signed by at least `threshold` governance officers.

    A hospital pins the governance keys when it installs the connector; everything else follows from them.
    """

    federation: Annotated[str, Field(min_length=3, max_length=100, pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    version: Annotated[int, Field(ge=1)]
    issued_at: datetime
    services: ServiceKeys
    governance_keys: Annotated[tuple[Bytes32, ...], Field(min_length=1, max_length=32)]
    threshold: Annotated[int, Field(ge=1, le=32)]
    signatures: tuple[GovernanceSignature, ...] = ()


class Member(Wire):
    site_id: SiteIdField
    name: ShortName
    identity_pk: Bytes32


class Manifest(Wire):
    """Membership of one study, versioned and hash-chained. Signed by people, so no service can mint members."""

    study_id: StudyIdField
    version: Annotated[int, Field(ge=1)]
    prev_hash: Bytes32
    """`manifest_hash` of the version before; 32 zero bytes for the first."""
    study_digest: Bytes32
    """The study version that the members joined: the manifest's policy_hash."""
    members: Annotated[tuple[Member, ...], Field(min_length=3, max_length=MAX_MEMBERS)]
    """Sorted by the 16 bytes of site_id."""
    collusion: Annotated[int, Field(ge=0, le=198)]
    """c: most sites assumed to collude with the operator."""
    k_min_floor: Annotated[int, Field(ge=0, le=200)]
    signatures: tuple[GovernanceSignature, ...] = ()


class Invitation(Wire):
    """What an operator hands to one hospital: a one-time token and the trust document. A file, never a bus message."""

    site_id: SiteIdField
    name: ShortName
    token: Annotated[str, Field(min_length=32, max_length=64)]
    expires_at: datetime
    trust: TrustDocument


class RegisterSite(Message, type_name="cohortium.enrolment.register.v1"):
    """Site to enrolment: the identity key with proof of possession, and the one-time token as an HMAC, so that the
    token itself never travels. `proof` signs (federation, site id, identity key, token_mac)."""

    site_id: SiteIdField
    identity_pk: Bytes32
    token_mac: Bytes32
    proof: Bytes64


class SiteRegistered(Message, type_name="cohortium.enrolment.registered.v1"):
    """Enrolment to the site and to all services: this key speaks for this site from now on."""

    site_id: SiteIdField
    name: ShortName
    identity_pk: Bytes32


class RegistrationRefused(Message, type_name="cohortium.enrolment.refused.v1"):
    """Enrolment to a site: this key is not the site's, and why. Somebody else may have tried with a key of their own,
    so a site heeds what is said of its own key only."""

    site_id: SiteIdField
    reason: Reason
    identity_pk: Bytes32 | None = None


class SiteRevoked(Message, type_name="cohortium.enrolment.revoked.v1"):
    """Enrolment to all services: nothing from this site is valid any more."""

    site_id: SiteIdField
    reason: Reason


class ManifestPublished(Message, type_name="cohortium.enrolment.manifest.v1"):
    """Enrolment to services and members."""

    manifest: Manifest


Band = Annotated[str, Field(pattern=r"^(<11|[1-9][0-9]*-[1-9][0-9]*)$", max_length=24)]
"""How many persons, to the ten below; fewer than 11 are not told apart."""
CohortUnit = Literal["person", "row"]
"""What a cohort counts: `row` where the hospital's table does not say whose each row is."""
ConsentSourceKind = Literal["table", "fhir", "optout_list", "none"]


def _is_none(value: object) -> bool:
    return value is None


class GrantedCohort(Wire):
    """What stood behind a hospital's approval: what was asked, how many might be used (no band where the study promises
    differential privacy), and a commitment to who they were. The hospital works with no other cohort, but for the
    change that the approved study allows."""

    query_digest: Bytes32
    source: ConsentSourceKind
    unit: CohortUnit
    band: Band | None
    context: Bytes16
    root: Bytes32
    as_of: datetime


class SiteGrant(Wire):
    """A hospital's permission: this site takes part in this study version, until then. Signed with the site's key; the
    connector keeps its own copy and trusts no other."""

    study_id: StudyIdField
    study_digest: Bytes32
    site_id: SiteIdField
    not_before: datetime
    not_after: datetime
    max_rounds: Annotated[int, Field(ge=1, le=1_000_000)]
    approvers: Annotated[tuple[ShortName, ...], Field(min_length=1, max_length=8)]
    basis: Bytes32 | None = None
    """Digest of the `GrantBasis` that two people of the hospital approved; None for a trial study, which needs none."""
    cohort: Annotated[GrantedCohort | None, Field(exclude_if=_is_none)] = None
    """None in a trial, and where a study reads no row."""
    sig: Bytes64


class GrantGiven(Message, type_name="cohortium.consent.grant_given.v1"):
    """Site to consent."""

    grant: SiteGrant


class GrantWithdrawn(Message, type_name="cohortium.consent.grant_withdrawn.v1"):
    """Site to consent: from `at` on, this site takes no part in the study. One person can always stop."""

    study_id: StudyIdField
    study_digest: Bytes32
    site_id: SiteIdField
    at: datetime
    requested_effect: Effect = "stop_future"
    """What the hospital asks to become of the models that learnt from it; officers decide."""
    sig: Bytes64


class GrantRecorded(Message, type_name="cohortium.consent.grant_recorded.v1"):
    """Consent to the scheduler: a valid grant is on record."""

    study_id: StudyIdField
    study_digest: Bytes32
    site_id: SiteIdField
    grant_digest: Bytes32
    not_after: datetime


class GrantEnded(Message, type_name="cohortium.consent.grant_ended.v1"):
    """Consent to the scheduler and the aggregator: this site's grant is over."""

    study_id: StudyIdField
    study_digest: Bytes32
    site_id: SiteIdField
    reason: Reason


class PartPrice(Wire):
    """What one use of a privacy plan costs a patient, in Rényi divergence at each order from 2 to 64 (None: no bound).
    Training is used once a round; evaluation once."""

    part: Literal["training", "evaluation"]
    uses: Annotated[int, Field(ge=1, le=10_000_000)]
    prices: Annotated[tuple[Annotated[float, Field(ge=0)] | None, ...], Field(min_length=63, max_length=63)]


class AuthoriseAsked(Message, type_name="cohortium.consent.authorise_asked.v1"):
    """Scheduler to consent, before each window: may these sites take part?"""

    question_id: Bytes16
    run_id: RunIdField
    study_id: StudyIdField
    study_digest: Bytes32
    round: Annotated[int, Field(ge=0)]
    sites: Annotated[tuple[SiteIdField, ...], Field(min_length=1, max_length=MAX_MEMBERS)]
    prices: Annotated[tuple[PartPrice, ...], Field(max_length=2)] = ()
    """Of a private study: what the whole run costs each site's patients."""
    governance: Literal["required", "trial"] = "required"
    """Of the study file: whether the institution plane's documents are asked for."""


class Permit(Wire):
    site_id: SiteIdField
    permitted: bool
    grant_digest: Bytes32 | None = None
    deny_code: Reason | None = None
    permit_digest: Bytes32 | None = None
    """Of a study that is no trial: names this permission and every document that it rests on."""
    until: datetime | None = None
    """When the first of these documents, or the grant, ends."""


class Authorised(Message, type_name="cohortium.consent.authorised.v1"):
    """Consent to the scheduler: the answer, site by site."""

    question_id: Bytes16
    run_id: RunIdField
    permits: Annotated[tuple[Permit, ...], Field(max_length=MAX_MEMBERS)]


GrantState = Literal["granted", "withdrawn", "expired", "superseded"]
