"""What came to its end by the calendar is told to the log, once. Nothing depends on it: whoever decides asks the grant
and the documents themselves, at the moment of the decision.

The service remembers up to which moment it has told; what ended by then and came to be known later is not told, for
the event that recorded it says so already.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cohortium_consent import store
from cohortium_consent.documents import Documents
from cohortium_consent.store import consent_records
from cohortium_kit.clock import Clock
from cohortium_kit.db import Tx
from cohortium_kit.envelopes import Sender
from cohortium_kit.marks import marked, set_mark
from cohortium_messages.ids import SiteId, StudyId
from cohortium_messages.oversight import Expired
from cohortium_platform.recording import put_on_record
from cohortium_protocol.consent.authorise import Dossier
from cohortium_protocol.consent.files import named_by
from cohortium_protocol.consent.records import standing
from cohortium_protocol.consent.rules import sites_of, study_of

TOLD_UNTIL = "expiry/told-until"
AHEAD = timedelta(minutes=5)
"""As far as clocks may differ."""
LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Expiries:
    """Consent's eye on the calendar."""

    sender: Sender
    clock: Clock
    documents: Documents

    async def tell(self, tx: Tx) -> int:
        """Put on record what ended since the last look; returns how much."""
        now = self.clock.now()
        mark = await marked(tx, TOLD_UNTIL)
        since = LONG_AGO if mark is None else datetime.fromisoformat(mark)
        if since - now > AHEAD:
            # A clock that was ahead, and told what was not over yet, was set right: from here on it is told again.
            await set_mark(tx, TOLD_UNTIL, now.isoformat())
        if now <= since:
            return 0
        told = 0
        for event, studies in [*await self._grants(tx, since, now), *await self._papers(tx, since, now)]:
            for study in studies:
                await put_on_record(tx, self.sender, event, study=study)
            told += 1
        await set_mark(tx, TOLD_UNTIL, now.isoformat())
        return told

    async def _grants(self, tx: Tx, since: datetime, now: datetime) -> list[tuple[Expired, list[StudyId | None]]]:
        grants = [record.grant for record in await store.granted(tx)]
        return [
            (
                Expired(kind="grant", record=one.grant_digest, ended_at=one.not_after, site_id=one.site_id),
                [one.study_id],
            )
            for one in grants
            if since < one.not_after <= now
        ]

    async def _papers(self, tx: Tx, since: datetime, now: datetime) -> list[tuple[Expired, list[StudyId | None]]]:
        file = await consent_records.load(tx)
        if not file.records:
            return []
        studies = {study for study in (study_of(one.document) for one in file.records) if study is not None}
        named = {study: named_by(file, study) for study in sorted(studies)}
        found: list[tuple[Expired, list[StudyId | None]]] = []
        for digest, ended_at, kind, site, study in _ended(await self.documents.dossier(tx, now), since, now):
            event = Expired(kind=kind, record=digest, ended_at=ended_at, site_id=site)
            # As its signatures are: what is about no single study is told where something rests on it.
            logs: list[StudyId | None] = (
                [study] if study is not None else [None, *(one for one in named if digest in named[one])]
            )
            found.append((event, logs))
        return found


def _ended(
    dossier: Dossier, since: datetime, now: datetime
) -> Iterator[tuple[bytes, datetime, str, SiteId | None, StudyId | None]]:
    """Documents that were in force until a moment of this span: digest, moment, kind, the one hospital, the study."""
    for digest, judged in sorted(dossier.records.items()):
        word, ended_at = standing(judged.document, judged.state, now)
        if word == "expired" and ended_at is not None and since < ended_at <= now:
            sites = sites_of(judged.document)
            site = min(sites) if sites and len(sites) == 1 else None
            yield digest, ended_at, str(judged.document.kind), site, study_of(judged.document)
