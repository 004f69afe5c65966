"""Identifiers and byte strings as they appear on the wire.

Bytes travel as lower-case hexadecimal text, because a reader can compare it by eye and every language parses it the
same way. Everything here is checked for its exact length on entry.
"""

import re
from typing import Annotated, Any, NewType

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
)

SiteId = NewType("SiteId", str)
"""A site: a UUID in its canonical lower-case form. `uuid.UUID(site_id).bytes` is the 16-byte form that is signed."""

StudyId = NewType("StudyId", str)
"""A study's name, unique in its federation: lower-case letters, digits and hyphens."""

RunId = NewType("RunId", str)
"""One execution of one study version: a UUID."""

UUID_PATTERN = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
STUDY_PATTERN = r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$"
_HEX = re.compile(r"^(?:[0-9a-f]{2})*$")


def _unhex(value: Any) -> Any:
    if isinstance(value, str):
        if not _HEX.match(value):
            raise ValueError("expected lower-case hexadecimal text")
        return bytes.fromhex(value)
    return value


def _hex_bytes(least: int, most: int) -> Any:
    def check(value: bytes) -> bytes:
        if not least <= len(value) <= most:
            wanted = f"{least}" if least == most else f"{least} to {most}"
            raise ValueError(f"expected {wanted} bytes, got {len(value)}")
        return value

    return Annotated[
        bytes,
        BeforeValidator(_unhex),
        AfterValidator(check),
        PlainSerializer(lambda value: value.hex(), return_type=str),
        WithJsonSchema({"type": "string", "pattern": "^[0-9a-f]*$", "minLength": 2 * least, "maxLength": 2 * most}),
    ]


SiteIdField = Annotated[SiteId, Field(pattern=UUID_PATTERN)]
RunIdField = Annotated[RunId, Field(pattern=UUID_PATTERN)]
StudyIdField = Annotated[StudyId, Field(pattern=STUDY_PATTERN)]

Bytes8 = _hex_bytes(8, 8)
Bytes16 = _hex_bytes(16, 16)
Bytes32 = _hex_bytes(32, 32)
Bytes64 = _hex_bytes(64, 64)
Bitmap = _hex_bytes(1, 8192)
Sealed = _hex_bytes(48, 1 << 19)
"""A libsodium sealed box: 48 bytes more than what it holds."""


class Wire(BaseModel):
    """A closed, immutable message part: an unknown field is an error, on both sides of a trust border."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings", allow_inf_nan=False)
