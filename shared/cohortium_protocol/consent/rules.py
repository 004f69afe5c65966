"""Who may do what with a document: one table, by kind (separation of duties, four eyes)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, assert_never

from cohortium_messages.consent import (
    Agreement,
    DataUseTerms,
    Delegation,
    Document,
    DocumentKind,
    EthicsApproval,
    GrantBasis,
    Role,
    StudyVersion,
    Withdrawal,
    WithdrawalEffect,
)
from cohortium_messages.ids import SiteId, StudyId
from cohortium_protocol.consent.people import Hand

SITE_PEOPLE: Final[frozenset[Role]] = frozenset({"site_admin", "site_approver"})


@dataclass(frozen=True, slots=True)
class Duties:
    """By kind: who may write a document, whose approvals count and how many distinct people it takes, of whom at least
    one has each of `each`: the role, at each hospital concerned for a hospital's role. `stoppers` may end it alone."""

    authors: frozenset[Role]
    approvers: frozenset[Role]
    people: int
    each: tuple[Role, ...] = ()
    stoppers: frozenset[Role] = frozenset({"officer"})


DUTIES: Final[Mapping[DocumentKind, Duties]] = {
    "agreement": Duties(
        authors=SITE_PEOPLE | {"officer"},
        approvers=frozenset({"site_approver", "officer"}),
        people=2,
        each=("officer", "site_approver"),
        stoppers=SITE_PEOPLE | {"officer"},
    ),
    "ethics": Duties(
        authors=SITE_PEOPLE | {"officer"},
        approvers=frozenset({"site_approver", "officer"}),
        people=2,
        each=("site_approver",),
        stoppers=SITE_PEOPLE | {"officer"},
    ),
    "terms": Duties(
        authors=SITE_PEOPLE,
        approvers=frozenset({"site_approver"}),
        people=2,
        each=("site_approver",),
        stoppers=SITE_PEOPLE,
    ),
    "study_version": Duties(
        authors=frozenset({"study_lead"}),
        approvers=frozenset({"officer", "reviewer"}),
        people=2,
        each=("officer",),
        stoppers=frozenset({"officer", "study_lead"}),
    ),
    "grant_basis": Duties(
        authors=SITE_PEOPLE,
        approvers=frozenset({"site_approver"}),
        people=2,
        each=("site_approver",),
        stoppers=SITE_PEOPLE,
    ),
    "delegation": Duties(
        authors=SITE_PEOPLE | {"officer", "study_lead", "reviewer"},
        approvers=SITE_PEOPLE | {"officer"},
        people=2,
        stoppers=SITE_PEOPLE | {"officer", "study_lead", "reviewer"},
    ),
    "withdrawal": Duties(  # stopping never needs a second person
        authors=SITE_PEOPLE | {"officer"},
        approvers=frozenset(),
        people=0,
        stoppers=frozenset(),
    ),
    "withdrawal_effect": Duties(  # models are the federation's: two people decide, one of them an officer
        authors=frozenset({"officer", "study_lead"}),
        approvers=frozenset({"officer"}),
        people=1,
        each=("officer",),
    ),
}
"""Nobody approves what they wrote. Tests hold the table to be total over the kinds of documents."""


@dataclass(frozen=True, slots=True)
class Rule:
    """The duties for one document: at which hospitals a hospital's role counts, in which study, and the one key that
    may write it (delegations: the person who lends)."""

    duties: Duties
    sites: frozenset[SiteId]
    study_id: StudyId | None = None
    author_key: bytes | None = None

    def satisfied(self, hands: tuple[Hand, ...]) -> bool:
        """Whether these approvals, all of distinct people and none the author's, are enough."""
        if len(hands) < self.duties.people:
            return False
        return all(self._has(role, hands) for role in self.duties.each)

    def _has(self, role: Role, hands: tuple[Hand, ...]) -> bool:
        if not role.startswith("site_"):
            return any(hand.capacity.role == role for hand in hands)
        return all(
            any(hand.capacity.role == role and hand.capacity.site_id == site for hand in hands) for site in self.sites
        )


def rule_of(document: Document) -> Rule:
    """The rule that a document's acts are held to."""
    duties = DUTIES[document.kind]
    match document:
        case Agreement(parties=parties):
            return Rule(duties, frozenset(parties))
        case EthicsApproval(site_id=site, study_id=study) | GrantBasis(site_id=site, study_id=study):
            return Rule(duties, frozenset({site}), study)
        case Withdrawal(site_id=site, study_id=study) | WithdrawalEffect(site_id=site, study_id=study):
            return Rule(duties, frozenset({site}), study)
        case DataUseTerms(site_id=site):
            return Rule(duties, frozenset({site}))
        case StudyVersion(study_id=study):
            return Rule(duties, frozenset(), study)
        case Delegation(site_id=site, from_key=key):
            return Rule(duties, frozenset() if site is None else frozenset({site}), None, key)
        case _:
            assert_never(document)


def takes_place_of(newer: Document, older: Document) -> bool:
    """Whether `newer`, which names `older` in `supersedes`, may take its place: of one kind, about the same thing. An
    agreement has every party of the older one, each of whose people sign it."""
    match newer, older:
        case Agreement(), Agreement():
            return set(older.parties) <= set(newer.parties)
        case Delegation() | Withdrawal() | WithdrawalEffect(), _:
            return False
        case _:
            about = (study_of(newer), sites_of(newer)) == (study_of(older), sites_of(older))
            return newer.kind == older.kind and about


def replaces(document: Document) -> bytes | None:
    """The digest of the document whose place this one takes, if it says so."""
    return getattr(document, "supersedes", None)


def sites_of(document: Document) -> frozenset[SiteId] | None:
    """The hospitals that hold a copy of a document; None for all members of its study, or all of the federation."""
    match document:
        case StudyVersion() | Delegation(site_id=None):
            return None
        case _:
            return rule_of(document).sites


def study_of(document: Document) -> StudyId | None:
    """The study whose log a document's acts go to; None for what belongs to no single study."""
    return rule_of(document).study_id
