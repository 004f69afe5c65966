"""Consent files as sets: what somebody sent is added to what is known, and nothing is ever taken away."""

from datetime import datetime

from cohortium_messages.consent import MOST_ACTS, Act, ConsentFile, Deed, GrantBasis, PersonCard, Record
from cohortium_messages.ids import StudyId
from cohortium_protocol.consent.rules import replaces, study_of
from cohortium_protocol.consent.signing import act_digest, card_digest, record_digest, sign_act, verify_act
from cohortium_protocol.errors import DocumentRefused
from cohortium_protocol.signing import IdentityKey

MOST_SIGNATURES = 32


def verify_file(file: ConsentFile) -> None:
    """Every act is signed by the key it names, over the record it stands with, or over a card.

    Raises `BadSignature`, or `DocumentRefused` for an act that stands with another record than it names.
    """
    for record in file.records:
        digest = record_digest(record.document)
        for act in record.acts:
            if act.record != digest:
                raise DocumentRefused("an act stands with another record than the one it signs")
            verify_act(act)
    for act in file.ended_cards:
        if act.deed != "terminate":
            raise DocumentRefused("a card can be ended, and nothing else")
        verify_act(act)


def sign_documents(file: ConsentFile, deed: Deed, name: str, at: datetime, key: IdentityKey) -> ConsentFile:
    """The file with one person's signature under every document in it."""
    records = tuple(
        one.model_copy(update={"acts": (*one.acts, sign_act(record_digest(one.document), deed, name, at, key))})
        for one in file.records
    )
    return file.model_copy(update={"records": records})


def merge(known: ConsentFile, added: ConsentFile) -> ConsentFile:
    """Both together, each card, record and act once. Raises `DocumentRefused` for a record with too many acts."""
    people: dict[bytes, PersonCard] = {}
    for card in (*known.people, *added.people):
        digest = card_digest(card)
        people[digest] = _joined(people[digest], card) if digest in people else card
    records: dict[bytes, Record] = {}
    for record in (*known.records, *added.records):
        digest = record_digest(record.document)
        acts = {act_digest(act): act for act in (*(records[digest].acts if digest in records else ()), *record.acts)}
        if len(acts) > MOST_ACTS:
            raise DocumentRefused(f"a record has more than {MOST_ACTS} acts; write a new version")
        records[digest] = Record(document=record.document, acts=tuple(acts.values()))
    ended: dict[bytes, Act] = {act_digest(act): act for act in (*known.ended_cards, *added.ended_cards)}
    return ConsentFile(
        people=tuple(people.values()), ended_cards=tuple(ended.values()), records=tuple(records.values())
    )


def _joined(one: PersonCard, other: PersonCard) -> PersonCard:
    signatures = {signature.key: signature for signature in (*one.signatures, *other.signatures)}
    return one.model_copy(update={"signatures": tuple(signatures.values())[:MOST_SIGNATURES]})


def about(file: ConsentFile, digests: frozenset[bytes]) -> ConsentFile:
    """The part of a file that concerns these records: with the cards of whoever signed them, and of those who lend them
    their roles."""
    records = tuple(record for record in file.records if record_digest(record.document) in digests)
    lent = tuple(record for record in file.records if record.document.kind == "delegation")
    keys = {act.key for record in (*records, *lent) for act in record.acts}
    keys |= {key for record in lent for key in (record.document.from_key, record.document.to_key)}  # type: ignore[union-attr]
    ended = tuple(act for act in file.ended_cards)
    keys |= {act.key for act in ended}
    people = tuple(card for card in file.people if card.key in keys)
    return ConsentFile(
        people=people, ended_cards=ended, records=(*records, *(one for one in lent if one not in records))
    )


def of_study(file: ConsentFile, study_id: StudyId) -> ConsentFile:
    """The part of a file that a study's permissions rest on: its own documents, and those that hospitals' approvals of
    it name."""
    mine = frozenset(record_digest(one.document) for one in file.records if study_of(one.document) == study_id)
    return about(file, mine | named_by(file, study_id))


def named_by(file: ConsentFile, study_id: StudyId) -> frozenset[bytes]:
    """The documents that hospitals' approvals of a study name, and those that say that they take the place of one."""
    named: set[bytes] = set()
    for record in file.records:
        basis = record.document
        if isinstance(basis, GrantBasis) and basis.study_id == study_id:
            named.update((basis.study_version, *basis.agreements, basis.ethics, basis.terms))
    while newer := {record_digest(one.document) for one in file.records if replaces(one.document) in named} - named:
        named |= newer
    return frozenset(named)


def acts_of(file: ConsentFile) -> tuple[Act, ...]:
    """Every act of a file, under records and over cards."""
    return (*(act for record in file.records for act in record.acts), *file.ended_cards)
