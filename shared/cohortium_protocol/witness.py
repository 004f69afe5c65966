"""Witnesses of a log: cosignatures (C2SP tlog-cosignature v1, Ed25519, algorithm byte 0x04), the request that asks for
one (C2SP tlog-witness, `add-checkpoint`), and what a witness must check before it gives one.

A log that shows two readers two histories must get both past its witnesses. A witness signs a checkpoint only if it
continues the last one that it signed, so with enough of them no two histories are both cosigned.
"""

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from cohortium_protocol import translog
from cohortium_protocol.encoding import sha256
from cohortium_protocol.errors import BadSignature, LogRefused, RemoteFault
from cohortium_protocol.notes import MAX_SIGNATURES, Checkpoint, VerifierKey, open_checkpoint
from cohortium_protocol.signing import SIGNATURE_BYTES, IdentityKey, verify

COSIGNATURE: Final = b"\x04"
MAX_PROOF: Final = 63
"""Hashes of a consistency proof: more than any log needs (C2SP tlog-witness)."""
MAX_REQUEST_BYTES: Final = 32 << 10

_DASH: Final = "\u2014 "
_OLD: Final = re.compile(r"^old (0|[1-9][0-9]{0,18})$")
_TIME_BYTES: Final = 8


class LogForked(RemoteFault):
    """The log's key signed a checkpoint that does not continue the one this witness has cosigned."""

    code = "LOG_FORKED"


def quorum(witnesses: int, colluding: int) -> int:
    """How many of `witnesses` must cosign so that no fork is possible with at most `colluding` of them dishonest.

    Two quorums of q share at least 2q - n witnesses, and one of those must be honest: 2q - n > f.
    """
    return (witnesses + colluding) // 2 + 1


def witness_name(federation: str, site_id: str) -> str:
    """The name under which a hospital cosigns, for all its studies in a federation."""
    return f"{federation}/witness/{site_id}"


@dataclass(frozen=True, slots=True)
class CosignerKey:
    """A witness's name and Ed25519 key. As text: `name+key hash in hex+base64(0x04 || key)`."""

    name: str
    public_key: bytes

    @property
    def key_hash(self) -> bytes:
        """First 4 bytes of SHA-256(name || newline || 0x04 || key)."""
        return sha256(self.name.encode() + b"\n" + COSIGNATURE + self.public_key)[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.key_hash.hex()}+{base64.b64encode(COSIGNATURE + self.public_key).decode()}"


def _cosigned_bytes(text: str, at: int) -> bytes:
    return f"cosignature/v1\ntime {at}\n{text}".encode()


def cosign(checkpoint: Checkpoint, name: str, key: IdentityKey, at: int) -> str:
    """The cosignature line of this witness over a checkpoint, made at `at` (seconds since 1970)."""
    cosigner = CosignerKey(name, key.public)
    signature = key.sign(_cosigned_bytes(checkpoint.text(), at))
    blob = cosigner.key_hash + at.to_bytes(_TIME_BYTES, "big") + signature
    return f"{_DASH}{name} {base64.b64encode(blob).decode()}\n"


def check_cosignature(line: str, checkpoint: Checkpoint, key: CosignerKey) -> int:
    """The time at which this witness cosigned the checkpoint. Raises `LogRefused` if it did not."""
    name, separator, encoded = line.removesuffix("\n").removeprefix(_DASH).partition(" ")
    if not line.startswith(_DASH) or not separator or name != key.name:
        raise LogRefused(f"not a signature line of {key.name}")
    try:
        blob = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise LogRefused(f"the cosignature of {key.name} is not base64") from None
    if len(blob) != 4 + _TIME_BYTES + SIGNATURE_BYTES or blob[:4] != key.key_hash:
        raise LogRefused(f"not a cosignature by the key of {key.name}")
    at = int.from_bytes(blob[4 : 4 + _TIME_BYTES], "big")
    try:
        verify(key.public_key, _cosigned_bytes(checkpoint.text(), at), blob[4 + _TIME_BYTES :])
    except BadSignature:
        raise LogRefused(f"bad cosignature of {key.name}") from None
    return at


def cosignatures(note: str, checkpoint: Checkpoint, keys: Iterable[CosignerKey]) -> dict[str, int]:
    """Who of `keys` cosigned this checkpoint, and when (seconds since 1970). Lines of others are passed over.

    Raises `LogRefused` where a line names one of them and is not theirs: somebody tampered with the note.
    """
    by_hash = {(key.name, key.key_hash): key for key in keys}
    lines = note.rpartition("\n\n")[2].splitlines()
    if len(lines) > MAX_SIGNATURES:
        raise LogRefused("too many signatures")
    found: dict[str, int] = {}
    for line in lines:
        name, _, encoded = line.removeprefix(_DASH).partition(" ")
        try:
            key = by_hash.get((name, base64.b64decode(encoded, validate=True)[:4]))
        except (binascii.Error, ValueError):
            raise LogRefused("a signature is not base64") from None
        if key is not None:
            found[name] = check_cosignature(line, checkpoint, key)
    return found


@dataclass(frozen=True, slots=True)
class Request:
    """A log asks a witness: my checkpoint `note` continues the one of `old` leaves that you have, here is the proof."""

    old: int
    proof: tuple[bytes, ...]
    note: str

    def text(self) -> str:
        """The body of C2SP tlog-witness `add-checkpoint`."""
        proof = "".join(f"{base64.b64encode(value).decode()}\n" for value in self.proof)
        return f"old {self.old}\n{proof}\n{self.note}"

    @classmethod
    def parse(cls, text: str) -> "Request":
        """Read a request. Raises `LogRefused`."""
        if len(text) > MAX_REQUEST_BYTES:
            raise LogRefused("the request is too long")
        head, separator, note = text.partition("\n\n")
        first, *lines = head.split("\n")
        old = _OLD.match(first)
        if not separator or old is None or len(lines) > MAX_PROOF:
            raise LogRefused("not a request for a cosignature")
        try:
            proof = tuple(base64.b64decode(line, validate=True) for line in lines)
        except (binascii.Error, ValueError):
            raise LogRefused("the consistency proof is not base64") from None
        if any(len(value) != 32 for value in proof):
            raise LogRefused("a hash of the consistency proof has not 32 bytes")
        return cls(int(old[1]), proof, note)


@dataclass(frozen=True, slots=True)
class Held:
    """The newest checkpoint that a witness has cosigned."""

    size: int
    root: bytes


NOTHING: Final = Held(0, translog.EMPTY_ROOT)
"""A witness that has seen no checkpoint of the log yet."""


@dataclass(frozen=True, slots=True)
class Continues:
    """The checkpoint continues what the witness holds: persist it, then cosign."""

    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """The request starts from another size than the witness holds: it must be made again from `size`."""

    size: int


def judge(request: Request, held: Held, key: VerifierKey) -> Continues | Elsewhere:
    """What a witness that holds `held` answers to the log of this key (C2SP tlog-witness).

    Raises `LogRefused` if the log did not sign the checkpoint or the request contradicts itself, `LogForked` if it
    signed a checkpoint that does not continue `held`: the same size with another root, or no valid consistency proof.
    """
    checkpoint = open_checkpoint(request.note, key)
    if checkpoint.size == held.size and checkpoint.root != held.root:
        raise LogForked(f"two roots of {checkpoint.size} leaves")
    if request.old != held.size or checkpoint.size < held.size:
        return Elsewhere(held.size)
    _continued(request.proof, held, checkpoint)
    return Continues(checkpoint)


def _continued(proof: Sequence[bytes], held: Held, checkpoint: Checkpoint) -> None:
    try:
        translog.verify_consistency(held.size, checkpoint.size, proof, held.root, checkpoint.root)
    except LogRefused:
        raise LogForked(f"{checkpoint.size} leaves do not continue the {held.size} that were cosigned") from None
