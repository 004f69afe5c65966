"""How a dead letter looks, whoever writes it: the same headers on both buses."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from cohortium_kit.bus import (
    ORIGINAL_EXCHANGE_HEADER,
    ORIGINAL_KEY_HEADER,
    ORIGINAL_QUEUE_HEADER,
    PARKED_AT_HEADER,
    Delivery,
    Outgoing,
)
from cohortium_messages.envelope import REASON_HEADER
from cohortium_messages.topology import DEAD


def dead_headers(
    reason: str, *, exchange: str, routing_key: str, queue: str, at: datetime | None = None
) -> dict[str, str]:
    """`at`: now, if it is left out."""
    return {
        REASON_HEADER: reason,
        PARKED_AT_HEADER: (at or datetime.now(UTC)).isoformat(timespec="seconds"),
        ORIGINAL_EXCHANGE_HEADER: exchange,
        ORIGINAL_KEY_HEADER: routing_key,
        ORIGINAL_QUEUE_HEADER: queue,
    }


def dead_letter(delivery: Delivery, reason: str, dead_letter_key: str) -> Outgoing:
    """The copy of a message that is parked: same body, id and signature, with the reason and where it came from."""
    headers: Mapping[str, str] = {
        **delivery.headers,
        **dead_headers(reason, exchange=delivery.exchange, routing_key=delivery.routing_key, queue=delivery.queue),
    }
    return Outgoing(
        exchange=DEAD.name,
        routing_key=dead_letter_key,
        body=delivery.body,
        message_id=delivery.message_id,
        type=delivery.type,
        headers=headers,
        content_type=delivery.content_type,
        correlation_id=delivery.correlation_id,
    )


def revived(letter: Delivery) -> Outgoing:
    """The message a dead letter once was, to be published again: its own exchange and key, our headers taken off.

    Raises `KeyError` for a message that is no dead letter.
    """
    ours = (REASON_HEADER, PARKED_AT_HEADER, ORIGINAL_EXCHANGE_HEADER, ORIGINAL_KEY_HEADER, ORIGINAL_QUEUE_HEADER)
    parked = dead_letter(letter, "", "")
    return replace(
        parked,
        exchange=letter.headers[ORIGINAL_EXCHANGE_HEADER],
        routing_key=letter.headers[ORIGINAL_KEY_HEADER],
        headers={name: value for name, value in letter.headers.items() if name not in ours},
    )
