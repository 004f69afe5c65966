"""People, documents and signatures of one governed study, for the tests of the institution plane.

`Plane.approved()` is a file in which everything is in order for every hospital; tests change one thing in it.
"""

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cohortium_messages.consent import (
    Act,
    Agreement,
    ConsentFile,
    DataUseTerms,
    Deed,
    Document,
    EthicsApproval,
    GrantBasis,
    PersonCard,
    Record,
    Role,
    StudyVersion,
)
from cohortium_messages.duo import DuoTerm, UseRequest
from cohortium_messages.governance import SiteGrant
from cohortium_messages.ids import SiteId, StudyId
from cohortium_protocol.consent.authorise import Question
from cohortium_protocol.consent.signing import record_digest, sign_act, sign_card
from cohortium_protocol.documents import UNSIGNED, GovernancePin, sign_grant
from cohortium_protocol.signing import IdentityKey

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
STUDY = StudyId("heart-disease")
STUDY_DIGEST = bytes(range(32))
PROTOCOL = b"p" * 32
SITES = tuple(SiteId(f"{number}0000000-0000-4000-8000-00000000000{number}") for number in (1, 2, 3))


def seeded(name: str) -> IdentityKey:
    """A key that is the same in every run."""
    return IdentityKey.from_seed(hashlib.sha256(name.encode()).digest())


@dataclass(frozen=True)
class Person:
    """Somebody who signs."""

    name: str
    key: IdentityKey
    role: Role
    site_id: SiteId | None = None


REQUEST: dict[str, Any] = {
    "aims": ["disease"],
    "diseases": ["MONDO:0005010"],
    "commercial": False,
    "for_profit": False,
    "publishes": True,
    "regions": ["DE"],
}


@dataclass
class Plane:
    """Everybody's keys. Two officers, both needed; at each hospital an administrator and two approvers."""

    now: datetime = NOW
    study: StudyId = STUDY
    study_digest: bytes = STUDY_DIGEST
    officers: tuple[IdentityKey, ...] = field(default_factory=lambda: (seeded("officer-1"), seeded("officer-2")))
    site_keys: dict[SiteId, IdentityKey] = field(default_factory=lambda: {one: seeded(f"site-{one}") for one in SITES})

    def __post_init__(self) -> None:
        self.pin = GovernancePin(frozenset(key.public for key in self.officers), 2)
        self.lead = Person("Lena Lead", seeded("lead"), "study_lead")
        self.officer = Person("Olga Officer", self.officers[0], "officer")
        self.second_officer = Person("Otto Officer", self.officers[1], "officer")

    def site_publics(self) -> dict[SiteId, bytes]:
        return {site: key.public for site, key in self.site_keys.items()}

    def admin(self, site: SiteId) -> Person:
        return Person("Ada Admin", seeded(f"admin {site}"), "site_admin", site)

    def approvers(self, site: SiteId) -> tuple[Person, Person]:
        return (
            Person("Bea Braun", seeded(f"bea {site}"), "site_approver", site),
            Person("Carl Conti", seeded(f"carl {site}"), "site_approver", site),
        )

    def card(self, person: Person, **changes: Any) -> PersonCard:
        """The person's card, vouched for by whoever may."""
        values: dict[str, Any] = {
            "person": person.name.split()[0].lower(),
            "name": person.name,
            "role": person.role,
            "site_id": person.site_id,
            "key": person.key.public,
            "not_before": self.now - 400 * DAY,
            "not_after": self.now + 400 * DAY,
        }
        card = PersonCard.model_validate({**values, **changes})
        for key in self.officers if person.site_id is None else (self.site_keys[person.site_id],):
            card = sign_card(card, key)
        return card

    def cards(self) -> tuple[PersonCard, ...]:
        people = [self.lead]
        for site in self.site_keys:
            people += [self.admin(site), *self.approvers(site)]
        return tuple(self.card(person) for person in people)

    def act(self, document: Document, deed: Deed, by: Person, at: datetime | None = None) -> Act:
        return sign_act(record_digest(document), deed, by.name, at or self.now - 30 * DAY, by.key)

    def record(self, document: Document, author: Person, *approvers: Person) -> Record:
        """A record with these signatures, a minute apart."""
        begun = self.now - 30 * DAY
        acts = [self.act(document, "submit", author, begun)]
        minutes = timedelta(minutes=1)
        acts += [self.act(document, "approve", by, begun + (place + 1) * minutes) for place, by in enumerate(approvers)]
        return Record(document=document, acts=tuple(acts))

    # Documents

    def agreement(self, site: SiteId, **changes: Any) -> Agreement:
        values = {
            "number": "DPA-7",
            "type": "dpa",
            "parties": (site,),
            "governing_law": "DE",
            "doc_sha256": b"a" * 32,
            "signed_on": self.now - 100 * DAY,
            "effective_from": self.now - 90 * DAY,
            "effective_to": self.now + 300 * DAY,
        }
        return Agreement.model_validate({**values, **changes})

    def ethics(self, site: SiteId, **changes: Any) -> EthicsApproval:
        values = {
            "number": "EK 12/26",
            "site_id": site,
            "study_id": self.study,
            "board": "Ethics Committee",
            "protocol_version": "1.0",
            "protocol_sha256": PROTOCOL,
            "decision": "approved",
            "approved_on": self.now - 80 * DAY,
            "expires_on": self.now + 200 * DAY,
            "doc_sha256": b"e" * 32,
        }
        return EthicsApproval.model_validate({**values, **changes})

    def terms(self, site: SiteId, *uses: DuoTerm, **changes: Any) -> DataUseTerms:
        values = {
            "number": "T-1",
            "site_id": site,
            "uses": uses or (DuoTerm(code="HMB"), DuoTerm(code="NCU"), DuoTerm(code="IRB")),
            "legal_basis": "GDPR 6(1)(e), 9(2)(j)",
            "patient_consent": "not_required",
            "effective_from": self.now - 90 * DAY,
            "effective_to": self.now + 500 * DAY,
        }
        return DataUseTerms.model_validate({**values, **changes})

    def version(self, **changes: Any) -> StudyVersion:
        values = {
            "study_id": self.study,
            "version": 1,
            "study_digest": self.study_digest,
            "title": "Coronary disease",
            "sponsor": "University",
            "lead": self.lead.name,
            "protocol_sha256": PROTOCOL,
            "request": UseRequest.model_validate(REQUEST),
            "rounds": 1000,
            "effective_from": self.now - 60 * DAY,
            "effective_to": self.now + 400 * DAY,
        }
        return StudyVersion.model_validate({**values, **changes})

    def basis(self, site: SiteId, parts: dict[str, Document], **changes: Any) -> GrantBasis:
        values = {
            "site_id": site,
            "study_id": self.study,
            "study_digest": self.study_digest,
            "study_version": record_digest(parts["version"]),
            "agreements": (record_digest(parts["agreement"]),),
            "ethics": record_digest(parts["ethics"]),
            "terms": record_digest(parts["terms"]),
            "max_rounds": 500,
            "not_before": self.now - 40 * DAY,
            "not_after": self.now + 250 * DAY,
        }
        return GrantBasis.model_validate({**values, **changes})

    def parts(self, site: SiteId, **changes: dict[str, Any]) -> dict[str, Document]:
        """All five documents of one hospital; `changes` are fields of each by name."""
        made: dict[str, Document] = {
            "version": self.version(**changes.get("version", {})),
            "agreement": self.agreement(site, **changes.get("agreement", {})),
            "ethics": self.ethics(site, **changes.get("ethics", {})),
            "terms": self.terms(site, **changes.get("terms", {})),
        }
        return {**made, "basis": self.basis(site, made, **changes.get("basis", {}))}

    def signed(self, site: SiteId, parts: dict[str, Document]) -> dict[str, Record]:
        """The same with the signatures that each needs."""
        admin, (bea, carl) = self.admin(site), self.approvers(site)
        return {
            "version": self.record(parts["version"], self.lead, self.officer, self.second_officer),
            "agreement": self.record(parts["agreement"], admin, bea, self.officer),
            "ethics": self.record(parts["ethics"], admin, bea, self.officer),
            "terms": self.record(parts["terms"], admin, bea, carl),
            "basis": self.record(parts["basis"], admin, bea, carl),
        }

    def file(self, *sites: SiteId) -> ConsentFile:
        """Everything in order, for these hospitals."""
        records = {
            record_digest(one.document): one for site in sites for one in self.signed(site, self.parts(site)).values()
        }
        return ConsentFile(people=self.cards(), records=tuple(records.values()))

    def grant(self, site: SiteId, basis: bytes | None, **changes: Any) -> SiteGrant:
        values: dict[str, Any] = {
            "study_id": self.study,
            "study_digest": self.study_digest,
            "site_id": site,
            "not_before": self.now - 20 * DAY,
            "not_after": self.now + 100 * DAY,
            "max_rounds": 300,
            "approvers": ("Bea Braun", "Carl Conti"),
            "basis": basis,
            "sig": UNSIGNED,
        }
        return sign_grant(SiteGrant(**{**values, **changes}), self.site_keys[site])

    def question(self, site: SiteId, round_number: int = 1, now: datetime | None = None, **changes: Any) -> Question:
        return Question(self.study, self.study_digest, site, round_number, now or self.now, **changes)
