"""Binary frames of at most 1 MiB: masked chunks up to the aggregator, model chunks down to the sites.

A frame is a fixed header, an Ed25519 signature over the header and the digest of the encrypted body, and that body. The
signature is checked before anything else is done with a frame.
"""

import secrets
import struct
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from nacl.exceptions import CryptoError
from nacl.secret import SecretBox

from cohortium_protocol import labels
from cohortium_protocol.encoding import H, le32, pae, sha256
from cohortium_protocol.errors import ChunkRefused
from cohortium_protocol.keys import SealKey, seal
from cohortium_protocol.signing import SIGNATURE_BYTES, IdentityKey, verify

MAX_FRAME_BYTES: Final = 1 << 20
_VERSION: Final = 1
_UP: Final = struct.Struct("<4sB16sIHIII32s")
_UP_MAGIC: Final = b"CHuc"
_DOWN: Final = struct.Struct("<4sB16sIIII32s")
_DOWN_MAGIC: Final = b"CHmd"

Frame = bytes | memoryview


@dataclass(frozen=True, slots=True)
class ChunkPlace:
    """Where a masked chunk belongs. `index` is the site's index in the roster."""

    window_id: bytes
    step: int
    index: int
    chunk: int
    chunk_count: int


@dataclass(frozen=True, slots=True)
class ChunkHeader:
    """Header of a masked chunk's frame. `length` and `sha256` are of the plaintext chunk: the wire bytes of the vector,
    whose digests the upload header's `vec_root` binds."""

    place: ChunkPlace
    length: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class ModelPlace:
    """Which chunk of which model version of which run."""

    run_id: str
    version: int
    chunk: int
    chunk_count: int


@dataclass(frozen=True, slots=True)
class ModelHeader:
    """Header of a model chunk's frame. `length` and `sha256` are of the plaintext chunk."""

    place: ModelPlace
    length: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class ModelKey:
    """The secret key of one model version's frames: one encryption for all sites, wrapped to each that asks."""

    secret: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> "ModelKey":
        """A new key from the operating system's randomness, for one version."""
        return cls(secrets.token_bytes(SecretBox.KEY_SIZE))


def seal_frame(place: ChunkPlace, chunk: bytes, identity: IdentityKey, aggregator_seal_pk: bytes) -> bytes:
    """One masked chunk as a frame: signed by the site, body sealed to the aggregator.

    Binds window, step, site, place and content. Sealing is randomised: a frame made again differs, its header does not.
    Raises `ValueError` if it would exceed 1 MiB.
    """
    fixed = _UP.pack(
        _UP_MAGIC,
        _VERSION,
        place.window_id,
        place.step,
        place.index,
        place.chunk,
        place.chunk_count,
        len(chunk),
        sha256(chunk),
    )
    return _frame(labels.CHUNK, fixed, seal(aggregator_seal_pk, chunk), identity)


def peek_header(frame: Frame) -> ChunkHeader:
    """The header WITHOUT any check of its signature, only to find the key to check it with. Raises `ChunkRefused`."""
    fields = _fields(_UP, _UP_MAGIC, frame)
    header = ChunkHeader(ChunkPlace(*fields[:5]), *fields[5:])
    _check_place(header.place.chunk, header.place.chunk_count)
    return header


def open_header(frame: Frame, identity_pk: bytes) -> ChunkHeader:
    """The header, after the site's signature, which covers the sealed body as well. Raises `ChunkRefused` or
    `BadSignature`."""
    _check_frame(labels.CHUNK, _UP, frame, identity_pk)
    return peek_header(frame)


def open_body(frame: Frame, header: ChunkHeader, seal_key: SealKey) -> bytes:
    """The plaintext chunk, of the length and digest that the verified `header` names. Raises `ChunkRefused`."""
    try:
        chunk = seal_key.open(bytes(frame[_UP.size + SIGNATURE_BYTES :]))
    except ValueError:
        raise ChunkRefused("the body does not open") from None
    _check_content(chunk, header.length, header.sha256)
    return chunk


def seal_model_frame(place: ModelPlace, chunk: bytes, key: ModelKey, aggregator: IdentityKey) -> bytes:
    """One chunk of a model version as a frame: signed by the aggregator, the same bytes for every site that asks.

    Binds run, version, place and content. The nonce is random and travels in the body. Raises `ValueError` over 1 MiB.
    """
    fixed = _DOWN.pack(
        _DOWN_MAGIC,
        _VERSION,
        UUID(place.run_id).bytes,
        place.version,
        place.chunk,
        place.chunk_count,
        len(chunk),
        sha256(chunk),
    )
    return _frame(labels.MODEL_CHUNK, fixed, bytes(SecretBox(key.secret).encrypt(chunk)), aggregator)


def open_model_frame(frame: Frame, key: ModelKey, aggregator_pk: bytes) -> tuple[ModelHeader, bytes]:
    """Header and plaintext chunk of a model frame, after the pinned aggregator's signature. Raises `ChunkRefused` or
    `BadSignature`."""
    _check_frame(labels.MODEL_CHUNK, _DOWN, frame, aggregator_pk)
    run, version, number, count, length, digest = _fields(_DOWN, _DOWN_MAGIC, frame)
    _check_place(number, count)
    header = ModelHeader(ModelPlace(str(UUID(bytes=run)), version, number, count), length, digest)
    try:
        chunk = SecretBox(key.secret).decrypt(bytes(frame[_DOWN.size + SIGNATURE_BYTES :]))
    except (CryptoError, ValueError):
        raise ChunkRefused("the body does not open") from None
    _check_content(chunk, header.length, header.sha256)
    return header, chunk


def _key_context(run_id: str, version: int) -> bytes:
    return H(labels.MODEL_KEY, UUID(run_id).bytes, le32(version))


def wrap_model_key(key: ModelKey, run_id: str, version: int, site_seal_pk: bytes) -> bytes:
    """The model key sealed to one site, bound to run and version."""
    return seal(site_seal_pk, _key_context(run_id, version) + key.secret)


def unwrap_model_key(sealed: bytes, run_id: str, version: int, seal_key: SealKey) -> ModelKey:
    """The key that `wrap_model_key` sealed. Raises `ChunkRefused` if it does not open or is for another version."""
    try:
        content = seal_key.open(sealed)
    except ValueError:
        raise ChunkRefused("the model key does not open") from None
    if content[:32] != _key_context(run_id, version) or len(content) != 32 + SecretBox.KEY_SIZE:
        raise ChunkRefused("the model key is for another version")
    return ModelKey(content[32:])


def _signed(label: bytes, fixed: bytes, body: Frame) -> bytes:
    return pae(label, fixed, sha256(body))


def _frame(label: bytes, fixed: bytes, body: bytes, identity: IdentityKey) -> bytes:
    frame = b"".join((fixed, identity.sign(_signed(label, fixed, body)), body))
    if len(frame) > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {len(frame)} bytes")
    return frame


def _check_frame(label: bytes, layout: struct.Struct, frame: Frame, public_key: bytes) -> None:
    body = layout.size + SIGNATURE_BYTES
    if not body <= len(frame) <= MAX_FRAME_BYTES:
        raise ChunkRefused(f"a frame of {len(frame)} bytes")
    signature = bytes(frame[layout.size : body])
    verify(public_key, _signed(label, bytes(frame[: layout.size]), frame[body:]), signature)


def _fields(layout: struct.Struct, magic: bytes, frame: Frame) -> tuple[Any, ...]:
    if len(frame) < layout.size + SIGNATURE_BYTES:
        raise ChunkRefused("the frame is too short")
    found, version, *rest = layout.unpack_from(frame)
    if (found, version) != (magic, _VERSION):
        raise ChunkRefused("not a frame of this kind and version")
    return tuple(rest)


def _check_place(chunk: int, count: int) -> None:
    if chunk >= count:
        raise ChunkRefused(f"chunk {chunk} of {count}")


def _check_content(chunk: bytes, length: int, digest: bytes) -> None:
    if len(chunk) != length or sha256(chunk) != digest:
        raise ChunkRefused("the body is not the one that the header names")
