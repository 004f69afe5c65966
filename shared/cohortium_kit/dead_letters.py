"""Dead letters as people look at them, and how one is sent again. What to do with which is in the runbook."""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from cohortium_kit._dead import revived
from cohortium_kit.bus import (
    ORIGINAL_EXCHANGE_HEADER,
    ORIGINAL_KEY_HEADER,
    ORIGINAL_QUEUE_HEADER,
    PARKED_AT_HEADER,
    Delivery,
)
from cohortium_messages.envelope import KEY_ID_HEADER, REASON_HEADER
from cohortium_messages.topology import DEAD, SERVICE_NAMES, dead_letters

__all__ = ["CONSUMERS", "Held", "Letter", "dead_letters", "letter_of", "revived"]

CONSUMERS = (*SERVICE_NAMES, "chunks", "sites")
"""Whose messages are parked: each has a queue `<consumer>.dead`."""


@dataclass(frozen=True, slots=True)
class Held:
    """A message in hand. `settle` takes it off its queue for good."""

    delivery: Delivery
    settle: Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Letter:
    """What a dead letter says of itself without being believed: nothing here was checked.

    `sender`: the key that it claims to be signed by, else the routing key that the broker let it use. `age_s`: since it
    was parked; None if it does not say.
    """

    consumer: str
    message_id: str
    type: str
    reason: str
    sender: str
    age_s: float | None
    exchange: str
    routing_key: str
    queue: str
    size: int
    sha256: str


def letter_of(delivery: Delivery, now: datetime) -> Letter:
    """The facts of one message of a parking queue."""
    headers = delivery.headers
    key = headers.get(ORIGINAL_KEY_HEADER, "")
    return Letter(
        consumer=delivery.queue.removesuffix(f".{DEAD.name}"),
        message_id=delivery.message_id,
        type=delivery.type,
        reason=headers.get(REASON_HEADER, "unknown"),
        sender=headers.get(KEY_ID_HEADER) or f"key {key}",
        age_s=_age(headers.get(PARKED_AT_HEADER), now),
        exchange=headers.get(ORIGINAL_EXCHANGE_HEADER, ""),
        routing_key=key,
        queue=headers.get(ORIGINAL_QUEUE_HEADER, ""),
        size=len(delivery.body),
        sha256=hashlib.sha256(delivery.body).hexdigest(),
    )


def _age(parked_at: str | None, now: datetime) -> float | None:
    try:
        at = datetime.fromisoformat(parked_at or "")
    except ValueError:
        return None
    return max(0.0, (now - at.replace(tzinfo=at.tzinfo or UTC)).total_seconds())
