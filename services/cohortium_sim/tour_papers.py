"""The people of the governance tour, and the documents that they write and sign: all as in production, with keys that
are made here and thrown away."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cohortium_messages.consent import (
    Agreement,
    ConsentFile,
    DataUseTerms,
    Document,
    EthicsApproval,
    GrantBasis,
    PersonCard,
    Record,
    Role,
    StudyVersion,
)
from cohortium_messages.duo import DuoTerm, UseRequest
from cohortium_messages.ids import SiteId, StudyId
from cohortium_messages.study import Study
from cohortium_protocol.consent.files import sign_documents
from cohortium_protocol.consent.signing import record_digest
from cohortium_protocol.signing import IdentityKey

YEAR, DAY, STEP = timedelta(days=365), timedelta(days=1), timedelta(milliseconds=5)
PROTOCOL = hashlib.sha256(b"the study's protocol, version 1.0").digest()


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who signs, with a key of their own."""

    name: str
    role: Role
    key: IdentityKey
    site_id: SiteId | None = None

    def card(self, now: datetime) -> PersonCard:
        """Whose key is whose; to be vouched for."""
        return PersonCard(
            person=self.name.lower().replace(" ", "-"),
            name=self.name,
            role=self.role,
            site_id=self.site_id,
            key=self.key.public,
            not_before=now - DAY,
            not_after=now + YEAR,
        )


@dataclass(frozen=True, slots=True)
class HospitalPeople:
    """One who writes, and two who approve: nobody approves what they wrote."""

    admin: Person
    approvers: tuple[Person, Person]

    @classmethod
    def of(cls, site_id: SiteId) -> "HospitalPeople":
        def person(name: str, role: Role) -> Person:
            return Person(name, role, IdentityKey.generate(), site_id)

        approvers = person("Bea Braun", "site_approver"), person("Carl Conti", "site_approver")
        return cls(person("Ada Admin", "site_admin"), approvers)

    @property
    def all(self) -> tuple[Person, ...]:
        return (self.admin, *self.approvers)


def signed(document: Document, author: Person, approvers: Sequence[Person], now: datetime) -> Record:
    """The document with its author's signature, and then those of the people who approve it."""
    file = sign_documents(ConsentFile(records=(Record(document=document),)), "submit", author.name, now, author.key)
    for place, person in enumerate(approvers, start=1):
        file = sign_documents(file, "approve", person.name, now + place * STEP, person.key)
    return file.records[0]


def study_version(study: Study, lead: Person, now: datetime) -> StudyVersion:
    """What officers approve: this study file, this protocol, this use."""
    return StudyVersion(
        study_id=StudyId(study.name),
        version=1,
        study_digest=study.digest(),
        title=study.purpose,
        sponsor="University Hospital North",
        lead=lead.name,
        protocol_sha256=PROTOCOL,
        request=UseRequest(
            aims=("disease",),
            diseases=("MONDO:0005010",),
            commercial=False,
            for_profit=False,
            publishes=True,
            regions=("DE",),
        ),
        rounds=1000,
        effective_from=now - DAY,
        effective_to=now + YEAR,
    )


def hospital_documents(study: Study, version: StudyVersion, site_id: SiteId, now: datetime) -> dict[str, Document]:
    """A hospital's agreement with the operator, its ethics board's decision, its data-use terms, and its approval of
    the study, which rests on the other three."""
    agreement = Agreement(
        number="DPA-7",
        type="dpa",
        parties=(site_id,),
        governing_law="DE",
        doc_sha256=hashlib.sha256(b"the signed contract").digest(),
        signed_on=now - DAY,
        effective_from=now - DAY,
        effective_to=now + YEAR,
    )
    ethics = EthicsApproval(
        number="EK 12/26",
        site_id=site_id,
        study_id=version.study_id,
        board="Ethics Committee",
        protocol_version="1.0",
        protocol_sha256=PROTOCOL,
        decision="approved",
        approved_on=now - DAY,
        expires_on=now + YEAR,
        doc_sha256=hashlib.sha256(b"the board's letter").digest(),
    )
    terms = DataUseTerms(
        number="T-1",
        site_id=site_id,
        uses=(DuoTerm(code="HMB"), DuoTerm(code="NCU"), DuoTerm(code="IRB")),
        legal_basis="GDPR 6(1)(e), 9(2)(j)",
        patient_consent="required",
        withdrawal_effect="stop_future",  # the least; for who leaves last, officers decide on more
        patient_withdrawal_effect="retrain",
        effective_from=now - DAY,
        effective_to=now + YEAR,
    )
    basis = GrantBasis(
        site_id=site_id,
        study_id=version.study_id,
        study_digest=study.digest(),
        study_version=record_digest(version),
        agreements=(record_digest(agreement),),
        ethics=record_digest(ethics),
        terms=record_digest(terms),
        max_rounds=1000,
        # A connector grants for a year less a day at the most, and a grant goes no further than its approval.
        not_before=now - DAY,
        not_after=now + YEAR,
    )
    return {"agreement": agreement, "ethics": ethics, "terms": terms, "approval": basis}
