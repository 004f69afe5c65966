"""Whether each permission was right: judged anew, at its moment, from the documents that people and hospitals signed.

The verdict on record is consent's word. Here the same policy is asked over the signed documents themselves, as the
hospitals' connectors do, so that a wrong verdict, a document that was changed, or one that is missing shows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, TypeVar

from cohortium_messages import events
from cohortium_messages.consent import Act, ConsentFile, Delegation, Record
from cohortium_messages.governance import GrantWithdrawn, Manifest, Permit, SiteGrant
from cohortium_messages.ids import RunId, SiteId, StudyId
from cohortium_messages.papers import StudyPapers
from cohortium_protocol.consent.authorise import Denied, Dossier, Permitted, Question, authorise, told
from cohortium_protocol.consent.files import acts_of, verify_file
from cohortium_protocol.consent.records import SKEW
from cohortium_protocol.consent.signing import act_digest
from cohortium_protocol.documents import GovernancePin, grant_digest, verify_grant, verify_withdrawal
from cohortium_protocol.errors import ProtocolError, RemoteFault
from cohortium_verify.log import Entry
from cohortium_verify.report import Check, Failure
from cohortium_verify.rules import WITHDRAWAL_GRACE, Said, Window, said, verdict

D = TypeVar("D", SiteGrant, GrantWithdrawn)
NAME: Final = "consent documents"
_STOPS: Final = ("reject", "suspend", "terminate")
MISSING: Final = "signed documents, and they are not in this bundle; fetch it again with `cohortium audit export`"
UNGROUNDED: Final = "was permitted without any document, in a study that asks for signed ones"


def check_consent(
    papers: StudyPapers | None,
    pin: GovernancePin,
    manifests: Sequence[Manifest],
    entries: Sequence[Entry],
    windows: Mapping[bytes, Window],
    *,
    governed: frozenset[bytes] = frozenset(),
) -> Check:
    """Every permit of every window follows from the documents. Which study versions ask for documents, the log says
    (`StudySubmitted`); `governed`: digests of those that are known to ask for them besides. Others are held to theirs
    where a permit or a grant names any."""
    submitted = list(said(entries, events.StudySubmitted))
    asked = [
        (grounds, permit) for window in windows.values() for grounds in window.authorised for permit in _yes(grounds)
    ]
    failures = [*_contradicted(submitted, governed), *_never_submitted(submitted, windows)]
    governed |= {one.message.study_digest for one in submitted if one.message.governance == "required"}
    if papers is None:
        failures += _without_papers(submitted, asked, governed)
        fact = "no permit rests on documents; hospitals' own grants are not in this bundle"
        return verdict(NAME, fact, failures, tuple(_unsaid(submitted, governed)))
    case = _Case.of(papers, pin, manifests, entries, governed)
    failures += case.wrong
    notes: list[str] = []
    for grounds, permit in asked:
        failures += case.judge(grounds, permit, notes)
    fact = (
        f"{len(asked)} permits judged anew from {len(papers.file.records)} documents with {len(acts_of(papers.file))} "
        f"signatures, {len(papers.grants)} grants and {len(papers.withdrawals)} withdrawals"
    )
    return verdict(NAME, fact, failures, notes)


def _contradicted(submitted: Sequence[Said[events.StudySubmitted]], governed: frozenset[bytes]) -> Iterator[Failure]:
    """A version asks for documents or it does not: its digest covers that, so of two words one is a lie."""
    required = governed | {one.message.study_digest for one in submitted if one.message.governance == "required"}
    for one in submitted:
        if one.message.governance == "trial" and one.message.study_digest in required:
            yield Failure(
                "the study is said to be a trial, and this version of it asks for signed documents", one.index
            )


def _never_submitted(
    submitted: Sequence[Said[events.StudySubmitted]], windows: Mapping[bytes, Window]
) -> Iterator[Failure]:
    """Without that entry nobody knows which version a run is of, and whether it asks for documents."""
    known = {one.message.run_id for one in submitted}
    first: dict[RunId, int] = {}
    for window in windows.values():
        for grounds in window.authorised:
            if grounds.message.run_id not in known:
                first.setdefault(grounds.message.run_id, grounds.index)
    for run_id, index in first.items():
        yield Failure(f"run {run_id} has a window, and its study was never put on record", index)


def _without_papers(
    submitted: Sequence[Said[events.StudySubmitted]],
    asked: Sequence[tuple[Said[events.WindowAuthorised], Permit]],
    governed: frozenset[bytes],
) -> Iterator[Failure]:
    """What stands against a bundle that has no documents."""
    bound = {one.message.run_id: one for one in submitted if one.message.study_digest in governed}
    for one in bound.values():
        yield Failure(f"run {one.message.run_id} is of a study that asks for {MISSING}", one.index)
    for grounds, permit in asked:
        if permit.permit_digest:
            yield Failure(f"site {permit.site_id} was permitted on {MISSING}", grounds.index)
        elif grounds.message.run_id in bound:
            yield Failure(f"site {permit.site_id} {UNGROUNDED}", grounds.index)


def _unsaid(submitted: Sequence[Said[events.StudySubmitted]], governed: frozenset[bytes]) -> Iterator[str]:
    """Logs from before the field; the study file beside the bundle may say it."""
    for one in submitted:
        if one.message.governance is None and one.message.study_digest not in governed:
            yield f"entry {one.index} is from before logs said whether a study asks for signed documents"


def _yes(grounds: Said[events.WindowAuthorised]) -> Iterator[Permit]:
    return (permit for permit in grounds.message.permits if permit.permitted)


@dataclass(slots=True)
class _Case:
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
    ) -> "_Case":
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

    def judge(self, grounds: Said[events.WindowAuthorised], permit: Permit, notes: list[str]) -> Iterator[Failure]:
        """What stands against one permit."""
        at, site = grounds.entry.envelope.time, permit.site_id
        grant = self.grants.get(permit.grant_digest or b"")
        digest = self.digests.get(grounds.message.run_id)
        if grant is None or site not in self.sites:
            yield Failure(f"site {site} was permitted on a grant that is not in consent.json", grounds.index)
            return
        if digest is None:
            digest = grant.study_digest
        yield from (Failure(text, grounds.index) for text in self._by_grant(grant, digest, grounds, site))
        if grant.basis is None and permit.permit_digest is None and digest not in self.governed:
            return
        question = Question(self.study_id, digest, site, grounds.message.round, at)
        answer = authorise(question, grant, permit.grant_digest or b"", self._dossier(at))
        if isinstance(answer, Permitted) and answer.digest == permit.permit_digest:
            return
        # Consent was asked a moment before the window was authorised: what ended, or was replaced, in between is no
        # fault of its.
        before, given = at - WITHDRAWAL_GRACE, permit.grant_digest or b""
        earlier = Question(self.study_id, digest, site, grounds.message.round, before)
        dossiers = (self._dossier(before), self._dossier(before, early=timedelta()))
        answers = [authorise(earlier, grant, given, dossier) for dossier in dossiers]
        if any(isinstance(one, Permitted) and one.digest == permit.permit_digest for one in answers):
            notes.append(f"entry {grounds.index} permits site {site} within a minute of the end of its documents")
        elif isinstance(answer, Denied) and all(isinstance(one, Denied) for one in answers):
            reasons = "; ".join(f"{one.code}: {told(one)}" for one in answer.reasons)
            yield Failure(f"site {site} was permitted, and the documents deny it: {reasons}", grounds.index)
        elif permit.permit_digest is None:
            yield Failure(f"site {site} {UNGROUNDED}", grounds.index)
        else:
            yield Failure(f"the permit of site {site} rests on other documents than consent.json holds", grounds.index)

    def _by_grant(
        self, grant: SiteGrant, digest: bytes, grounds: Said[events.WindowAuthorised], site: SiteId
    ) -> Iterator[str]:
        at = grounds.entry.envelope.time
        if (grant.study_id, grant.study_digest, grant.site_id) != (self.study_id, digest, site):
            yield f"site {site} was permitted on a grant for another study version or site"
        if not grant.not_before - WITHDRAWAL_GRACE <= at < grant.not_after + WITHDRAWAL_GRACE:
            yield f"site {site} was permitted outside the time of the grant that it signed"
        if grounds.message.round > grant.max_rounds:
            yield f"site {site} was permitted in round {grounds.message.round}, and granted {grant.max_rounds}"
        for left in self.withdrawals:
            same = (left.site_id, left.study_digest) == (site, digest)
            if same and grant.not_before < left.at and left.at + WITHDRAWAL_GRACE <= at:
                yield f"site {site} was permitted after it withdrew, at {left.at.isoformat(timespec='seconds')}"

    def _dossier(self, at: datetime, early: timedelta = WITHDRAWAL_GRACE) -> Dossier:
        """The documents as they stood at a moment, with the signatures that were known then. An act counts from when
        the log tells of it; one that only another log knows, from its own date. Clocks and the way to the log may
        differ by a minute: what permits counts a little early, what stops a little late."""
        counted = [place for place, act in enumerate(acts_of(self.file)) if self._counts(act, at, early)]
        lent = [
            -1 - place
            for place, one in enumerate(self.file.records)
            if isinstance(one.document, Delegation) and one.document.not_before <= at < one.document.not_after
        ]
        key = frozenset((*counted, *lent))
        if key not in self._judged:
            known = set(counted)
            self._judged[key] = Dossier.judge(_only(self.file, known), self.pin, self.sites, at)
        return self._judged[key]

    def _counts(self, act: Act, at: datetime, early: timedelta) -> bool:
        moment = self.recorded.get(act_digest(act), act.at)
        if act.deed in _STOPS:
            return moment + WITHDRAWAL_GRACE <= at
        return moment <= at + early and act.at <= at + SKEW


def _only(file: ConsentFile, places: set[int]) -> ConsentFile:
    """The file with the acts at these places, counted as `acts_of` does."""
    count = 0
    records: list[Record] = []
    for record in file.records:
        acts = tuple(act for number, act in enumerate(record.acts, count) if number in places)
        count += len(record.acts)
        records.append(record.model_copy(update={"acts": acts}))
    ended = tuple(act for number, act in enumerate(file.ended_cards, count) if number in places)
    return file.model_copy(update={"records": tuple(records), "ended_cards": ended})
