"""How much trouble one sender may make: what it sends wrong must not cost others their turn, nor the broker its disk.

Refusing a message costs a signature check, a transaction for the audit event, a line in the log and a place among the
dead letters. Who goes on is silenced for a while: what is refused of it then is forgotten, and nobody writes it down.
In an inbox what is good of it is handled all the same, for it may be a withdrawal of consent; frames, which are asked
for again, are taken off their queue unread. In memory, for each instance: what is lost with a process is a punishment.
"""

import re
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from enum import Enum

from cohortium_kit.bus import Delivery
from cohortium_messages.ids import UUID_PATTERN
from cohortium_messages.topology import UPLINK

MOST_REFUSED = 20
WITHIN_S = 60.0
SILENCE_S = 15.0
MOST_SENDERS = 4096
TOO_MANY_REFUSED = "TOO_MANY_REFUSED"
"""The code of the event that tells of a silence: the last one about this sender until it is over."""
NO_SITE = "unknown:sender"
_SITE_ID = re.compile(UUID_PATTERN, re.ASCII)
_SITE_KEY = re.compile(rf"site\.({UUID_PATTERN.strip('^$')})\..+", re.ASCII)


def site_to_blame(delivery: Delivery) -> str | None:
    """The key id of the site under whose routing key this came, for the broker lets a site use no other; `NO_SITE` for
    a key of no site's. None where it did not come from a site: services make no trouble, they have faults; and what an
    operator sends again from the dead letters, with a login of their own, is parked again if it fails again."""
    if delivery.exchange != UPLINK.name or _sent_again(delivery):
        return None
    found = _SITE_KEY.fullmatch(delivery.routing_key)
    return f"site:{found[1]}" if found else NO_SITE


def _sent_again(delivery: Delivery) -> bool:
    """Whether the broker vouches that somebody else than a site sent it."""
    return delivery.user_id is not None and not _SITE_ID.fullmatch(delivery.user_id)


class Verdict(Enum):
    """What a refusal is worth: an event of its own, the event that says that there will be no more, or nothing."""

    RECORD = "record"
    RECORD_SILENCE = "record_silence"
    FORGET = "forget"


@dataclass(slots=True)
class _Record:
    refused: deque[float] = field(default_factory=deque)
    silent_until: float = 0.0


class Penalties:
    """Counts refusals by sender. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._senders: OrderedDict[str, _Record] = OrderedDict()

    def silenced(self, sender: str, now: float) -> bool:
        """Whether this sender is silenced now."""
        record = self._senders.get(sender)
        return record is not None and now < record.silent_until

    def refused(self, sender: str, now: float) -> Verdict:
        """Count one refusal."""
        record = self._senders.setdefault(sender, _Record())
        self._senders.move_to_end(sender)
        while len(self._senders) > MOST_SENDERS:
            self._senders.popitem(last=False)
        if now < record.silent_until:
            return Verdict.FORGET
        if record.silent_until:
            record.refused.clear()
            record.silent_until = 0.0
        record.refused.append(now)
        while record.refused[0] <= now - WITHIN_S:
            record.refused.popleft()
        if len(record.refused) <= MOST_REFUSED:
            return Verdict.RECORD
        record.silent_until = now + SILENCE_S
        return Verdict.RECORD_SILENCE

    def take_back(self, sender: str) -> None:
        """The last refusal could not be put on record: its message comes again, and is counted then."""
        record = self._senders.get(sender)
        if record is not None and record.refused:
            record.refused.pop()
            record.silent_until = 0.0
