"""Pre-authentication encoding and the hash over it (section 1.4 of the protocol).

Nothing is ever hashed or signed over JSON or over plain concatenation of variable parts: every part carries its length,
and the first part is a label from `labels`, so two different lists of parts never have the same encoding.
"""

import hashlib
import struct
from uuid import UUID

from cohortium_messages.ids import SiteId


def le32(value: int) -> bytes:
    """Unsigned 32-bit little-endian. Raises `OverflowError` outside 0..2^32-1."""
    return value.to_bytes(4, "little")


def le64(value: int) -> bytes:
    """Unsigned 64-bit little-endian. Raises `OverflowError` outside 0..2^64-1."""
    return value.to_bytes(8, "little")


def f64(value: float) -> bytes:
    """IEEE 754 binary64, little-endian."""
    return struct.pack("<d", value)


def pae(*parts: bytes) -> bytes:
    """PASETO's pre-authentication encoding: LE64(count), then LE64(length) and the bytes of each part."""
    pieces = [le64(len(parts))]
    for part in parts:
        pieces.append(le64(len(part)))
        pieces.append(part)
    return b"".join(pieces)


def sha256(value: bytes | bytearray | memoryview) -> bytes:
    """SHA-256 of plain bytes, such as a chunk or a sealed box."""
    return hashlib.sha256(value).digest()


def H(label: bytes, *parts: bytes) -> bytes:  # noqa: N802 - the name in the protocol text
    """SHA-256 over the pre-authentication encoding of a label and its parts."""
    return sha256(pae(label, *parts))


def site_bytes(site_id: SiteId) -> bytes:
    """The 16 bytes of a site id: what is signed, and what rosters are sorted by."""
    return UUID(site_id).bytes
