"""Who signed: from a key and a moment to a person, the roles that person had then, and for whom they may sign."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from cohortium_messages.consent import Act, Delegation, PersonCard, Role
from cohortium_messages.ids import SiteId, StudyId
from cohortium_protocol.consent.signing import card_digest, verify_card
from cohortium_protocol.documents import GovernancePin
from cohortium_protocol.errors import RemoteFault


@dataclass(frozen=True, slots=True)
class Capacity:
    """A role, and the hospital it is held at (None: of the federation)."""

    role: Role
    site_id: SiteId | None


@dataclass(frozen=True, slots=True)
class Loan:
    """A capacity that somebody else lent; whoever uses it signs as both people. `study_id` None: in every study."""

    capacity: Capacity
    lender: frozenset[str]
    study_id: StudyId | None


@dataclass(frozen=True, slots=True)
class Signer:
    """A person at one moment. `names`: what tells people apart: the id at the institution, and the key."""

    key: bytes
    names: frozenset[str]
    own: frozenset[Capacity]
    lent: tuple[Loan, ...] = ()


@dataclass(frozen=True, slots=True)
class Hand:
    """In which capacity a person signed, and every person that this signature stands for."""

    names: frozenset[str]
    capacity: Capacity

    def is_one_of(self, others: Iterable["Hand"]) -> bool:
        """Whether any person behind this signature is behind one of the others."""
        return any(self.names & other.names for other in others)


@dataclass(frozen=True, slots=True)
class Directory:
    """Verified cards, the moments at which some were ended, delegations in force, and the pinned officers."""

    officers: frozenset[bytes]
    cards: tuple[PersonCard, ...] = ()
    ended: Mapping[bytes, datetime] = field(default_factory=dict)
    delegations: tuple[Delegation, ...] = ()

    @classmethod
    def of(
        cls, pin: GovernancePin, sites: Mapping[SiteId, bytes], cards: Sequence[PersonCard], ended: Iterable[Act] = ()
    ) -> "Directory":
        """From cards, of which only those count that somebody trusted vouches for (`sites`: hospitals' identity keys),
        and from verified acts that end cards. One person is enough to end one: its holder, an officer, or anybody with
        a role at the same hospital. Another person's act is ignored."""
        known = {card_digest(card): card for card in cards if _is_good(card, pin, sites)}
        bare = cls(pin.keys, tuple(known.values()))
        stops: dict[bytes, datetime] = {}
        for act in sorted(ended, key=lambda act: act.at):
            card = known.get(act.record)
            if card is None or act.deed != "terminate" or act.record in stops:
                continue
            if act.key == card.key or _may_end(bare.signer(act.key, act.at), card):
                stops[act.record] = act.at
        return cls(pin.keys, bare.cards, stops)

    def with_delegations(self, delegations: Iterable[Delegation]) -> "Directory":
        """The same people, who may sign for each other as these documents (all of them active) say."""
        return Directory(self.officers, self.cards, self.ended, tuple(delegations))

    def signer(self, key: bytes, at: datetime) -> Signer:
        """The person behind a key at this moment. A key that nobody vouches for has no capacity at all."""
        own = {Capacity("officer", None)} if key in self.officers else set()
        names = {f"key/{key.hex()}"}
        for card in self._valid(key, at):
            own.add(Capacity(card.role, card.site_id))
            names.add(f"{card.site_id or '-'}/{card.person}")
        lent = [
            Loan(Capacity(one.role, one.site_id), self.signer_names(one.from_key, at), one.study_id)
            for one in self.delegations
            if one.to_key == key and one.not_before <= at < one.not_after and self._had(one, at)
        ]
        return Signer(key, frozenset(names), frozenset(own), tuple(lent))

    def signer_names(self, key: bytes, at: datetime) -> frozenset[str]:
        """All names of the person behind a key."""
        cards = self._valid(key, at)
        return frozenset({f"key/{key.hex()}", *(f"{card.site_id or '-'}/{card.person}" for card in cards)})

    def person(self, key: bytes) -> str:
        """An opaque id for logs: of the card, or of the officer's key."""
        card = next((card for card in self.cards if card.key == key), None)
        return card.person if card is not None else f"key-{key.hex()[:16]}"

    def _had(self, delegation: Delegation, at: datetime) -> bool:
        lender = Capacity(delegation.role, delegation.site_id)
        officer = delegation.from_key in self.officers and lender == Capacity("officer", None)
        return officer or any(
            Capacity(card.role, card.site_id) == lender for card in self._valid(delegation.from_key, at)
        )

    def _valid(self, key: bytes, at: datetime) -> list[PersonCard]:
        return [
            card
            for card in self.cards
            if card.key == key
            and card.not_before <= at < card.not_after
            and at < self.ended.get(card_digest(card), card.not_after)
        ]


def acting_as(
    signer: Signer, roles: frozenset[Role], sites: frozenset[SiteId], study_id: StudyId | None
) -> Hand | None:
    """The signature's capacity among `roles` (at one of `sites` for a hospital's role), the person's own before a lent
    one; None if the person has none."""
    for capacity in sorted(signer.own, key=lambda one: (one.role, one.site_id or "")):
        if _covers(capacity, roles, sites):
            return Hand(signer.names, capacity)
    for loan in signer.lent:
        if _covers(loan.capacity, roles, sites) and loan.study_id in (None, study_id):
            return Hand(signer.names | loan.lender, loan.capacity)
    return None


def _covers(capacity: Capacity, roles: frozenset[Role], sites: frozenset[SiteId]) -> bool:
    return capacity.role in roles and (capacity.site_id is None or capacity.site_id in sites)


def _is_good(card: PersonCard, pin: GovernancePin, sites: Mapping[SiteId, bytes]) -> bool:
    try:
        verify_card(card, pin, sites)
    except RemoteFault:
        return False
    return True


def _may_end(signer: Signer, card: PersonCard) -> bool:
    return any(
        one.role == "officer" or (card.site_id is not None and one.site_id == card.site_id) for one in signer.own
    )
