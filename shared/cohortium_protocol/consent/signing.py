"""Digests and signatures of the institution plane.

A record's digest covers its kind and every field, so an act that names it is bound to exactly this version.
"""

from collections.abc import Mapping
from datetime import datetime

from cohortium_messages.consent import MEANINGS, Act, Deed, Document, PersonCard, RootSignature
from cohortium_messages.ids import SiteId, Wire
from cohortium_protocol import labels
from cohortium_protocol.documents import UNSIGNED, GovernancePin, canonical
from cohortium_protocol.encoding import pae, sha256
from cohortium_protocol.errors import BadSignature, DocumentRefused, TooFewSignatures
from cohortium_protocol.signing import IdentityKey, check_public_key, verify


def record_digest(document: Document) -> bytes:
    """SHA-256 over the label and the RFC 8785 JSON of a document: its name in acts, grants and logs."""
    return sha256(pae(labels.CONSENT_RECORD, canonical(document)))


def card_bytes(card: PersonCard) -> bytes:
    """What a site, or governance officers, sign of a person's card."""
    return pae(labels.PERSON, canonical(card, "signatures"))


def card_digest(card: PersonCard) -> bytes:
    """SHA-256 of `card_bytes`: the card's name, whoever signed it."""
    return sha256(card_bytes(card))


def sign_card(card: PersonCard, key: IdentityKey) -> PersonCard:
    """The card with one more signature; an earlier one of the same key is replaced."""
    others = tuple(one for one in card.signatures if one.key != key.public)
    mine = RootSignature(key=key.public, sig=key.sign(card_bytes(card)))
    return card.model_copy(update={"signatures": (*others, mine)})


def verify_card(card: PersonCard, pin: GovernancePin, sites: Mapping[SiteId, bytes]) -> None:
    """The site's identity key vouches for its own people, enough pinned officers for all others.

    Raises `WeakKey`, `TooFewSignatures`, or `DocumentRefused` for a site whose key is not known here.
    """
    check_public_key(card.key)
    if card.site_id is None:
        _count(card, pin.keys, max(1, pin.threshold))
        return
    site_key = sites.get(card.site_id)
    if site_key is None:
        raise DocumentRefused(f"the card of {card.person} is of a site whose key is not known")
    _count(card, frozenset({site_key}), 1)


def _count(card: PersonCard, trusted: frozenset[bytes], needed: int) -> None:
    good = {one.key for one in card.signatures if one.key in trusted and _signed(one, card_bytes(card))}
    if len(good) < needed:
        raise TooFewSignatures(f"{len(good)} of {needed} trusted keys vouch for {card.person}")


def _signed(signature: RootSignature, message: bytes) -> bool:
    try:
        verify(signature.key, message, signature.sig)
    except BadSignature:
        return False
    return True


def act_bytes(act: Act) -> bytes:
    """What a person signs: record, deed, key, printed name, meaning and moment (21 CFR 11.50)."""
    return pae(labels.CONSENT_ACT, canonical(act, "sig"))


def act_digest(act: Act) -> bytes:
    """SHA-256 of `act_bytes`: the same words signed twice are one act."""
    return sha256(act_bytes(act))


def sign_act(record: bytes, deed: Deed, name: str, at: datetime, key: IdentityKey) -> Act:
    """One person's signature under a record (or, to end it, a card) with this digest."""
    act = Act(record=record, deed=deed, key=key.public, name=name, meaning=MEANINGS[deed], at=at, sig=UNSIGNED)
    return act.model_copy(update={"sig": key.sign(act_bytes(act))})


def verify_act(act: Act) -> None:
    """The key that the act names made its signature; whose key it is, the directory says. Raises `BadSignature`."""
    verify(act.key, act_bytes(act), act.sig)


def permit_digest(study_digest: bytes, site_id: SiteId, round_number: int, evidence: Wire) -> bytes:
    """The name of one permission: study version, site, round, and what it rests on."""
    return sha256(pae(labels.PERMIT, study_digest, site_id.encode(), str(round_number).encode(), canonical(evidence)))
