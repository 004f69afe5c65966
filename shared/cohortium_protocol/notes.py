"""Signed notes and checkpoints of a log (C2SP signed-note and tlog-checkpoint), Ed25519 with algorithm byte 0x01.

A note is text that ends in a newline, an empty line, and one line `— name base64(key hash || signature)` per signer.
The key hash only helps to find the key; trust comes from the keys that the reader has.
"""

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from cohortium_messages.governance import MAX_MEMBERS
from cohortium_protocol.encoding import sha256
from cohortium_protocol.errors import BadSignature, LogRefused
from cohortium_protocol.signing import SIGNATURE_BYTES, IdentityKey, verify

ED25519: Final = b"\x01"
MAX_SIGNATURES: Final = MAX_MEMBERS + 56
"""The log's line and one of each member of a study, with room for strangers."""
_DASH: Final = "\u2014 "
_NAME: Final = re.compile(r"^[^\s+]+$")
_SIZE: Final = re.compile(r"^(0|[1-9][0-9]{0,18})$")


def _decode(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise LogRefused(f"{what} is not base64") from None


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A name and its Ed25519 key. As text: `name+key hash in hex+base64(0x01 || key)`."""

    name: str
    public_key: bytes

    @property
    def key_hash(self) -> bytes:
        """First 4 bytes of SHA-256(name || newline || 0x01 || key)."""
        return sha256(self.name.encode() + b"\n" + ED25519 + self.public_key)[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.key_hash.hex()}+{base64.b64encode(ED25519 + self.public_key).decode()}"

    @classmethod
    def parse(cls, text: str) -> "VerifierKey":
        """Read a key's text. Raises `LogRefused`."""
        # The base64 part may itself hold a plus sign; neither name nor hash does.
        name, found, rest = text.partition("+")
        digest, found_too, encoded = rest.partition("+")
        if not (found and found_too and _NAME.match(name)):
            raise LogRefused("not a verifier key")
        key = _decode(encoded, "the key")
        if len(key) != 33 or key[:1] != ED25519:
            raise LogRefused("not an Ed25519 verifier key")
        verifier = cls(name, key[1:])
        if digest != verifier.key_hash.hex():
            raise LogRefused("the key hash is not that of the key")
        return verifier


def sign_note(text: str, name: str, key: IdentityKey) -> str:
    """The note of this text (which ends in a newline) with one signature. Raises `ValueError` for text that no note can
    hold."""
    if not text.endswith("\n") or any(char < " " and char != "\n" for char in text):
        raise ValueError("a note's text ends in a newline and has no control characters")
    if not _NAME.match(name):
        raise ValueError("a key name has no spaces and no plus")
    verifier = VerifierKey(name, key.public)
    signature = base64.b64encode(verifier.key_hash + key.sign(text.encode())).decode()
    return f"{text}\n{_DASH}{name} {signature}\n"


def open_note(note: str, keys: Iterable[VerifierKey]) -> str:
    """The text of a note that at least one of `keys` signed. A wrong signature under one of them refuses the whole
    note; signatures of keys unknown to us are passed over. Raises `LogRefused`."""
    text, separator, tail = note.rpartition("\n\n")
    if not separator or not tail.endswith("\n"):
        raise LogRefused("not a note")
    text += "\n"
    known = {(key.name, key.key_hash): key for key in keys}
    lines = tail[:-1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise LogRefused("too many signatures")
    verified = 0
    for line in lines:
        name, blob = _read_signature(line)
        key = known.get((name, blob[:4]))
        if key is not None:
            _verify_line(key, text, blob[4:])
            verified += 1
    if not verified:
        raise LogRefused("no signature by a known key")
    return text


def _read_signature(line: str) -> tuple[str, bytes]:
    name, separator, encoded = line.removeprefix(_DASH).partition(" ")
    if not line.startswith(_DASH) or not separator or not _NAME.match(name):
        raise LogRefused("not a signature line")
    blob = _decode(encoded, "a signature")
    if len(blob) <= 4:
        raise LogRefused("a signature is too short")
    return name, blob


def _verify_line(key: VerifierKey, text: str, signature: bytes) -> None:
    try:
        if len(signature) != SIGNATURE_BYTES:
            raise BadSignature
        verify(key.public_key, text.encode(), signature)
    except BadSignature:
        raise LogRefused(f"bad signature of {key.name}") from None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a log: its origin line, its number of leaves, its root."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """Origin, size and base64 root, a line each."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    @classmethod
    def parse(cls, text: str) -> "Checkpoint":
        """Read a checkpoint's text; extension lines are passed over. Raises `LogRefused`."""
        lines = text.split("\n")
        if len(lines) < 4 or lines[-1] or not lines[0] or not _SIZE.match(lines[1]):
            raise LogRefused("not a checkpoint")
        root = _decode(lines[2], "the root")
        if len(root) != 32:
            raise LogRefused("the root has 32 bytes")
        return cls(lines[0], int(lines[1]), root)


def sign_checkpoint(checkpoint: Checkpoint, key: IdentityKey) -> str:
    """The checkpoint as a note, signed under the log's origin as key name."""
    return sign_note(checkpoint.text(), checkpoint.origin, key)


def open_checkpoint(note: str, key: VerifierKey) -> Checkpoint:
    """The checkpoint of the log whose key this is; the origin must be the key's name. Raises `LogRefused`."""
    checkpoint = Checkpoint.parse(open_note(note, (key,)))
    if checkpoint.origin != key.name:
        raise LogRefused("the checkpoint is of another log")
    return checkpoint
