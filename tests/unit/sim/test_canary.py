"""The search for a planted name finds it in every form that it is looked for, and does not find it where it is not."""

import base64
import gzip
import io
import zipfile
import zlib
from collections.abc import Callable

import pytest

from canary import CANARY, hashes_of, leaks

PERSON = f"{CANARY}-north-07"


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner/notes.txt", content)
    return file.getvalue()


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda text: text,
    "lower": lambda text: text.lower(),
    "hex": lambda text: text.hex().encode(),
    "HEX": lambda text: text.hex().upper().encode(),
    "utf-16": lambda text: text.decode().encode("utf-16-le"),
    "base64": base64.b64encode,
    "base64, one in": lambda text: base64.b64encode(b"x" + text),
    "base64, two in": lambda text: base64.urlsafe_b64encode(b"xy" + text),
    "zlib": zlib.compress,
    "gzip": gzip.compress,
    "zip": zipped,
    "zip in a zip": lambda text: zipped(zipped(text)),
    "hex in zlib": lambda text: zlib.compress(text.hex().encode()),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_planted_name_is_found(form: str) -> None:
    changed = FORMS[form](f"seen: {PERSON}.".encode())
    assert leaks(b"header\x00" + changed + b"\x00trailer")


def test_a_name_of_an_entry_of_an_archive_is_found() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{PERSON}.txt", b"")
    assert leaks(file.getvalue())


def test_a_plain_hash_of_an_identifier_is_found_and_another_ones_is_not() -> None:
    import hashlib

    digest = hashlib.sha256(PERSON.encode()).digest()
    for told in (digest, digest.hex().encode()):
        assert leaks(b'{"tag":"' + told + b'"}', hashes_of([PERSON]))
        assert leaks(told, hashes_of(["another"])) == []


def test_nothing_is_found_where_nothing_is() -> None:
    harmless = b"ZZ CANARY, a bird; \x78\x9c and \x1f\x8b " + base64.b64encode(bytes(range(256))) + b"00" * 100
    assert leaks(harmless) == []
