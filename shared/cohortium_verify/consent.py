"""Whether each permission was right: judged anew, at its moment, from the documents that people and hospitals signed.

The verdict on record is consent's word. Here the same policy is asked over the signed documents themselves, as the
hospitals' connectors do, so that a wrong verdict, a document that was changed, or one that is missing shows.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Final

from cohortium_messages import events
from cohortium_messages.governance import Manifest, Permit, SiteGrant
from cohortium_messages.ids import RunId, SiteId
from cohortium_messages.papers import StudyPapers
from cohortium_protocol.consent.authorise import Denied, Permitted, Question, authorise, told
from cohortium_protocol.consent.files import acts_of
from cohortium_protocol.documents import GovernancePin
from cohortium_verify.case import Case
from cohortium_verify.decided import wrong_decisions
from cohortium_verify.log import Entry
from cohortium_verify.report import Check, Failure
from cohortium_verify.rules import WITHDRAWAL_GRACE, Said, Window, said, verdict

NAME: Final = "consent documents"
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
    """Every permit of every window follows from the documents, and so does what was decided about who left.

    Which study versions ask for documents, the log says (`StudySubmitted`); `governed`: digests of those that are known
    to ask for them besides. Others are held to theirs where a permit or a grant names any."""
    submitted = list(said(entries, events.StudySubmitted))
    asked = [
        (grounds, permit) for window in windows.values() for grounds in window.authorised for permit in _yes(grounds)
    ]
    failures = [
        *_contradicted(submitted, governed),
        *_left_out(submitted),
        *_never_submitted(submitted, windows),
    ]
    governed |= {one.message.study_digest for one in submitted if one.message.governance == "required"}
    if papers is None:
        failures += _without_papers(submitted, asked, governed)
        fact = "no permit rests on documents; hospitals' own grants are not in this bundle"
        return verdict(NAME, fact, failures, tuple(_unsaid(submitted, governed)))
    case = Case.of(papers, pin, manifests, entries, governed)
    failures += case.wrong
    notes = list(_unsaid(submitted, case.governed))
    for grounds, permit in asked:
        failures += _judge(case, grounds, permit, notes)
    failures += wrong_decisions(case, entries)
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


def _left_out(submitted: Sequence[Said[events.StudySubmitted]]) -> Iterator[Failure]:
    """A scheduler that has said it once is no older one: from then on it says it each time."""
    first = next((one.index for one in submitted if one.message.governance is not None), None)
    for one in submitted:
        if first is not None and one.index > first and one.message.governance is None:
            text = f"whether the study asks for signed documents is left out, and the log says it since entry {first}"
            yield Failure(text, one.index)


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


def _judge(case: Case, grounds: Said[events.WindowAuthorised], permit: Permit, notes: list[str]) -> Iterator[Failure]:
    """What stands against one permit."""
    at, site = grounds.entry.envelope.time, permit.site_id
    grant = case.grants.get(permit.grant_digest or b"")
    digest = case.digests.get(grounds.message.run_id)
    if grant is None or site not in case.sites:
        yield Failure(f"site {site} was permitted on a grant that is not in consent.json", grounds.index)
        return
    if digest is None:
        digest = grant.study_digest
    yield from (Failure(text, grounds.index) for text in _by_grant(case, grant, digest, grounds, site))
    if grant.basis is None and permit.permit_digest is None and digest not in case.governed:
        return
    question = Question(case.study_id, digest, site, grounds.message.round, at)
    answer = authorise(question, grant, permit.grant_digest or b"", case.dossier(at))
    if isinstance(answer, Permitted) and answer.digest == permit.permit_digest:
        return
    # Consent was asked a moment before the window was authorised: what ended, or was replaced, in between is no
    # fault of its.
    before, given = at - WITHDRAWAL_GRACE, permit.grant_digest or b""
    earlier = Question(case.study_id, digest, site, grounds.message.round, before)
    dossiers = (case.dossier(before), case.dossier(before, early=timedelta()))
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
    case: Case, grant: SiteGrant, digest: bytes, grounds: Said[events.WindowAuthorised], site: SiteId
) -> Iterator[str]:
    at = grounds.entry.envelope.time
    if (grant.study_id, grant.study_digest, grant.site_id) != (case.study_id, digest, site):
        yield f"site {site} was permitted on a grant for another study version or site"
    if not grant.not_before - WITHDRAWAL_GRACE <= at < grant.not_after + WITHDRAWAL_GRACE:
        yield f"site {site} was permitted outside the time of the grant that it signed"
    if grounds.message.round > grant.max_rounds:
        yield f"site {site} was permitted in round {grounds.message.round}, and granted {grant.max_rounds}"
    for left in case.withdrawals:
        same = (left.site_id, left.study_digest) == (site, digest)
        if same and grant.not_before < left.at and left.at + WITHDRAWAL_GRACE <= at:
            yield f"site {site} was permitted after it withdrew, at {left.at.isoformat(timespec='seconds')}"
