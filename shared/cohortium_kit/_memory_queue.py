"""One queue of the in-memory broker: order, counting, expiry and bounds as RabbitMQ keeps them."""

import bisect
from collections.abc import Callable
from dataclasses import dataclass, field

from cohortium_kit.bus import Delivery, Outgoing
from cohortium_messages.topology import Queue, QueueKind


@dataclass(slots=True, eq=False)
class Held:
    """One message in one queue. `place` keeps its position over returns; `deliveries` counts handings over."""

    outgoing: Outgoing
    user_id: str | None
    place: int
    expires_at: float | None = None
    deliveries: int = 0


@dataclass(slots=True, eq=False)
class Taker:
    """A consumer as its queue sees it: how many it may hold, what it holds, and how to hand it one more."""

    prefetch: int
    hand_over: Callable[[Held], None]
    holding: list[Held] = field(default_factory=list)

    @property
    def has_room(self) -> bool:
        return len(self.holding) < self.prefetch


class MemoryQueue:
    """Messages ready in order, and the consumers that hold the others."""

    def __init__(self, rules: Queue) -> None:
        self.rules = rules
        self.ready: list[Held] = []
        self.takers: list[Taker] = []
        self._bytes = 0
        self._next_place = 0

    def is_full_for(self, outgoing: Outgoing) -> bool:
        """Whether this message would be refused. Only waiting messages count, as on the broker."""
        rules = self.rules
        if rules.max_length is not None and len(self.ready) + 1 > rules.max_length:
            return True
        return rules.max_length_bytes is not None and self._bytes + len(outgoing.body) > rules.max_length_bytes

    def put(self, outgoing: Outgoing, user_id: str | None, now: float) -> Held:
        """Append one message; returns it with its end of life, the shorter of its own and the queue's."""
        lives = [ttl for ttl in (outgoing.ttl_ms, self.rules.message_ttl_ms) if ttl is not None]
        held = Held(outgoing, user_id, self._next_place, now + min(lives) / 1000 if lives else None)
        self._next_place += 1
        self.ready.append(held)
        self._bytes += len(outgoing.body)
        return held

    def take(self) -> Held:
        held = self.ready.pop(0)
        self._bytes -= len(held.outgoing.body)
        held.deliveries += 1
        return held

    def put_back(self, held: Held) -> None:
        """Return a message to where it was: before everything that came after it."""
        bisect.insort(self.ready, held, key=lambda item: item.place)
        self._bytes += len(held.outgoing.body)

    def over_limit(self, held: Held) -> bool:
        limit = self.rules.delivery_limit
        return limit is not None and held.deliveries > limit

    def pop_expired(self, now: float) -> list[Held]:
        """Remove expired messages from the head. One behind a living message waits, as on the broker."""
        expired = []
        while self.ready and (end := self.ready[0].expires_at) is not None and end <= now:
            held = self.ready.pop(0)
            self._bytes -= len(held.outgoing.body)
            expired.append(held)
        return expired

    def next_taker(self) -> Taker | None:
        """Who gets the next message: in turns, or always the first one where only one may be active."""
        if self.rules.single_active_consumer:
            return self.takers[0] if self.takers and self.takers[0].has_room else None
        for index, taker in enumerate(self.takers):
            if taker.has_room:
                self.takers.append(self.takers.pop(index))
                return taker
        return None

    def as_delivery(self, held: Held) -> Delivery:
        outgoing = held.outgoing
        before = held.deliveries - 1
        return Delivery(
            body=outgoing.body,
            headers=dict(outgoing.headers),
            exchange=outgoing.exchange,
            routing_key=outgoing.routing_key,
            message_id=outgoing.message_id,
            type=outgoing.type,
            content_type=outgoing.content_type,
            redelivered=before > 0,
            delivery_count=before if self.rules.kind is QueueKind.QUORUM else min(before, 1),
            user_id=held.user_id,
            queue=self.rules.name,
            correlation_id=outgoing.correlation_id,
        )


def key_matches(pattern: str, key: str) -> bool:
    """Topic matching: `*` is exactly one word, `#` is any number of words, none included."""
    return _words_match(pattern.split("."), key.split("."))


def _words_match(pattern: list[str], words: list[str]) -> bool:
    # One row of the classic table: reachable[i] says that the pattern so far can end before words[i].
    reachable = [True] + [False] * len(words)
    for part in pattern:
        if part == "#":
            first = reachable.index(True) if True in reachable else len(reachable)
            reachable = [index >= first for index in range(len(reachable))]
        else:
            fits = [False] + [part in ("*", word) for word in words]
            reachable = [False] + [reachable[i] and fits[i + 1] for i in range(len(words))]
    return reachable[-1]
