"""Each hospital's cohort of patients: what was approved is what was used, and it was said each time.

The grants are those in the consent documents of the bundle, signed by their hospitals. Who was in a cohort nobody can
see here; that it was committed to, and under which question, is on record.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

from cohortium_messages.events import ConsentSnapshot
from cohortium_messages.governance import SiteGrant
from cohortium_messages.ids import RunId, SiteId
from cohortium_messages.papers import StudyPapers
from cohortium_protocol.documents import grant_digest
from cohortium_verify.log import Entry
from cohortium_verify.report import Check, Failure
from cohortium_verify.rules import Said, Window, said, verdict

NAME = "patients' cohorts"
Place = tuple[SiteId, RunId]


def check_cohorts(papers: StudyPapers | None, entries: Sequence[Entry], windows: Mapping[bytes, Window]) -> Check:
    """Every cohort says what its grant froze, and asks with the same question; and whose rows are in a run that was
    permitted on such a grant, by the site's own word or that of a strict session which it joined, said for which
    cohort, under a grant no older than the run's first one.

    How many a cohort holds is the hospital's word; bands are not compared, nor is there one cohort to each window.
    """
    told = list(said(entries, ConsentSnapshot))
    grants = {} if papers is None else {grant_digest(grant): grant for grant in papers.grants}
    frozen = _frozen(grants, windows)
    failures = [failure for one in told for failure in _against_its_grant(one, grants, frozen)]
    failures += _unsaid(told, grants, frozen, windows)
    sites = {one.message.site_id for one in told}
    by_rows = sorted({one.message.site_id for one in told if one.message.unit == "row"})
    notes = [f"site {site_id} counts rows, not persons: its table does not name them" for site_id in by_rows]
    unasked = sorted({one.message.site_id for one in told if one.message.source == "none"} - set(by_rows))
    notes += [f"site {site_id} has no consent source: its terms do not ask for one" for site_id in unasked]
    fact = f"{len(told)} cohorts of {len(sites)} hospitals, as they were approved" if told else "no cohort was taken"
    return verdict(NAME, fact, failures, notes)


def _frozen(grants: Mapping[bytes, SiteGrant], windows: Mapping[bytes, Window]) -> dict[Place, datetime]:
    """Which sites were let into which runs on a grant with a cohort, and when the first such grant began."""
    found: dict[Place, datetime] = {}
    for window in windows.values():
        for grounds in window.authorised:
            for permit in grounds.message.permits:
                grant = grants.get(permit.grant_digest or b"")
                if grant is not None and grant.cohort is not None:
                    place = (permit.site_id, grounds.message.run_id)
                    found[place] = min(grant.not_before, found.get(place, grant.not_before))
    return found


def _against_its_grant(
    one: Said[ConsentSnapshot], grants: Mapping[bytes, SiteGrant], frozen: Mapping[Place, datetime]
) -> Iterator[Failure]:
    message, grant = one.message, grants.get(one.message.grant_digest)
    where = f"site {message.site_id} in run {message.run_id}"
    cohort = None if grant is None else grant.cohort
    if grant is None and (message.site_id, message.run_id) in frozen:
        yield Failure(f"{where} took a cohort under a grant that is not in consent.json", one.index)
    if grant is None or cohort is None:  # a trial's, or from before grants froze one
        return
    if grant.site_id != message.site_id:
        yield Failure(f"{where} took a cohort under another hospital's grant", one.index)
    elif message.approved_root != cohort.root:
        yield Failure(f"{where} held its cohort against another one than its grant froze", one.index)
    elif (message.query_digest, message.source, message.unit) != (cohort.query_digest, cohort.source, cohort.unit):
        yield Failure(f"{where} asked for its cohort in another way than was approved", one.index)


def _unsaid(
    told: Sequence[Said[ConsentSnapshot]],
    grants: Mapping[bytes, SiteGrant],
    frozen: Mapping[Place, datetime],
    windows: Mapping[bytes, Window],
) -> Iterator[Failure]:
    """Rows used under a grant with a cohort, in runs for which the hospital said no cohort that a grant froze.
    Statistics are passed over: those of a private study read no row."""
    known: set[Place] = set()
    for one in told:
        place, grant = (one.message.site_id, one.message.run_id), grants.get(one.message.grant_digest)
        # An older grant than the run's was of another approval; a newer one may be given while the site works.
        if grant is not None and grant.cohort is not None and grant.not_before >= frozen.get(place, grant.not_before):
            known.add(place)
    for window in windows.values():
        for grounds in window.authorised[:1]:
            if grounds.message.purpose == "statistics":
                continue
            permits = {permit.site_id: permit.grant_digest or b"" for permit in grounds.message.permits}
            for site_id, index, deed in _users(window):
                place, grant = (site_id, grounds.message.run_id), grants.get(permits.get(site_id, b""))
                if grant is not None and grant.cohort is not None and place not in known:
                    text = f"site {site_id} {deed} in run {place[1]} and said nothing of its cohort"
                    yield Failure(text, index)


def _users(window: Window) -> Iterator[tuple[SiteId, int, str]]:
    """Whose rows were used: who uploaded, and who took the task of a strict session in which sums were opened. Who did
    not even say that may have lost its events: "sites' own checks" notes it."""
    for upload in window.uploads:
        yield upload.message.site_id, upload.index, "uploaded"
    takers = {taken.message.site_id for taken in window.taken}
    for session in window.summed:
        if session.message.sums:
            for site_id in session.message.sites:
                if site_id in takers:
                    yield site_id, session.index, "was in a strict session"
