"""A made-up patient's name in a hospital's tables, and the search for it in whatever left the hospital.

It is looked for as it is, in either case, in hexadecimal, in base64 wherever it may begin in the encoded text, and in
UTF-16; and so again in what archives and compressed streams hold. Of a person's identifier also its plain hashes: a
short identifier can be found from them by trying.
"""

import base64
import hashlib
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import Final

CANARY: Final = "ZZCANARY"
_STREAM: Final = re.compile(rb"\x78[\x01\x5e\x9c\xda]|\x1f\x8b\x08")
_ENTRY: Final = re.compile(rb"PK\x03\x04")
ENTRY_BYTES, DEFLATED = 30, 8
DEEPEST: Final = 3
"""Archives within archives are opened so far."""
MOST_UNPACKED: Final = 64 << 20


def _base64_forms(text: bytes) -> Iterator[bytes]:
    """What is in the base64 of any text that has `text` in it: by where it begins, without the parts beside it."""
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + text)
        first = -(-before * 8 // 6)
        yield encoded[first : (before + len(text)) * 8 // 6]
        yield base64.urlsafe_b64encode(b"\0" * before + text)[first : (before + len(text)) * 8 // 6]


_PLAIN: Final = CANARY.lower().encode()
_ANY_CASE: Final = (_PLAIN, _PLAIN.upper().hex().encode(), _PLAIN.hex().encode())
_AS_IT_IS: Final = (CANARY.encode("utf-16-le"), CANARY.encode("utf-16-be"), *_base64_forms(CANARY.encode()))


def hashes_of(persons: Iterable[str]) -> frozenset[bytes]:
    """Unsalted hashes of identifiers, as bytes and in hexadecimal."""
    found = set()
    for person in persons:
        for kind in ("sha256", "sha1", "md5"):
            digest = hashlib.new(kind, person.encode(), usedforsecurity=False).digest()
            found |= {digest, digest.hex().encode()}
    return frozenset(found)


def _unpacked(content: bytes) -> Iterator[bytes]:
    """What begins anywhere in these bytes as a compressed stream, or as an archive's compressed entry."""
    view = memoryview(content)
    for start in _STREAM.finditer(content):
        yield from _inflated(view[start.start() :], zlib.MAX_WBITS | 32)
    for start in _ENTRY.finditer(content):
        head = view[start.start() : start.start() + ENTRY_BYTES]
        if len(head) == ENTRY_BYTES and head[8] == DEFLATED:
            name, extra = int.from_bytes(head[26:28], "little"), int.from_bytes(head[28:30], "little")
            yield from _inflated(view[start.start() + ENTRY_BYTES + name + extra :], -zlib.MAX_WBITS)


def _inflated(packed: memoryview, bits: int) -> Iterator[bytes]:
    try:
        yield zlib.decompressobj(bits).decompress(packed, MOST_UNPACKED)
    except zlib.error:
        return  # a few bytes that look like a beginning


def leaks(content: bytes, hashes: frozenset[bytes] = frozenset(), depth: int = 0) -> list[str]:
    """What of the canary is in these bytes, in words; nothing if nothing."""
    lower = content.lower()
    found = [one.decode() for one in _ANY_CASE if one in lower]
    found += [f"encoded {one!r}" for one in _AS_IT_IS if one in content]
    found += [f"hash {one!r}" for one in hashes if one in content]
    if depth < DEEPEST:
        for inner in _unpacked(content):
            found += [f"packed: {one}" for one in leaks(inner, hashes, depth + 1)]
    return sorted(set(found))
