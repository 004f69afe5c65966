"""Which event goes where, who may say it, and how a log grows. Pure: stored nodes and the time come in.

The log decides nothing. It refuses what its emitter may not say, and it changes nothing that it has recorded.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NewType

import rfc8785

from cohortium_kit.errors import CohortiumError
from cohortium_messages import events
from cohortium_messages.emitters import SITE, may_say
from cohortium_messages.envelope import Envelope
from cohortium_messages.events import AuditEvent
from cohortium_messages.ids import SiteId
from cohortium_protocol import logproof, translog
from cohortium_protocol.logproof import entry_bytes
from cohortium_protocol.translog import Node

LogName = NewType("LogName", str)
"""A study's id, or `PLATFORM`."""

PLATFORM = LogName(logproof.PLATFORM)


SKEW = timedelta(minutes=5)
"""So far an emitter's clock may be off. One that is behind cannot be told from an event that was long on its way."""
CLOCK_AHEAD = "clock_ahead"
"""The fault of an emitter whose clock is further ahead than that."""


class EmitterRefused(CohortiumError):
    """A known key signed an event that it may not emit. `code` goes into the audit event about it."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True, slots=True)
class Entry:
    """One event, ready for its log. `data` is the leaf's input: canonical JSON of envelope, key id and signature."""

    log: LogName
    event_id: str
    key_id: str
    type: str
    time: datetime
    data: bytes


def leaf_data(body: bytes, key_id: str, signature: bytes) -> bytes:
    """RFC 8785 bytes of `{"event": …, "key_id": …, "signature": hex}`.

    Raises `EmitterRefused` unless `body` is itself canonical: its signature covers these exact bytes, and a reader of
    the log must be able to make them again from the entry.
    """
    event = json.loads(body)
    try:
        canonical = rfc8785.dumps(event)
    except rfc8785.CanonicalizationError:
        raise EmitterRefused("NOT_CANONICAL") from None
    if canonical != body:
        raise EmitterRefused("NOT_CANONICAL")
    return entry_bytes(event, key_id, signature)


def is_early(signed_at: datetime, now: datetime) -> bool:
    """Whether an event is dated further ahead of us than two clocks may differ."""
    return signed_at - now > SKEW


def log_of(envelope: Envelope) -> LogName:
    """The study's log; the platform's for an event without a study."""
    return PLATFORM if envelope.study is None else LogName(envelope.study)


def check_emitter(key_id: str, message: AuditEvent, envelope: Envelope, members: frozenset[SiteId]) -> None:
    """Raise `EmitterRefused` unless this key may emit this event into this log.

    `members` are all sites that were ever members of the envelope's study. A site speaks of itself only, and only in
    the logs of its own studies; without a study it may report a fault.
    """
    kind, _, name = key_id.partition(":")
    if not may_say(key_id, type(message)):
        raise EmitterRefused("EVENT_NOT_ALLOWED")
    if any(moment.tzinfo is None for moment in _moments(envelope, message)):
        raise EmitterRefused("TIME_WITHOUT_ZONE")
    if kind != SITE:
        return
    if getattr(message, "site_id", name) != name:
        raise EmitterRefused("SITE_ID_MISMATCH")
    if envelope.study is None and not isinstance(message, events.FaultSeen):
        raise EmitterRefused("STUDY_MISSING")
    if envelope.study is not None and name not in members:
        raise EmitterRefused("NOT_A_MEMBER")


def _moments(envelope: Envelope, message: AuditEvent) -> Iterator[datetime]:
    yield envelope.time
    if isinstance(message, events.GrantStarted):
        yield message.not_before
        yield message.not_after


@dataclass(frozen=True, slots=True)
class Growth:
    """What one batch adds to a log: the leaves' indices from `first` on, and the nodes that became complete."""

    first: int
    size: int
    nodes: tuple[tuple[Node, bytes], ...]


def nodes_to_grow(size: int) -> list[Node]:
    """The stored nodes that `grow` needs to know for a log of this size: the roots of its complete subtrees."""
    return translog.nodes_for_root(size)


def grow(size: int, stored: Mapping[Node, bytes], entries: Sequence[bytes]) -> Growth:
    """Append these leaves, in this order, to a log of `size`; `stored` holds at least `nodes_to_grow(size)`."""
    known = dict(stored)
    added: list[tuple[Node, bytes]] = []

    def put(node: Node, value: bytes) -> None:
        known[node] = value
        added.append((node, value))

    tree = translog.Tree(size, known.__getitem__, put)
    for data in entries:
        tree.append(translog.leaf_hash(data))
    return Growth(size, tree.size, tuple(added))


@dataclass(frozen=True, slots=True)
class LogState:
    """A log as it stands: how many leaves it has, and up to which size it has signed a checkpoint."""

    log: LogName
    size: int
    checkpointed: int
