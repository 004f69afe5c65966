"""What the events of a study must say together: no window without authorisation, no sum over others or over too few, no
model from nowhere. Each rule takes the verified entries and returns one check.

Events of different emitters meet in the log as they arrive, and so may two of one emitter after an outage. A rule that
needs an order takes the log's; where the log has it the other way round, one emitter's signed times may still tell it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Generic, TypeVar

from cohortium_messages import events
from cohortium_messages.events import AuditEvent
from cohortium_messages.governance import Manifest, Permit
from cohortium_messages.ids import RunId, SiteId
from cohortium_messages.withdrawals import SumSetAside
from cohortium_protocol.errors import ProtocolError
from cohortium_protocol.window import thresholds
from cohortium_verify.log import Entry
from cohortium_verify.report import Check, Failure, failed, passed

WITHDRAWAL_GRACE = timedelta(seconds=60)
"""A window authorised so soon after a grant's end may have been on its way when the hospital stopped."""

E = TypeVar("E", bound=AuditEvent)


@dataclass(frozen=True, slots=True)
class Said(Generic[E]):
    """An event and where it was said."""

    entry: Entry
    message: E

    @property
    def index(self) -> int:
        """Its place in the log."""
        return self.entry.index


def said(entries: Sequence[Entry], kind: type[E]) -> Iterator[Said[E]]:
    """Every event of this type, in the log's order."""
    for entry in entries:
        if isinstance(entry.message, kind):
            yield Said(entry, entry.message)


@dataclass(slots=True)
class Window:
    """All that the log says of one window."""

    authorised: list[Said[events.WindowAuthorised]] = field(default_factory=list)
    fixed: list[Said[events.CohortFixed]] = field(default_factory=list)
    opened: list[Said[events.AggregateOpened]] = field(default_factory=list)
    summed: list[Said[events.StrictSessionSummed]] = field(default_factory=list)
    shares: list[Said[events.SharesGiven]] = field(default_factory=list)
    uploads: list[Said[events.UploadSealed]] = field(default_factory=list)
    taken: list[Said[events.TaskTaken]] = field(default_factory=list)
    ended: list[Said[events.WindowEnded]] = field(default_factory=list)
    aside: list[Said[SumSetAside]] = field(default_factory=list)


def windows_of(entries: Sequence[Entry]) -> dict[bytes, Window]:
    """Every window that any event names, in the order of first mention."""
    found: dict[bytes, Window] = {}
    for entry in entries:
        window_id = getattr(entry.message, "window_id", None)
        if window_id is None:
            continue
        window = found.setdefault(window_id, Window())
        match entry.message:
            case events.WindowAuthorised() as message:
                window.authorised.append(Said(entry, message))
            case events.CohortFixed() as message:
                window.fixed.append(Said(entry, message))
            case events.AggregateOpened() as message:
                window.opened.append(Said(entry, message))
            case events.StrictSessionSummed() as message:
                window.summed.append(Said(entry, message))
            case events.SharesGiven() as message:
                window.shares.append(Said(entry, message))
            case events.UploadSealed() as message:
                window.uploads.append(Said(entry, message))
            case events.TaskTaken() as message:
                window.taken.append(Said(entry, message))
            case events.WindowEnded() as message:
                window.ended.append(Said(entry, message))
            case SumSetAside() as message:
                window.aside.append(Said(entry, message))
            case _:
                pass
    return found


def verdict(name: str, fact: str, failures: list[Failure], notes: Sequence[str] = ()) -> Check:
    """One check of what was found, failures in the log's order."""
    if failures:
        ordered = sorted(failures, key=lambda failure: -1 if failure.index is None else failure.index)
        return failed(name, *ordered, notes=tuple(notes))
    return passed(name, fact, tuple(notes))


def check_authorised(windows: dict[bytes, Window]) -> Check:
    """Every cohort was fixed after its window was authorised, and holds permitted sites only; no site took a task of
    it before, since a task shows the log's own proof of its authorisation."""
    failures: list[Failure] = []
    cohorts = 0
    for window_id, window in windows.items():
        begun = min((one.index for one in window.authorised), default=None)
        for taken in window.taken:
            if begun is None or taken.index < begun:
                text = f"site {taken.message.site_id} took a task of window {window_id.hex()}, which was not on record"
                failures.append(Failure(text, taken.index))
        for fixed in window.fixed:
            cohorts += 1
            if not window.authorised:
                text = f"the cohort of window {window_id.hex()} was fixed, and no authorisation is on record"
                failures.append(Failure(text, fixed.index))
                continue
            grounds = window.authorised[0]
            if grounds.index > fixed.index:
                text = f"the cohort of window {window_id.hex()} was fixed before it was authorised"
                failures.append(Failure(text, fixed.index))
            permitted = {permit.site_id for permit in grounds.message.permits if permit.permitted}
            strangers = sorted(set(fixed.message.sites) - permitted)
            if strangers:
                text = f"site {strangers[0]} is in the cohort of window {window_id.hex()} without a permit"
                failures.append(Failure(text, fixed.index))
    return verdict(
        "authorisation", f"{cohorts} cohorts, each after its authorisation, of permitted sites only", failures
    )


def check_grants(entries: Sequence[Entry], windows: dict[bytes, Window]) -> Check:
    """Every permit stands on a grant that was on record, had begun, had not ended and was not withdrawn."""
    granted: dict[tuple[SiteId, bytes], list[Said[events.GrantStarted]]] = {}
    for item in said(entries, events.GrantStarted):
        granted.setdefault((item.message.site_id, item.message.grant_digest), []).append(item)
    stopped = list(said(entries, events.GrantStopped))
    failures: list[Failure] = []
    notes: list[str] = []
    permits = 0
    for window in windows.values():
        for grounds in window.authorised:
            for permit in grounds.message.permits:
                if permit.permitted:
                    permits += 1
                    failures += _check_permit(permit, grounds, granted, stopped, notes)
    return verdict("grants", f"{permits} permits, each on a grant in force at that moment", failures, notes)


def _check_permit(
    permit: Permit,
    grounds: Said[events.WindowAuthorised],
    granted: dict[tuple[SiteId, bytes], list[Said[events.GrantStarted]]],
    stopped: Sequence[Said[events.GrantStopped]],
    notes: list[str],
) -> Iterator[Failure]:
    at = grounds.entry.envelope.time
    starts = granted.get((permit.site_id, permit.grant_digest or b""))
    if not starts:
        yield Failure(f"site {permit.site_id} was permitted on a grant that is not on record", grounds.index)
        return
    # One that rests on documents stops when one of them is suspended, and starts again when it is approved anew.
    grant = next((start for start in reversed(starts) if start.index < grounds.index), starts[0])
    if not grant.message.not_before <= at < grant.message.not_after:
        yield Failure(f"site {permit.site_id} was permitted outside the time of its grant", grounds.index)
    for stop in stopped:
        if stop.message.site_id != permit.site_id or stop.message.study_digest != grant.message.study_digest:
            continue
        if not grant.index < stop.index < grounds.index:
            continue
        if at - stop.entry.envelope.time > WITHDRAWAL_GRACE:
            yield Failure(
                f"site {permit.site_id} was permitted after its grant ended (entry {stop.index})", grounds.index
            )
        else:
            notes.append(f"entry {grounds.index} permits site {permit.site_id} within a minute of its grant's end")


def check_cohorts(windows: dict[bytes, Window], manifests: Sequence[Manifest]) -> Check:
    """Every cohort's numbers follow from the protocol and a membership, and its sites are members of it."""
    failures: list[Failure] = []
    cohorts = 0
    for window_id, window in windows.items():
        if len(window.fixed) > 1:
            failures.append(Failure(f"window {window_id.hex()} has two cohorts", window.fixed[1].index))
        for fixed in window.fixed:
            cohorts += 1
            if not any(_fits(fixed.message, manifest) for manifest in manifests):
                text = "its sites, n, t, c and k_min do not follow from any membership manifest of the study"
                failures.append(Failure(text, fixed.index))
    return verdict("cohorts", f"{cohorts} cohorts of members, with thresholds as the protocol makes them", failures)


def _fits(cohort: events.CohortFixed, manifest: Manifest) -> bool:
    members = {member.site_id for member in manifest.members}
    sites = set(cohort.sites)
    if len(sites) != len(cohort.sites) or cohort.n != len(sites) or not sites <= members:
        return False
    try:
        wanted = thresholds(cohort.n, manifest.collusion, manifest.k_min_floor)
    except ProtocolError:
        return False
    return (cohort.c, cohort.t, cohort.k_min) == (manifest.collusion, wanted.t, wanted.k_min)


def check_openings(windows: dict[bytes, Window]) -> Check:
    """Every opened sum is over enough sites of its cohort and of nobody else, and is the only one of its window."""
    failures: list[Failure] = []
    opened = 0
    for window_id, window in windows.items():
        for aggregate in window.opened:
            opened += 1
            failures += _check_opening(window_id, window, aggregate)
        if len({item.message.survivors_hash for item in window.opened}) > 1:
            failures.append(
                Failure(f"window {window_id.hex()} was opened for two survivor sets", window.opened[1].index)
            )
    return verdict(
        "opened sums", f"{opened} sums, each over at least k_min sites of its cohort and nobody else", failures
    )


def _check_opening(window_id: bytes, window: Window, aggregate: Said[events.AggregateOpened]) -> Iterator[Failure]:
    message = aggregate.message
    if not window.fixed:
        yield Failure(f"a sum was opened for window {window_id.hex()}, whose cohort is not on record", aggregate.index)
        return
    cohort = window.fixed[0].message
    survivors = set(message.survivors)
    if len(survivors) != len(message.survivors):
        yield Failure("a site is among the survivors twice", aggregate.index)
    strangers = sorted(survivors - set(cohort.sites))
    if strangers:
        yield Failure(f"the sum holds site {strangers[0]}, which is not in the cohort", aggregate.index)
    if len(survivors) < cohort.k_min:
        yield Failure(f"the sum is over {len(survivors)} sites; at least {cohort.k_min} were promised", aggregate.index)
    if set(message.dropped) != set(cohort.sites) - survivors:
        yield Failure("the sites listed as dropped are not the cohort without the survivors", aggregate.index)


def check_shares(windows: dict[bytes, Window]) -> Check:
    """At least t sites of the cohort say that they gave shares for exactly this survivor set, and none for two sets."""
    failures: list[Failure] = []
    notes: list[str] = []
    proven = 0
    for window_id, window in windows.items():
        failures += _contradictions(window_id, window)
        if not window.opened or not window.fixed:
            continue
        cohort, opening = window.fixed[0].message, window.opened[0]
        givers = {
            s.message.site_id for s in window.shares if s.message.survivors_hash == opening.message.survivors_hash
        }
        givers &= set(cohort.sites)
        if len(givers) >= cohort.t:
            proven += 1
            continue
        missing = sorted(set(opening.message.survivors) - givers)
        notes.append(
            f"entry {opening.index}: {len(givers)} of the {cohort.t} sites that must have given shares say so; "
            f"events are missing of {', '.join(missing) or 'sites outside the sum'}"
        )
    return verdict(
        "shares", f"{proven} sums were opened with the shares of at least t sites, by their own word", failures, notes
    )


def _contradictions(window_id: bytes, window: Window) -> Iterator[Failure]:
    opened = {item.message.survivors_hash for item in window.opened}
    given: dict[SiteId, bytes] = {}
    for share in window.shares:
        digest = share.message.survivors_hash
        if given.setdefault(share.message.site_id, digest) != digest:
            yield Failure(f"site {share.message.site_id} gave shares for two survivor sets of one window", share.index)
        elif opened and digest not in opened:
            text = f"site {share.message.site_id} gave shares for another survivor set than the one opened"
            yield Failure(f"{text} in window {window_id.hex()}", share.index)
    sealed: dict[SiteId, bytes] = {}
    for upload in window.uploads:
        if sealed.setdefault(upload.message.site_id, upload.message.header_hash) != upload.message.header_hash:
            yield Failure(f"site {upload.message.site_id} sealed two vectors for one window", upload.index)


def check_site_consent(windows: dict[bytes, Window]) -> Check:
    """Each site checked the same grant that its permit names before it read a row; uploads without it are noted."""
    failures: list[Failure] = []
    notes: list[str] = []
    tasks = 0
    for window_id, window in windows.items():
        permits = {p.site_id: p.grant_digest for item in window.authorised for p in item.message.permits if p.permitted}
        takers = set()
        for taken in window.taken:
            tasks += 1
            takers.add(taken.message.site_id)
            if permits.get(taken.message.site_id) != taken.message.grant_digest:
                failures.append(Failure("the site worked on another grant than the one its permit names", taken.index))
        summed = {site for item in window.opened for site in item.message.survivors}
        summed |= {site for item in window.summed if item.message.sums for site in item.message.sites}
        missing = sorted(summed - takers)
        if missing:
            notes.append(
                f"window {window_id.hex()}: no record that site {missing[0]} checked its grant (event missing)"
            )
    return verdict("sites' own checks", f"{tasks} tasks, each on the grant that the permit names", failures, notes)


def outcome_notes(entries: Sequence[Entry]) -> tuple[str, ...]:
    """What a reader wants to know beside the proofs: how each run stands, and whether faults were reported."""
    notes = []
    states: dict[RunId, events.RunStateChanged] = {}
    for changed in said(entries, events.RunStateChanged):
        states[changed.message.run_id] = changed.message
    for run, last in states.items():
        notes.append(
            f"run {run} stands at {last.state}{f' ({last.reason})' if last.reason else ''} at the end of this log"
        )
    faults = sum(1 for _ in said(entries, events.FaultSeen))
    if faults:
        notes.append(f"{faults} protocol faults were reported; they are entries of type fault_seen")
    return tuple(notes)
