"""How long a round waits for the sites that it asks: for their updates to be made (`ready`), and for their uploads.

Pure. Before a site has answered, its time is estimated from its report (`prior_of`): the model's way down its line, and
its training probe, made larger by as much as a round trains more than the probe did. Where no probe ran, its number of
processors stands for it. Answers take the report's place one by one (`selection.blended`); at `ENOUGH` the report says
nothing any more.

A deadline is a site's expected time with slack, the slowest site's of those asked, never below a floor, and never above
the study's own, which also holds while one of the sites is not known. A report is further from the truth than answers
are (it knows nothing of how long the hospital's rows take to read), so its slack and its floor are larger.

Uploads take the update's bytes over the line that the report measured. How long they took nobody tells the scheduler,
but it is told whose did not arrive: each miss doubles that site's deadline, and a doubling is taken back only after
`selection.STEADY` uploads in a row that were in time. A site that rounds wait for longer anyway, for another's sake,
shows nothing by being in time: its doublings stay (`waited_for`).

The other trips (`echo_s`, `unmask_s`) carry kilobytes; they wait for sites that are away. They are the study's.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cohortium_messages.ids import SiteId
from cohortium_messages.preflight import PROBE_UPDATES, Capacity
from cohortium_scheduler.domain.selection import (
    ENOUGH,
    MOST_DOUBLINGS,
    NEW,
    Prior,
    Source,
    Standing,
    Standings,
    blended,
    expected,
)

SLACK = 4.0
"""How many times a site's usual time the others wait for it."""
LEAST_WAIT_S = 30.0
REPORT_SLACK = 10.0
REPORT_LEAST_S = 300.0
"""Slack and floor of a deadline that rests on a report alone."""
UPLOAD_SLACK = 10.0
UPLOAD_LEAST_S = 60.0
CORE_S = 30.0
"""The training probe on one slow core: where none ran, it is taken to need this, divided by the processors."""
MBIT_PER_BYTE = 8e-6

Capacities = Mapping[SiteId, Capacity]
NO_REPORTS: Capacities = {}


@dataclass(frozen=True, slots=True)
class Work:
    """What a round costs one site. `updates`: rows times passes over them times parameters, which the time of training
    grows with."""

    down_bytes: int
    up_bytes: int
    updates: float


@dataclass(frozen=True, slots=True)
class SitePace:
    """One asked site's part in a round's deadlines: the time that it was expected to need, from how many answers and
    from where, and how long each trip would be waited for if it were alone. None: not known, so the study's time."""

    site: SiteId
    source: Source
    answers: int
    expected_s: float | None = None
    ready_s: float | None = None
    upload_s: float | None = None


@dataclass(frozen=True, slots=True)
class Pace:
    """A round's deadlines, and what each of them rests on."""

    ready_s: float
    upload_s: float
    sites: tuple[SitePace, ...]


def prior_of(capacity: Capacity, work: Work) -> Prior | None:
    """When a site gets ready by its own report; None where its line was not measured."""
    down = _seconds(work.down_bytes, capacity.down_mbit_s)
    if down is None:
        return None
    larger = max(1.0, work.updates / PROBE_UPDATES)
    if capacity.training_s is None:
        return Prior(down + larger * CORE_S / capacity.cpus, "declared")
    return Prior(down + larger * capacity.training_s, "report")


def pace(
    standings: Standings, asked: Iterable[SiteId], capacities: Capacities, work: Work, most: tuple[float, float]
) -> Pace:
    """The deadlines of a round that asks these sites. `most`: the study's own, for getting ready and for uploads."""
    sites = tuple(_site_pace(site, standings.get(site, NEW), capacities.get(site), work) for site in asked)
    ready = _slowest((site.ready_s for site in sites), most[0])
    return Pace(ready, _slowest((site.upload_s for site in sites), most[1]), sites)


def waited_for(pace: Pace, sites: Iterable[SiteId]) -> list[SiteId]:
    """Those of the sites whose own time the round waited for uploads, and no other's that is longer."""
    alone = {one.site: one.upload_s for one in pace.sites}
    own = ((site, alone.get(site)) for site in sites)
    return [site for site, upload_s in own if upload_s is not None and upload_s >= pace.upload_s]


def _site_pace(site: SiteId, standing: Standing, capacity: Capacity | None, work: Work) -> SitePace:
    prior = None if capacity is None else prior_of(capacity, work)
    seconds, source = expected(standing, prior)
    return SitePace(
        site=site,
        source=source,
        answers=len(standing.seconds),
        expected_s=seconds,
        ready_s=ready_within(standing, prior),
        upload_s=None if capacity is None else upload_within(standing, capacity, work),
    )


def ready_within(standing: Standing, prior: Prior | None) -> float | None:
    """How long this site is waited for until it is ready. Of the same answers, a slower report gives no shorter time;
    of the same report, slower answers do not either."""
    taken, usual = len(standing.seconds), standing.quantile_s
    by_report = None if prior is None else max(REPORT_LEAST_S, REPORT_SLACK * prior.ready_s)
    if usual is None:
        return by_report
    by_answers = max(LEAST_WAIT_S, SLACK * usual)
    if taken >= ENOUGH:
        return by_answers
    return None if by_report is None else blended(by_report, by_answers, taken)


def upload_within(standing: Standing, capacity: Capacity, work: Work) -> float | None:
    """How long this site's upload is waited for; None where its line was not measured."""
    seconds = _seconds(work.up_bytes, capacity.up_mbit_s)
    if seconds is None:
        return None
    return max(UPLOAD_LEAST_S, UPLOAD_SLACK * seconds) * math.ldexp(1.0, min(standing.doublings, MOST_DOUBLINGS))


def _seconds(size: int, mbit_s: float | None) -> float | None:
    return MBIT_PER_BYTE * size / mbit_s if mbit_s else None


def _slowest(times: Iterable[float | None], most: float) -> float:
    known = list(times)
    bounds = [one for one in known if one is not None]
    return min(most, max(bounds)) if bounds and len(bounds) == len(known) else most
