"""Each hospital's cohort of patients: what was approved is what was used, and it was said each time.

The grants are those in the consent documents of the bundle, signed by their hospitals. Who was in a cohort nobody can
see here; that it was committed to, and under which question, is on record.
"""

from collections.abc import Iterator, Mapping, Sequence

from cohortium_messages.events import ConsentSnapshot
from cohortium_messages.governance import SiteGrant
from cohortium_messages.ids import RunId, SiteId
from cohortium_messages.papers import StudyPapers
from cohortium_protocol.documents import grant_digest
from cohortium_verify.log import Entry
from cohortium_verify.report import Check, Failure
from cohortium_verify.rules import Said, Window, said, verdict

NAME = "patients' cohorts"


def check_cohorts(papers: StudyPapers | None, entries: Sequence[Entry], windows: Mapping[bytes, Window]) -> Check:
    """Every cohort is the one that its grant froze, or as much of it as the study allows, asked for with the same
    question; and who uploaded under such a grant said for which cohort."""
    told = list(said(entries, ConsentSnapshot))
    grants = {} if papers is None else {grant_digest(grant): grant for grant in papers.grants}
    failures = [failure for one in told for failure in _against_its_grant(one, grants.get(one.message.grant_digest))]
    failures += _unsaid({(one.message.site_id, one.message.run_id) for one in told}, grants, windows)
    sites = {one.message.site_id for one in told}
    by_rows = sorted({one.message.site_id for one in told if one.message.unit == "row"})
    notes = [f"site {site_id} counts rows, not persons: its table does not name them" for site_id in by_rows]
    unasked = sorted({one.message.site_id for one in told if one.message.source == "none"} - set(by_rows))
    notes += [f"site {site_id} has no consent source: its terms do not ask for one" for site_id in unasked]
    fact = f"{len(told)} cohorts of {len(sites)} hospitals, as they were approved" if told else "no cohort was taken"
    return verdict(NAME, fact, failures, notes)


def _against_its_grant(one: Said[ConsentSnapshot], grant: SiteGrant | None) -> Iterator[Failure]:
    frozen = None if grant is None else grant.cohort
    if grant is None or frozen is None:  # a trial's; that grants are there at all, `consent documents` checks
        return
    message = one.message
    where = f"site {message.site_id} in run {message.run_id}"
    if grant.site_id != message.site_id:
        yield Failure(f"{where} took a cohort under another hospital's grant", one.index)
    elif message.approved_root != frozen.root:
        yield Failure(f"{where} held its cohort against another one than its grant froze", one.index)
    elif (message.query_digest, message.source, message.unit) != (frozen.query_digest, frozen.source, frozen.unit):
        yield Failure(f"{where} asked for its cohort in another way than was approved", one.index)


def _unsaid(
    told: set[tuple[SiteId, RunId]], grants: Mapping[bytes, SiteGrant], windows: Mapping[bytes, Window]
) -> Iterator[Failure]:
    """Uploads under a grant with a cohort, in runs for which the hospital said no cohort. Statistics are passed over:
    those of a private study read no row."""
    for window in windows.values():
        if any(grounds.message.purpose == "statistics" for grounds in window.authorised):
            continue
        permits = [permit for grounds in window.authorised for permit in grounds.message.permits]
        granted = {permit.site_id: grants.get(permit.grant_digest or b"") for permit in permits}
        frozen = {site_id for site_id, grant in granted.items() if grant is not None and grant.cohort is not None}
        for upload in window.uploads:
            site_id, run_id = upload.message.site_id, upload.message.run_id
            if site_id in frozen and (site_id, run_id) not in told:
                yield Failure(f"site {site_id} uploaded in run {run_id} and said nothing of its cohort", upload.index)
