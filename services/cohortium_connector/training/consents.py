"""Patients' decisions, from whichever source the hospital has, and what follows from them. Everything unclear excludes.

One model for all sources: who decided what, for which time, recorded when. Tables are read here, FHIR in
`fhir_consents`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from cohortium_connector.training.base import SiteRefusal
from cohortium_protocol.cohorts import person_name


class Word(StrEnum):
    PERMIT = "permit"
    DENY = "deny"
    UNKNOWN = "unknown"
    """Something was recorded that says neither: it counts like a denial."""


class Excluded(StrEnum):
    """Why a person is not in the cohort."""

    NO_RECORD = "no_record"
    DENIED = "denied"
    EXPIRED = "expired"
    UNKNOWN = "unknown"
    OPTED_OUT = "opted_out"


@dataclass(frozen=True, slots=True)
class Decision:
    """What one person decided, from `since` (inclusive) until `until` (exclusive), as recorded at `recorded_at`."""

    person: str
    word: Word
    since: datetime | None
    until: datetime | None
    recorded_at: datetime


@dataclass(frozen=True, slots=True)
class Cohort:
    """Who may be used, and how many of the others for which reason."""

    permitted: frozenset[str]
    excluded: Mapping[Excluded, int]


class SourceUnreadable(SiteRefusal):
    """The hospital's consent source cannot be used; no patient is taken without it."""

    def __init__(self, column: str, hint: str) -> None:
        super().__init__("CONSENT_SOURCE_UNREADABLE", column, 1, f"CONSENT_SOURCE_UNREADABLE: {hint}")


def decide(
    persons: Iterable[str],
    decisions: Iterable[Decision],
    opted_out: frozenset[str],
    *,
    required: bool,
    at: datetime,
) -> Cohort:
    """Apply the rules of 1.5 of the governance design to each candidate, at this moment.

    An opt-out always excludes. Else the latest decision counts; of several at one moment, the one that denies. Without
    a decision a person is in only where consent is not `required`. What is recorded in the future does not count,
    unless it denies: a clock is wrong somewhere, and stopping early can be mended.
    """
    latest: dict[str, list[Decision]] = defaultdict(list)
    for one in decisions:
        if one.recorded_at > at and one.word is Word.PERMIT:
            continue
        kept = latest[one.person]
        if not kept or one.recorded_at > kept[0].recorded_at:
            latest[one.person] = [one]
        elif one.recorded_at == kept[0].recorded_at:
            kept.append(one)
    permitted: set[str] = set()
    excluded: Counter[Excluded] = Counter()
    for person in set(persons):
        reason = Excluded.OPTED_OUT if person in opted_out else _reason(latest.get(person, []), required, at)
        if reason is None:
            permitted.add(person)
        else:
            excluded[reason] += 1
    return Cohort(frozenset(permitted), dict(excluded))


def _reason(latest: list[Decision], required: bool, at: datetime) -> Excluded | None:
    if not latest:
        return Excluded.NO_RECORD if required else None
    begun = [one for one in latest if one.since is None or one.since <= at or one.word is not Word.PERMIT]
    if not begun:
        return Excluded.NO_RECORD  # somebody was asked, and it is not yet so
    words = {one.word for one in begun}
    if Word.DENY in words:
        return Excluded.DENIED
    if Word.UNKNOWN in words:
        return Excluded.UNKNOWN
    if any(one.until is not None and one.until <= at for one in begun):
        return Excluded.EXPIRED
    return None


# ---------------------------------------------------------------------------------------------------- time


def moment(text: object, *, end: bool = False) -> datetime | None:
    """An ISO 8601 date or time, as UTC; a date that is an `end` lasts until the day is over. Raises `ValueError`."""
    if text is None or (isinstance(text, str) and not text.strip()):
        return None
    if not isinstance(text, str):
        raise ValueError("not a time")
    clean = text.strip()
    if len(clean) in (4, 7):  # FHIR allows a year, or a year and a month: their beginning; an end is never guessed
        if end:
            raise ValueError("an end needs a day")
        clean = f"{clean}-01-01" if len(clean) == 4 else f"{clean}-01"
    found = datetime.fromisoformat(clean)
    try:
        found = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
        return found + timedelta(days=1) if end and len(clean) == 10 else found
    except OverflowError:  # 9999-12-31 is how many a database says "for ever"
        if found.year == FOR_EVER.year:
            return FOR_EVER
        raise ValueError("not a time") from None


LONG_AGO = datetime(1, 1, 1, tzinfo=UTC)
FOR_EVER = datetime.max.replace(tzinfo=UTC)


def _no_earlier(recorded: object) -> datetime:
    """The latest moment that this can mean: of a denial that says a day, the day's end; without a time, any time."""
    clean = recorded.strip() if isinstance(recorded, str) else ""
    try:
        begun = moment(clean)
        if begun is None:
            return FOR_EVER
        if len(clean) == 4:
            begun = begun.replace(month=12)
        if len(clean) in (4, 7):
            begun = (begun.replace(day=28) + timedelta(days=4)).replace(day=1)
        elif len(clean) == 10:
            begun += timedelta(days=1)
        else:
            return begun
        return begun - timedelta(microseconds=1)
    except (ValueError, OverflowError):
        return FOR_EVER


def decision_of(person: str, word: Word, since: object, until: object, recorded: object) -> Decision:
    """A time that cannot be read makes the whole record unclear, so that it excludes. A permission is as old as its
    time can mean, everything else as new."""
    if word is not Word.PERMIT:
        return Decision(person, word, None, None, _no_earlier(recorded))
    try:
        recorded_at = moment(recorded) or LONG_AGO
        return Decision(person, word, moment(since), moment(until, end=True), recorded_at)
    except ValueError:
        return Decision(person, Word.UNKNOWN, None, None, _no_earlier(recorded))


# ---------------------------------------------------------------------------------------------------- table


REQUIRED_COLUMNS = ("person_id", "decision")
OPTIONAL_COLUMNS = ("policy_uri", "purpose", "valid_from", "valid_to", "recorded_at")


def of_rows(rows: Iterable[Mapping[str, str | None]], policy: str | None, purpose: str | None) -> Iterator[Decision]:
    """Decisions of a table with the columns above. A row for another policy or purpose does not count; one that names
    none is about all."""
    for row in rows:
        person = person_name(row.get("person_id") or "")
        if not person or _is_other(row.get("policy_uri"), policy) or _is_other(row.get("purpose"), purpose):
            continue
        text = (row.get("decision") or "").strip().lower()
        word = Word(text) if text in ("permit", "deny") else Word.UNKNOWN
        yield decision_of(person, word, row.get("valid_from"), row.get("valid_to"), row.get("recorded_at"))


def _is_other(said: str | None, wanted: str | None) -> bool:
    return wanted is not None and bool(said and said.strip()) and str(said).strip() != wanted
