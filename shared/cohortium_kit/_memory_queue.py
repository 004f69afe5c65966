"""One queue of the in-memory broker: order, counting, expiry and bounds as RabbitMQ keeps them."""

import bisect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from cohortium_kit.bus import Delivery, Outgoing
from cohortium_messages.topology import Queue, QueueKind

MOST_STREAM_BYTES = 16 << 20
"""A stream in memory keeps less than its rules say."""


@dataclass(slots=True, eq=False)
class Held:
    """One message in one queue. `place` keeps its position over returns; `deliveries` counts handings over."""

    outgoing: Outgoing
    user_id: str | None
    place: int
    expires_at: float | None = None
    deliveries: int = 0
    put_at: float = 0.0


@dataclass(slots=True, eq=False)
class Taker:
    """A consumer as its queue sees it: how many it may hold, what it holds, and how to hand it one more.

    `at` is the place in a stream where it reads on.
    """

    prefetch: int
    hand_over: Callable[[Held], None]
    holding: list[Held] = field(default_factory=list)
    at: int = 0

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
        return not self.rules.keeps_newest and self._is_over(1, len(outgoing.body))

    def _is_over(self, more: int, more_bytes: int) -> bool:
        """Whether so much more is more than may wait."""
        most, most_bytes = self.rules.max_length, self.rules.max_length_bytes
        if most is not None and len(self.ready) + more > most:
            return True
        return most_bytes is not None and self._bytes + more_bytes > most_bytes

    def put(self, outgoing: Outgoing, user_id: str | None, now: float) -> Held:
        """Append one message; returns it with its end of life, the shorter of its own and the queue's."""
        lives = [ttl for ttl in (outgoing.ttl_ms, self.rules.message_ttl_ms) if ttl is not None]
        held = Held(outgoing, user_id, self._next_place, now + min(lives) / 1000 if lives else None, put_at=now)
        self._next_place += 1
        self.ready.append(held)
        self._bytes += len(outgoing.body)
        while self.rules.keeps_newest and self._is_over(0, 0):
            self._bytes -= len(self.ready.pop(0).outgoing.body)
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

    def next_turn(self) -> tuple[Taker, Held] | None:
        """Who gets which message next; None if nobody can have one now."""
        taker = self._next_taker() if self.ready else None
        return None if taker is None else (taker, self.take())

    def left_by(self, taker: Taker) -> None:
        """A consumer's connection is lost."""

    def _next_taker(self) -> Taker | None:
        """In turns, or always the first one where only one may be active."""
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
            offset=held.place if self.rules.kind is QueueKind.STREAM else None,
        )


class MemoryStream(MemoryQueue):
    """What was published, kept for everybody: `ready` is never taken from, but from the front when it is too much."""

    def is_full_for(self, outgoing: Outgoing) -> bool:  # noqa: ARG002 - it drops its oldest
        return False

    def put(self, outgoing: Outgoing, user_id: str | None, now: float) -> Held:
        held = super().put(outgoing, user_id, now)
        age, most = self.rules.max_age_s, min(self.rules.max_length_bytes or MOST_STREAM_BYTES, MOST_STREAM_BYTES)
        while self._bytes > most or (age is not None and self.ready[0].put_at < now - age):
            self._bytes -= len(self.ready.pop(0).outgoing.body)
        return held

    def place_of(self, start: Literal["first", "last", "next"] | int | None, since: float | None) -> int:
        """The place where a consumer begins; `since` stands for a time."""
        first = self._next_place - len(self.ready)
        if since is not None:
            return next((held.place for held in self.ready if held.put_at >= since), self._next_place)
        if isinstance(start, int):
            return max(first, start)
        return {"first": first, "last": max(first, self._next_place - 1)}.get(start or "next", self._next_place)

    def next_turn(self) -> tuple[Taker, Held] | None:
        first = self._next_place - len(self.ready)
        for taker in self.takers:
            taker.at = max(taker.at, first)
            if taker.has_room and taker.at < self._next_place:
                kept = self.ready[taker.at - first]
                taker.at += 1
                return taker, replace(kept, deliveries=1)
        return None

    def put_back(self, held: Held) -> None:
        """It was never taken."""

    def left_by(self, taker: Taker) -> None:
        taker.at = min([held.place for held in taker.holding], default=taker.at)


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
