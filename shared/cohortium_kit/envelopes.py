"""Signed envelopes: from a message to the bytes on the wire, and back through every check in its fixed order."""

from dataclasses import dataclass
from typing import Protocol
from uuid import uuid4

import rfc8785
from pydantic import ValidationError

from cohortium_kit import telemetry
from cohortium_kit.bus import Delivery, Outgoing
from cohortium_kit.clock import Clock
from cohortium_kit.errors import CohortiumError, Poison
from cohortium_messages.envelope import KEY_ID_HEADER, MAX_CONTROL_BYTES, PLACE, SIGNATURE_HEADER, Envelope, Place
from cohortium_messages.ids import StudyId
from cohortium_messages.registry import MESSAGE_TYPES, Message


class BadSignature(CohortiumError):
    """The key is unknown or no longer good, or it did not make this signature over these bytes."""


class Signer(Protocol):
    """Holds the sender's private key. Implemented by `cohortium_protocol`."""

    @property
    def key_id(self) -> str:
        """The name under which a receiver finds the public key."""
        ...

    def sign(self, body: bytes) -> bytes:
        """The signature over the envelope label, the key id and the body."""
        ...


class Verifier(Protocol):
    """Knows the public keys. Implemented by `cohortium_protocol`."""

    def verify(self, key_id: str, body: bytes, signature: bytes) -> None:
        """Return if this key made this signature over this body; raise `BadSignature` otherwise."""
        ...


@dataclass(frozen=True, slots=True)
class Sender:
    """Makes signed messages in the name of one service or site; `source` is its CloudEvents source, `/site/<id>`."""

    source: str
    signer: Signer
    clock: Clock

    def outgoing(
        self,
        exchange: str,
        routing_key: str,
        message: Message,
        *,
        message_id: str | None = None,
        correlation_id: str | None = None,
        study: StudyId | None = None,
        persistent: bool = True,
        ttl_ms: int | None = None,
        place: Place | None = None,
    ) -> Outgoing:
        """Sign one message. Give `message_id` where doing the work again must give the same message, and `place` to an
        event in a chain (`cohortium_kit.chains`).

        Raises `ValueError` if the message is larger than a receiver would read.
        """
        envelope = Envelope(
            id=message_id or str(uuid4()),
            source=self.source,
            type=message.type_name,
            time=self.clock.now(),
            correlationid=correlation_id,
            study=study,
            **({} if place is None else place._asdict()),
            data={},
        )
        body = _canonical(envelope, message)
        if len(body) > MAX_CONTROL_BYTES:
            raise ValueError(f"{message.type_name} has {len(body)} bytes; no receiver reads over {MAX_CONTROL_BYTES}")
        return Outgoing(
            exchange=exchange,
            routing_key=routing_key,
            body=body,
            message_id=envelope.id,
            type=envelope.type,
            headers={
                KEY_ID_HEADER: self.signer.key_id,
                SIGNATURE_HEADER: self.signer.sign(body).hex(),
                **telemetry.headers_for(message),
            },
            persistent=persistent,
            ttl_ms=ttl_ms,
            correlation_id=correlation_id,
        )


def _canonical(envelope: Envelope, message: Message) -> bytes:
    """RFC 8785 bytes of the envelope with this message in it. Of a message to a thousand sites only the first copy is
    written out: the names of the envelope's fields sort `correlationid`, `data`, and then all others."""
    without = {"data"} if envelope.series is not None else {"data", *PLACE}
    rest = envelope.model_dump(mode="json", exclude=without)
    correlation = rfc8785.dumps(rest.pop("correlationid"))
    return b'{"correlationid":%b,"data":%b,%b' % (correlation, _data(message), rfc8785.dumps(rest)[1:])


def _data(message: Message) -> bytes:
    global _newest
    if _newest is None or _newest[0] is not message:
        _newest = (message, rfc8785.dumps(message.model_dump(mode="json")))
    return _newest[1]


_newest: tuple[Message, bytes] | None = None


def open_envelope(delivery: Delivery, verifier: Verifier) -> tuple[Envelope, Message, str]:
    """The envelope, its message and the id of the key that signed it.

    Checks in this order: size, signature, JSON, schema; so nothing is parsed that a known key did not sign. Every
    failure is a `Poison` with a stable code: `too_large`, `unsigned`, `bad_signature`, `not_json`, `unknown_type`,
    `bad_schema:<field>`.
    """
    key_id = _check_signature(delivery, verifier)
    envelope = _parse_envelope(delivery)
    model = MESSAGE_TYPES.get(envelope.type)
    if model is None:
        raise Poison("unknown_type", envelope.type)
    try:
        message = model.model_validate(envelope.data)
    except ValidationError as error:
        raise _bad_schema(error, "data") from None
    return envelope, message, key_id


def _check_signature(delivery: Delivery, verifier: Verifier) -> str:
    if len(delivery.body) > MAX_CONTROL_BYTES:
        raise Poison("too_large", f"{len(delivery.body)} bytes")
    key_id = delivery.headers.get(KEY_ID_HEADER)
    signature_hex = delivery.headers.get(SIGNATURE_HEADER)
    if not key_id or not signature_hex:
        raise Poison("unsigned")
    try:
        verifier.verify(key_id, delivery.body, bytes.fromhex(signature_hex))
    except (BadSignature, ValueError):
        raise Poison("bad_signature") from None
    return key_id


def _parse_envelope(delivery: Delivery) -> Envelope:
    try:
        envelope = Envelope.model_validate_json(delivery.body)
    except ValidationError as error:
        if any(item["type"] == "json_invalid" for item in error.errors(include_input=False)):
            raise Poison("not_json") from None
        raise _bad_schema(error) from None
    # The signature covers the body only: an id swapped in the headers would let one message be done twice.
    if delivery.message_id != envelope.id:
        raise Poison("bad_schema:id", "the message id differs from the signed id")
    return envelope


def _bad_schema(error: ValidationError, prefix: str = "") -> Poison:
    # Only the place of the first fault, never the value: what a site wrote there may be anything.
    first = error.errors(include_input=False, include_context=False, include_url=False)[0]
    path = ".".join([prefix] * bool(prefix) + [str(part)[:40] for part in first["loc"]])
    return Poison(f"bad_schema:{path[:120]}", first["type"])
