"""The signed documents of a bundle: every signature checked, and how they stood at any moment."""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, TypeVar

from cohortium_messages import events
from cohortium_messages.consent import Act, ConsentFile, Delegation, Record
from cohortium_messages.governance import GrantWithdrawn, Manifest, SiteGrant
from cohortium_messages.ids import RunId, SiteId, StudyId
from cohortium_messages.papers import StudyPapers
from cohortium_protocol.consent.authorise import Dossier
from cohortium_protocol.consent.files import acts_of, verify_file
from cohortium_protocol.consent.records import SKEW
from cohortium_protocol.consent.signing import act_digest
from cohortium_protocol.documents import GovernancePin, grant_digest, verify_grant, verify_withdrawal
from cohortium_protocol.errors import ProtocolError, RemoteFault
from cohortium_verify.log import Entry
from cohortium_verify.report import Failure
from cohortium_verify.rules import WITHDRAWAL_GRACE, said

D = TypeVar("D", SiteGrant, GrantWithdrawn)
_STOPS: Final = ("reject", "suspend", "terminate")


@dataclass(slots=True)
class Case:
    """The papers of one study, of which every signature was checked; `wrong` is what did not hold."""

    study_id: StudyId
    file: ConsentFile
    pin: GovernancePin
    sites: Mapping[SiteId, bytes]
    grants: Mapping[bytes, SiteGrant]
    withdrawals: Sequence[GrantWithdrawn]
    digests: Mapping[RunId, bytes]
    governed: frozenset[bytes]
    recorded: Mapping[bytes, datetime]
    wrong: list[Failure] = field(default_factory=list)
    _judged: dict[frozenset[int], Dossier] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        papers: StudyPapers,
        pin: GovernancePin,
        manifests: Sequence[Manifest],
        entries: Sequence[Entry],
        governed: frozenset[bytes],
    ) -> "Case":
        sites = {member.site_id: member.identity_pk for manifest in manifests for member in manifest.members}
        versions = {one.document.study_digest for one in papers.file.records if one.document.kind == "study_version"}
        case = cls(
            study_id=manifests[-1].study_id,
            file=papers.file,
            pin=pin,
            sites=sites,
            grants={grant_digest(grant): grant for grant in papers.grants},
            withdrawals=papers.withdrawals,
            digests={one.message.run_id: one.message.study_digest for one in said(entries, events.StudySubmitted)},
            governed=governed | versions,
            recorded={one.message.act: one.entry.envelope.time for one in said(entries, events.ConsentActRecorded)},
        )
        case.wrong += case._check_signatures(papers)
        case.wrong += case._check_record(entries)
        return case

    def _check_signatures(self, papers: StudyPapers) -> Iterator[Failure]:
        if papers.study_id != self.study_id:
            yield Failure(f"consent.json is of study {papers.study_id}, and the log of {self.study_id}")
        try:
            verify_file(papers.file)
        except RemoteFault as fault:
            yield Failure(f"consent.json holds a signature that does not hold ({fault})")
        for grant in papers.grants:
            if not self._holds(verify_grant, grant):
                yield Failure(f"consent.json holds a grant of site {grant.site_id} that the site did not sign")
        for left in papers.withdrawals:
            if not self._holds(verify_withdrawal, left):
                yield Failure(f"consent.json holds a withdrawal of site {left.site_id} that the site did not sign")

    def _holds(self, verify: Callable[[D, bytes], None], signed: D) -> bool:
        """A site that never was a member has no key to hold its signature against, and no permit either."""
        key = self.sites.get(signed.site_id)
        try:
            if key is not None:
                verify(signed, key)
        except ProtocolError:
            return False
        return True

    def _check_record(self, entries: Sequence[Entry]) -> Iterator[Failure]:
        """Whatever act the log tells of is here; what is here and the log does not know, counts by its own date."""
        here = {act_digest(act) for act in acts_of(self.file)}
        for one in said(entries, events.ConsentActRecorded):
            if one.message.act not in here:
                yield Failure(f"the signature {one.message.deed} on record is not among the documents", one.index)

    def dossier(self, at: datetime, early: timedelta = WITHDRAWAL_GRACE) -> Dossier:
        """The documents as they stood at a moment, with the signatures that were known then. An act counts from when
        the log tells of it; one that only another log knows, from its own date. Clocks and the way to the log may
        differ by a minute: what permits counts a little early, what stops a little late."""
        counted = self._known(at, early)
        lent = [
            -1 - place
            for place, one in enumerate(self.file.records)
            if isinstance(one.document, Delegation) and one.document.not_before <= at < one.document.not_after
        ]
        key = frozenset((*counted, *lent))
        if key not in self._judged:
            self._judged[key] = Dossier.judge(_only(self.file, counted), self.pin, self.sites, at)
        return self._judged[key]

    def known(self, at: datetime, early: timedelta = WITHDRAWAL_GRACE) -> ConsentFile:
        """The documents with the signatures that were known at a moment, as `dossier` counts them."""
        return _only(self.file, self._known(at, early))

    def _known(self, at: datetime, early: timedelta) -> frozenset[int]:
        return frozenset(place for place, act in enumerate(acts_of(self.file)) if self._counts(act, at, early))

    def _counts(self, act: Act, at: datetime, early: timedelta) -> bool:
        moment = self.recorded.get(act_digest(act), act.at)
        if act.deed in _STOPS:
            return moment + WITHDRAWAL_GRACE <= at
        return moment <= at + early and act.at <= at + SKEW


def _only(file: ConsentFile, places: Set[int]) -> ConsentFile:
    """The file with the acts at these places, counted as `acts_of` does."""
    count = 0
    records: list[Record] = []
    for record in file.records:
        acts = tuple(act for number, act in enumerate(record.acts, count) if number in places)
        count += len(record.acts)
        records.append(record.model_copy(update={"acts": acts}))
    ended = tuple(act for number, act in enumerate(file.ended_cards, count) if number in places)
    return file.model_copy(update={"records": tuple(records), "ended_cards": ended})
