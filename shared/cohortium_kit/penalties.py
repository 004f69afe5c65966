"""How much trouble one sender may make: what it sends wrong must not cost the others their turn.

Refusing a message costs a signature check, a transaction for the audit event and a place among the dead letters. A
sender that goes on is not heard for a while: its messages are taken off the queue unread. What was good among them it
sends again, for that is what senders do whose messages are not confirmed by an answer. In memory, for each instance:
what is lost with a process is a punishment.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from enum import Enum

MOST_REFUSED = 20
WITHIN_S = 60.0
SILENCE_S = 15.0
MOST_SENDERS = 4096
TOO_MANY_REFUSED = "TOO_MANY_REFUSED"
"""The code of the event that tells of a silence: the last one about this sender until it is over."""


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
        """Whether nothing of this sender is read now."""
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
        record.refused.append(now)
        while record.refused[0] <= now - WITHIN_S:
            record.refused.popleft()
        if len(record.refused) <= MOST_REFUSED:
            return Verdict.RECORD
        record.refused.clear()
        record.silent_until = now + SILENCE_S
        return Verdict.RECORD_SILENCE
