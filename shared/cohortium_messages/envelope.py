"""The envelope of every control message and event: CloudEvents 1.0, structured JSON, RFC 8785 canonical bytes.

The sender's Ed25519 signature covers the exact bytes of the body and travels in two AMQP headers, so a receiver
verifies before it parses. The signed bytes are `PAE("cohortium/envelope/1", key id, body)`.
"""

from datetime import datetime
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import core_schema

from cohortium_messages.ids import Bytes8, Bytes32, StudyIdField, Wire

CONTENT_TYPE = "application/cloudevents+json"
CHUNK_CONTENT_TYPE = "application/vnd.cohortium.chunk"
KEY_ID_HEADER = "cohortium-key-id"
SIGNATURE_HEADER = "cohortium-signature"
TRACEPARENT_HEADER = "traceparent"
"""W3C Trace Context, level 1. Nobody need send it, nobody need believe it; `tracestate` and baggage are not used."""
REASON_HEADER = "cohortium-reason"
SIGNATURE_LABEL = b"cohortium/envelope/1"
MAX_CONTROL_BYTES = 4 << 20
"""A control message above this size is refused unread. The largest honest one is the boxes of a 200-site roster."""


PLACE: Final = frozenset({"series", "number", "previous"})


class Place(NamedTuple):
    """An audit event's place among those of one emitter in one study's log."""

    series: bytes
    """8 random bytes, drawn where the emitter's records begin: a hospital that has lost its own begins another one."""
    number: int = 1
    """1, 2, 3 and so on."""
    previous: bytes = bytes(32)
    """SHA-256 of the body of the event before it; 32 zero bytes for the first one."""


class Envelope(Wire):
    """CloudEvents 1.0 attributes, and `data`: the message itself, still unparsed.

    `id` is the idempotency key: a receiver does the work of one id once. `correlationid` ties together what belongs to
    one run or window. `study` routes an event to its audit log. `series`, `number` and `previous` are
    an audit event's place in its emitter's chain; other messages have none.
    """

    specversion: Literal["1.0"] = "1.0"
    id: Annotated[str, Field(min_length=8, max_length=64, pattern=r"^[0-9A-Za-z-]+$")]
    source: Annotated[str, Field(max_length=100, pattern=r"^/[a-z0-9/-]+$")]
    type: Annotated[str, Field(max_length=100, pattern=r"^cohortium\.[a-z_]+\.[a-z_]+\.v[0-9]+$")]
    time: datetime
    datacontenttype: Literal["application/json"] = "application/json"
    correlationid: Annotated[str, Field(max_length=64)] | None = None
    study: StudyIdField | None = None
    series: Bytes8 | None = None
    number: Annotated[int, Field(ge=1, lt=1 << 53)] | None = None
    previous: Bytes32 | None = None
    data: dict[str, Any]

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Only events in a chain have a place; all other fields are always there."""
        made = handler.resolve_ref_schema(handler(schema))
        made["required"] = [name for name in made.get("required", ()) if name not in PLACE]
        return made
