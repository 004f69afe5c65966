"""May this hospital's data be used in this round of this study version, now? From signed documents alone. Pure.

The scheduler's question is answered with it, and the connector asks it again over its own copies before the first row
and before the upload. All reasons are given, the widest first; an unknown or missing document denies.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, TypeVar, assert_never

from cohortium_messages.consent import (
    Agreement,
    ConsentFile,
    DataUseTerms,
    Delegation,
    Document,
    EthicsApproval,
    GrantBasis,
    Moment,
    StudyVersion,
    Withdrawal,
    WithdrawalEffect,
)
from cohortium_messages.governance import SiteGrant
from cohortium_messages.ids import Bytes32, SiteId, StudyId, Wire
from cohortium_messages.problems import sentence
from cohortium_protocol.consent.duo import Request, mismatches
from cohortium_protocol.consent.people import Directory
from cohortium_protocol.consent.records import State, Word, fold, standing, took_effect
from cohortium_protocol.consent.rules import replaces, takes_place_of
from cohortium_protocol.consent.signing import permit_digest, record_digest
from cohortium_protocol.documents import GovernancePin

D = TypeVar("D", Agreement, DataUseTerms, EthicsApproval, GrantBasis, StudyVersion)


class Evidence(Wire):
    """What a permission rests on. `until`: when the first of these documents ends."""

    grant: Bytes32
    study_version: Bytes32
    basis: Bytes32
    agreements: tuple[Bytes32, ...]
    ethics: Bytes32
    terms: Bytes32
    until: Moment


@dataclass(frozen=True, slots=True)
class Permitted:
    """Yes: `digest` names this permission, which ends at `until` unless somebody ends it before."""

    digest: bytes
    until: datetime
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason against it: a stable code, the object (kind and number or digest), and since or until when."""

    code: str
    thing: str
    moment: datetime | None = None


@dataclass(frozen=True, slots=True)
class Denied:
    """No. The first reason is the widest; it is the one that travels."""

    reasons: tuple[Reason, ...]

    @property
    def code(self) -> str:
        return self.reasons[0].code


@dataclass(frozen=True, slots=True)
class Judged:
    """A document and the state that its acts amount to. `superseded`: from when another document has its place, which
    may be later; None where none has."""

    document: Document
    state: State
    superseded: datetime | None = None

    def standing(self, now: datetime) -> tuple[Word, datetime | None]:
        """The word for the document's standing at this moment, and since (or from, or until) when. What would count
        but for the document that took its place is superseded."""
        word, moment = standing(self.document, self.state, now)
        if self.superseded is not None and now >= self.superseded and word in (*IN_FORCE, "not_yet", "expired"):
            return "superseded", self.superseded
        return word, moment

    @property
    def end(self) -> datetime:
        """When a document that has a period ends, or another one takes its place."""
        last: datetime = self.document.period[1]  # type: ignore[union-attr]
        return last if self.superseded is None else min(last, self.superseded)


@dataclass(frozen=True, slots=True)
class Dossier:
    """Documents by digest, as they stand at the moment they were judged for."""

    records: Mapping[bytes, Judged]
    people: Directory

    @classmethod
    def judge(cls, file: ConsentFile, pin: GovernancePin, sites: Mapping[SiteId, bytes], now: datetime) -> "Dossier":
        """From a file of which every act's signature was verified when it came in. Cards are verified here: it may be
        known only now who vouches for whom. `sites`: hospitals' identity keys.

        Delegations are judged first and without each other: nobody lends what was lent.
        """
        bare = Directory.of(pin, sites, file.people, file.ended_cards)
        lent = [
            record.document
            for record in file.records
            if isinstance(record.document, Delegation)
            and standing(record.document, fold(record.document, record.acts, bare, now), now)[0] in IN_FORCE
        ]
        directory = bare.with_delegations(lent)
        found = {}
        for record in file.records:
            people = bare if isinstance(record.document, Delegation) else directory
            state = fold(record.document, record.acts, people, now)
            found[record_digest(record.document)] = Judged(record.document, state)
        for digest, begun in _superseded(file, found, directory, now).items():
            found[digest] = replace(found[digest], superseded=begun)
        return cls(found, directory)


def _superseded(
    file: ConsentFile, found: Mapping[bytes, Judged], people: Directory, now: datetime
) -> Mapping[bytes, datetime]:
    """Documents whose place another one took, or will take, with when. It stays taken, whatever becomes of the newer
    one: what was approved instead is not approved again by ending it."""
    moments: dict[bytes, datetime] = {}
    for record in file.records:
        older = replaces(record.document)
        if older is None or older not in found or not takes_place_of(record.document, found[older].document):
            continue
        begun = took_effect(record.document, record.acts, people, now)
        if begun is not None:
            moments[older] = min(begun, moments.get(older, begun))
    return moments


@dataclass(frozen=True, slots=True)
class Question:
    """May `site_id` take part in `round_number` of this study version at `now`? `epsilon` is what the study file asks
    for; who `knows_study`, as the connector does, also asks whether officers approved just that."""

    study_id: StudyId
    study_digest: bytes
    site_id: SiteId
    round_number: int
    now: datetime
    epsilon: float | None = None
    knows_study: bool = False


IN_FORCE: Final = ("active", "expiring")
_CODES: Final[Mapping[str, str]] = {
    "draft": "NOT_APPROVED",
    "submitted": "NOT_APPROVED",
    "rejected": "NOT_APPROVED",
    "suspended": "SUSPENDED",
    "terminated": "TERMINATED",
    "not_yet": "NOT_YET_VALID",
    "expired": "EXPIRED",
    "superseded": "SUPERSEDED",
}


def authorise(question: Question, grant: SiteGrant, grant_digest: bytes, dossier: Dossier) -> Permitted | Denied:
    """The decision on a governed study; `grant` is one that is usable by itself (signed, in force, not withdrawn)."""
    basis = _at(dossier, grant.basis, GrantBasis)
    version = _at(dossier, basis.study_version, StudyVersion) if basis is not None else _version(question, dossier)
    reasons = [*_study(question, version, dossier)]
    reasons += withdrawn(question, grant, dossier)
    if grant.basis is None:
        return Denied((*reasons, Reason("GRANT_UNGOVERNED", _name("grant", grant_digest))))
    if basis is None:
        return Denied((*reasons, Reason("APPROVAL_NOT_FOUND", _name("approval", grant.basis))))
    reasons += _agreements(question, basis, dossier)
    reasons += _ethics(question, basis, dossier)
    reasons += _terms(question, basis, version, dossier)
    reasons += _approval(question, basis, version, grant, dossier)
    if reasons:
        return Denied(tuple(reasons))
    named = (basis.study_version, grant.basis, *basis.agreements, basis.ethics, basis.terms)
    ends = [dossier.records[digest].end for digest in named]
    evidence = Evidence(
        grant=grant_digest,
        study_version=basis.study_version,
        basis=grant.basis,
        agreements=basis.agreements,
        ethics=basis.ethics,
        terms=basis.terms,
        until=min(grant.not_after, *ends),
    )
    digest = permit_digest(question.study_digest, question.site_id, question.round_number, evidence)
    return Permitted(digest, evidence.until, evidence)


def _study(question: Question, version: StudyVersion | None, dossier: Dossier) -> Iterable[Reason]:
    if version is None:
        yield Reason("STUDY_VERSION_NOT_FOUND", _name("study version", question.study_digest))
        return
    yield from _stands("STUDY_VERSION", version, dossier, question.now)
    same = (version.study_id, version.study_digest) == (question.study_id, question.study_digest)
    if not same or (question.knows_study and version.epsilon != question.epsilon):
        yield Reason("STUDY_VERSION_OF_ANOTHER", name_of(version))
    if question.round_number > version.rounds:
        yield Reason("GRANT_ROUNDS_SPENT", name_of(version))


def withdrawn(question: Question, grant: SiteGrant, dossier: Dossier) -> Iterable[Reason]:
    """A hospital that left comes back only with a grant that begins after it left."""
    for judged in dossier.records.values():
        left = judged.document
        if not isinstance(left, Withdrawal) or left.type == "patient_set":
            continue
        concerns = (left.site_id, left.study_digest) == (question.site_id, question.study_digest)
        in_force = standing(left, judged.state, question.now)[0] in IN_FORCE
        if concerns and in_force and grant.not_before <= left.received_at:
            yield Reason("GRANT_WITHDRAWN", name_of(left), left.received_at)


def _agreements(question: Question, basis: GrantBasis, dossier: Dossier) -> Iterable[Reason]:
    for digest in basis.agreements:
        found = _at(dossier, digest, Agreement)
        if found is None:
            yield Reason("AGREEMENT_NOT_FOUND", _name("agreement", digest))
            continue
        yield from _stands("AGREEMENT", found, dossier, question.now)
        if question.site_id not in found.parties:
            yield Reason("AGREEMENT_OF_ANOTHER", name_of(found))


def _ethics(question: Question, basis: GrantBasis, dossier: Dossier) -> Iterable[Reason]:
    found = _at(dossier, basis.ethics, EthicsApproval)
    if found is None:
        yield Reason("ETHICS_NOT_FOUND", _name("ethics approval", basis.ethics))
        return
    yield from _stands("ETHICS", found, dossier, question.now)
    version = _at(dossier, basis.study_version, StudyVersion)
    protocols = version is None or version.protocol_sha256 == found.protocol_sha256
    if (found.site_id, found.study_id) != (question.site_id, question.study_id) or not protocols:
        yield Reason("ETHICS_OF_ANOTHER", name_of(found))


def _terms(question: Question, basis: GrantBasis, version: StudyVersion | None, dossier: Dossier) -> Iterable[Reason]:
    found = _at(dossier, basis.terms, DataUseTerms)
    if found is None:
        yield Reason("TERMS_NOT_FOUND", _name("data-use terms", basis.terms))
        return
    yield from _stands("TERMS", found, dossier, question.now)
    if found.site_id != question.site_id:
        yield Reason("TERMS_OF_ANOTHER", name_of(found))
    if found.model_egress == "never":
        yield Reason("MODEL_EGRESS_REFUSED", name_of(found))
    if version is None:
        return
    ethics = dossier.records.get(basis.ethics)
    on_record = ethics is not None and ethics.standing(question.now)[0] in IN_FORCE
    request = Request(version.request, question.study_id, on_record, found.effective_from, question.now)
    for code in mismatches(found.uses, request):
        yield Reason(f"DUO_MISMATCH:{code}", name_of(found))
    if _beyond(version.epsilon, found.epsilon_max) or _beyond(version.epsilon, _most(found)):
        yield Reason("EPSILON_ABOVE_TERMS", name_of(found))


def _approval(
    question: Question, basis: GrantBasis, version: StudyVersion | None, grant: SiteGrant, dossier: Dossier
) -> Iterable[Reason]:
    yield from _stands("APPROVAL", basis, dossier, question.now)
    asked = (question.study_id, question.study_digest, question.site_id)
    if (basis.study_id, basis.study_digest, basis.site_id) != asked:
        yield Reason("APPROVAL_OF_ANOTHER", name_of(basis))
    wider = grant.not_before < basis.not_before or grant.not_after > basis.not_after
    if wider or grant.max_rounds > basis.max_rounds:
        yield Reason("GRANT_EXCEEDS_APPROVAL", name_of(basis))
    if version is not None and (_beyond(version.epsilon, basis.max_epsilon) or _beyond(version.epsilon, _most(basis))):
        yield Reason("EPSILON_ABOVE_APPROVAL", name_of(basis))
    if question.round_number > basis.max_rounds:
        yield Reason("GRANT_ROUNDS_SPENT", name_of(basis))


def _most(document: DataUseTerms | GrantBasis) -> float | None:
    """What all runs together may cost, so that not even one may ask for more."""
    return None if document.privacy_cap is None else document.privacy_cap.epsilon


def _beyond(epsilon: float | None, most: float | None) -> bool:
    return most is not None and (epsilon is None or epsilon > most)


def _stands(prefix: str, document: Document, dossier: Dossier, now: datetime) -> Iterable[Reason]:
    word, moment = dossier.records[record_digest(document)].standing(now)
    if word in _CODES:
        yield Reason(f"{prefix}_{_CODES[word]}", name_of(document), moment)


def _version(question: Question, dossier: Dossier) -> StudyVersion | None:
    fitting = [
        judged.document
        for judged in dossier.records.values()
        if isinstance(judged.document, StudyVersion) and judged.document.study_digest == question.study_digest
    ]
    return max(fitting, key=lambda one: (one.version, record_digest(one)), default=None)


def _at(dossier: Dossier, digest: bytes | None, kind: type[D]) -> D | None:
    found = dossier.records.get(digest) if digest is not None else None
    return found.document if found is not None and isinstance(found.document, kind) else None


def name_of(document: Document) -> str:
    """How a document is called in a sentence: its kind and number, or what it is about."""
    match document:
        case Agreement(number=number):
            return f"agreement {number}"
        case EthicsApproval(number=number):
            return f"ethics approval {number}"
        case DataUseTerms(number=number):
            return f"data-use terms {number}"
        case StudyVersion(study_id=study, version=version):
            return f"version {version} of {study}"
        case GrantBasis(study_id=study):
            return f"the hospital's approval of {study}"
        case Withdrawal(study_id=study):
            return f"withdrawal from {study}"
        case WithdrawalEffect(effect=effect):
            return f"decision on a withdrawal: {effect}"
        case Delegation(role=role):
            return f"delegation of {role}"
        case _:
            assert_never(document)


def _name(kind: str, digest: bytes | None) -> str:
    return kind if digest is None else f"{kind} {digest.hex()[:12]}"


def told(reason: Reason) -> str:
    """The reason as a sentence for people: the fact and the way out, the object, the day."""
    day = "" if reason.moment is None else f", {reason.moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    return f"{sentence(reason.code)} ({reason.thing}{day})"
