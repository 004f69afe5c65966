"""From our messages and queue rules to AMQP's, and back."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from cohortium_kit._dead import dead_headers
from cohortium_kit.bus import Delivery, Outgoing
from cohortium_messages.topology import DEAD, Queue, QueueKind

STREAM_OFFSET = "x-stream-offset"
"""On what a stream hands over: its place. In the wish of a consumer: where to begin."""

NO_DELIVERY_LIMIT = 2**31 - 1
"""RabbitMQ 4 drops what a quorum queue has handed over twenty times, unless told otherwise: parked messages would be
gone after people had looked at them so often. No version before 4.0 knows a word for none."""
BOUNDS = (
    "x-delivery-limit",
    "x-max-length",
    "x-max-length-bytes",
    "x-message-ttl",
    "x-max-age",
    "x-stream-max-segment-size-bytes",
)
"""Arguments that say how much or how long. A queue that exists with others serves as well."""
_OTHER = re.compile(r"inequivalent arg '(x-[a-z-]+)' for queue '([^']*)'.* but current is (?:none|the value '([^']*)')")


def encode(outgoing: Outgoing, user_id: str | None) -> aio_pika.Message:
    mode = aio_pika.DeliveryMode.PERSISTENT if outgoing.persistent else aio_pika.DeliveryMode.NOT_PERSISTENT
    return aio_pika.Message(
        outgoing.body,
        headers=dict(outgoing.headers),
        content_type=outgoing.content_type,
        delivery_mode=mode,
        correlation_id=outgoing.correlation_id,
        expiration=None if outgoing.ttl_ms is None else outgoing.ttl_ms / 1000,
        message_id=outgoing.message_id,
        type=outgoing.type,
        user_id=user_id,
    )


def decode(message: AbstractIncomingMessage, queue: str, namespace: str) -> Delivery:
    raw = message.headers or {}
    count, offset = raw.get("x-delivery-count"), raw.get(STREAM_OFFSET)
    return Delivery(
        body=message.body,
        headers=_texts(raw) | _broker_reason(raw, namespace),
        exchange=_short(message.exchange, namespace),
        routing_key=message.routing_key or "",
        message_id=message.message_id or "",
        type=message.type or "",
        content_type=message.content_type or "",
        redelivered=bool(message.redelivered),
        delivery_count=count if isinstance(count, int) else int(bool(message.redelivered)),
        user_id=message.user_id,
        queue=queue,
        correlation_id=message.correlation_id,
        offset=offset if isinstance(offset, int) else None,
    )


def queue_arguments(queue: Queue, namespace: str) -> dict[str, Any]:
    """RabbitMQ's optional arguments for our rules.

    Work queues dead-letter at least once: RabbitMQ then keeps a message until the parking queue has it, and asks for
    `reject-publish` in return (broker study, 3).
    """
    quorum, stream = queue.kind is QueueKind.QUORUM, queue.kind is QueueKind.STREAM
    limit = NO_DELIVERY_LIMIT if quorum and queue.delivery_limit is None else queue.delivery_limit
    parks = queue.dead_letter_key is not None
    wanted: dict[str, Any] = {
        "x-queue-type": queue.kind.value,
        "x-delivery-limit": limit,
        "x-dead-letter-exchange": f"{namespace}.{DEAD.name}" if parks else None,
        "x-dead-letter-routing-key": queue.dead_letter_key,
        "x-dead-letter-strategy": "at-least-once" if quorum and parks else None,
        "x-overflow": "reject-publish" if (queue.refuses and not stream) or (quorum and parks) else None,
        "x-max-length": queue.max_length,
        "x-max-length-bytes": queue.max_length_bytes,
        "x-message-ttl": queue.message_ttl_ms,
        "x-single-active-consumer": True if queue.single_active_consumer else None,
        "x-max-age": f"{queue.max_age_s}s" if queue.max_age_s is not None else None,
        "x-stream-max-segment-size-bytes": queue.segment_bytes,
    }
    return {name: value for name, value in wanted.items() if value is not None}


def other_bound(refusal: str) -> tuple[str, str, Any] | None:
    """Of the broker's words for a declaration that it refuses: the queue, the bound that differs, and what the queue
    has (None: nothing). None where it is about anything else than a bound."""
    found = _OTHER.search(refusal)
    if found is None or found[1] not in BOUNDS:
        return None
    argument, queue, held = found.groups()
    return queue, argument, int(held) if held is not None and held.isdecimal() else held


def _texts(raw: Mapping[str, Any]) -> dict[str, str]:
    """Our headers only. The broker's own (`x-...`) stay behind, or a parked message could not be sent again as new."""
    texts = {}
    for name, value in raw.items():
        if not name.startswith("x-"):
            texts[name] = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return texts


def _broker_reason(raw: Mapping[str, Any], namespace: str) -> dict[str, str]:
    """The headers of a dead letter, for one that the broker itself parked: it has `x-death`, which nobody else writes,
    and whatever the sender wrote in ours does not count."""
    deaths = raw.get("x-death")
    if not isinstance(deaths, list) or not deaths:
        return {}
    first: Mapping[str, Any] = deaths[-1]
    keys = first.get("routing-keys") or [""]
    time = first.get("time")
    return dead_headers(
        str(first.get("reason", "")),
        exchange=_short(str(first.get("exchange", "")), namespace),
        routing_key=str(keys[0]),
        queue=_short(str(first.get("queue", "")), namespace),
        at=time.replace(tzinfo=time.tzinfo or UTC) if isinstance(time, datetime) else None,
    )


def _short(name: str | None, namespace: str) -> str:
    return (name or "").removeprefix(f"{namespace}.")
