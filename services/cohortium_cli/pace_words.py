"""How long a round waits and why, in a sentence."""

from collections.abc import Mapping

from cohortium_messages.status import RoundPace, SitePace, TimeSource
from cohortium_sim.report_words import clean, plural

SAID: Mapping[TimeSource, str] = {
    "report": "its report of machine and line",
    "declared": "the processors that it declared, as its trial trained nothing",
}


def paced(pace: RoundPace) -> str:
    """Both deadlines of a round, and the site that each of them is set by, with its numbers and where they are from."""
    ready = f"waits up to {pace.ready_s:.0f} s for the sites{_why_ready(pace)}"
    return f"{ready}; for uploads up to {pace.upload_s:.0f} s{_why_upload(pace)}"


def _why_ready(pace: RoundPace) -> str:
    unknown = [site.site for site in pace.sites if site.ready_s is None]
    if unknown:
        return f", the study's time, as too little is known of {_named(unknown)}"
    slowest = max(pace.sites, key=lambda site: site.ready_s or 0.0, default=None)
    if slowest is None or slowest.expected_s is None:
        return ""
    limit = ", and no longer than the study says" if (slowest.ready_s or 0.0) > pace.ready_s else ""
    return f": {clean(slowest.site)} should need about {slowest.expected_s:.3g} s, by {_from(slowest)}{limit}"


def _why_upload(pace: RoundPace) -> str:
    unknown = [site.site for site in pace.sites if site.upload_s is None]
    if unknown:
        return f", the study's time, as the line of {_named(unknown)} was not measured"
    slowest = max(pace.sites, key=lambda site: site.upload_s or 0.0, default=None)
    return "" if slowest is None else f", by the line that {clean(slowest.site)} reported"


def _from(site: SitePace) -> str:
    match site.source:
        case "measured":
            return f"its last {plural(site.answers, 'answer')}"
        case "blended":
            return f"{plural(site.answers, 'answer')} and its report"
        case _:
            return SAID.get(site.source, "nothing")


def _named(sites: list[str]) -> str:
    more = f" and {len(sites) - 1} more" if len(sites) > 1 else ""
    return f"{clean(sites[0])}{more}"
