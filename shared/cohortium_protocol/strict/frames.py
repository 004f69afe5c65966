"""Binary frames of strict sessions, at most 1 MiB each: steps up to the aggregator, results down to all
sites (section 3.5).

Both begin with the same fixed header, which is the AEAD's associated data, and encrypt with AES-256-GCM under keys of
this session alone. The nonce counts (direction, step, part), so each sealer refuses to seal two payloads for one step:
under one nonce they would show their difference and the authentication key (NIST SP 800-38D, appendix A).

Up, the key is one that only this site and the aggregator can compute, so the tag authenticates the site. Down, one key
is shared by all sites, so that a result is encrypted once; the aggregator's signature keeps sites from forging results.
"""

import secrets
import struct
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cohortium_protocol import labels
from cohortium_protocol.encoding import H, le32, pae, sha256
from cohortium_protocol.errors import BadSignature, FrameRefused, SessionKeyRefused, StepReused, WrongWindow
from cohortium_protocol.keys import SealKey, WindowKeys, agree, hkdf, seal
from cohortium_protocol.signing import SIGNATURE_BYTES, IdentityKey, verify
from cohortium_protocol.strict.steps import MAX_PAYLOAD_BYTES, Kind
from cohortium_protocol.window import RosterView

MAX_FRAME_BYTES: Final = 1 << 20
PART_BYTES: Final = (1 << 20) - 1024
"""Bytes of a payload in every part but the last. A multiple of 8, so that a part of a sum holds whole words."""
TAG_BYTES: Final = 16
KEY_BYTES: Final = 32

_VERSION: Final = 1
_HEADER: Final = struct.Struct("<4sB16sIHBHHI32s")
_NONCE: Final = struct.Struct("<B5xIH")
_UP: Final = 1
_DOWN: Final = 2
_MAGIC: Final = {_UP: b"CHst", _DOWN: b"CHre"}

Frame = bytes | memoryview


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """The fixed header of a frame. `index` is the site's place in the roster, 0 in a result; `length` is of the whole
    payload, in bytes, over all its parts; `chain` is over all results before this step."""

    window_id: bytes
    step: int
    index: int
    kind: Kind
    part: int
    parts: int
    length: int
    chain: bytes

    @property
    def start(self) -> int:
        """Where this part begins in the payload."""
        return self.part * PART_BYTES

    @property
    def part_length(self) -> int:
        """Bytes of the payload in this part."""
        return min(PART_BYTES, self.length - self.start)


@dataclass(frozen=True, slots=True)
class FramePart:
    """An authentic part of a payload. `tag` is its AEAD tag: a part that is sent again has the same."""

    header: FrameHeader
    content: bytes = field(repr=False)
    tag: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SessionSecret:
    """The secret that the keys of a session's results come from: the aggregator's, told to every site of the roster."""

    secret: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> "SessionSecret":
        """A new secret from the operating system's randomness. Never use it for two sessions, nor again after a
        restart: the nonces count from zero."""
        return cls(secrets.token_bytes(KEY_BYTES))


def part_count(length: int) -> int:
    """Parts of a payload of `length` bytes; an empty one is one empty part."""
    return max(1, -(-length // PART_BYTES))


def _key_context(window_id: bytes, roster_hash: bytes, index: int) -> bytes:
    return H(labels.STRICT_KEY, window_id, roster_hash, le32(index))


def seal_session_key(
    secret: SessionSecret, window_id: bytes, roster_hash: bytes, index: int, site_seal_pk: bytes
) -> bytes:
    """`SessionKey.sealed` for site `index`: bound to window, roster and site."""
    return seal(site_seal_pk, _key_context(window_id, roster_hash, index) + secret.secret)


def open_session_key(
    sealed: bytes, window_id: bytes, roster_hash: bytes, index: int, seal_key: SealKey
) -> SessionSecret:
    """What `seal_session_key` sealed. Its message's envelope must have been verified as the aggregator's. Raises
    `SessionKeyRefused` if it does not open or is for another window, roster or site."""
    try:
        content = seal_key.open(sealed)
    except ValueError:
        raise SessionKeyRefused("the session key does not open") from None
    context = _key_context(window_id, roster_hash, index)
    if content[: len(context)] != context or len(content) != len(context) + KEY_BYTES:
        raise SessionKeyRefused("the session key is for another window, roster or site")
    return SessionSecret(content[len(context) :])


def link_key(own: SealKey, peer: bytes, roster_hash: bytes, index: int) -> bytes:
    """K_u, 32 bytes: what site u and the aggregator share, from the seal key of one and the public seal key of the
    other. Binds the roster (salt), and with it window and aggregator key, and the site's index. Raises `WeakKey`."""
    shared = agree(X25519PrivateKey.from_private_bytes(own.to_bytes()), peer)
    return hkdf(shared, roster_hash, pae(labels.STRICT_LINK, le32(index)), KEY_BYTES)


def result_key(secret: SessionSecret, view: RosterView) -> bytes:
    """The key of a session's results, 32 bytes: binds the roster (salt) and the window."""
    return hkdf(secret.secret, view.roster_hash, pae(labels.STRICT_RESULT_KEY, view.window_id), KEY_BYTES)


def _signed(roster_hash: bytes, fixed: bytes, body: Frame) -> bytes:
    return pae(labels.STRICT_RESULT, roster_hash, fixed, sha256(body))


class _Sealer:
    """Seals each step's payload once, and gives the same frames when it is asked for the same again."""

    def __init__(
        self, direction: int, view: RosterView, index: int, key: bytes, signer: IdentityKey | None = None
    ) -> None:
        self._direction = direction
        self._view = view
        self._index = index
        self._cipher = AESGCM(key)
        self._signer = signer
        self._last_step = -1
        self._last: tuple[Kind, bytes, bytes] | None = None
        self._frames: tuple[bytes, ...] = ()

    def seal(self, step: int, kind: Kind, chain: bytes, payload: bytes) -> tuple[bytes, ...]:
        """The frames of one step's payload, in order of their parts. `chain`: over all results before the step.

        The same call again gives the same frames. Raises `StepReused` for another payload of the same step and for an
        earlier step, `ValueError` beyond `MAX_PAYLOAD_BYTES`.
        """
        wanted = (kind, chain, payload)
        if step == self._last_step and wanted == self._last:
            return self._frames
        if step <= self._last_step:
            raise StepReused(f"step {step}; step {self._last_step} is sealed already")
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise ValueError(f"a payload of {len(payload)} bytes; at most {MAX_PAYLOAD_BYTES}")
        self._last_step, self._last = step, wanted
        parts = part_count(len(payload))
        self._frames = tuple(
            self._frame(
                FrameHeader(self._view.window_id, step, self._index, kind, part, parts, len(payload), chain), payload
            )
            for part in range(parts)
        )
        return self._frames

    def _frame(self, header: FrameHeader, payload: bytes) -> bytes:
        fixed = _pack(self._direction, header)
        content = payload[header.start : header.start + header.part_length]
        body = self._cipher.encrypt(_NONCE.pack(self._direction, header.step, header.part), content, fixed)
        if self._signer is None:
            return fixed + body
        return b"".join((fixed, self._signer.sign(_signed(self._view.roster_hash, fixed, body)), body))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(index={self._index}, ***)"


class StepSealer(_Sealer):
    """A site's end of its link to the aggregator: makes its `StepFrame`s."""

    def __init__(self, view: RosterView, index: int, keys: WindowKeys, aggregator_seal_pk: bytes) -> None:
        """`aggregator_seal_pk`: as in the window's signed parameters. Raises `WeakKey`."""
        super().__init__(_UP, view, index, link_key(keys.seal, aggregator_seal_pk, view.roster_hash, index))


class StepOpener:
    """The aggregator's ends of all sites' links: opens `StepFrame`s."""

    def __init__(self, view: RosterView, seal_key: SealKey) -> None:
        self._view = view
        self._seal_key = seal_key
        self._ciphers: dict[int, AESGCM] = {}

    def open(self, frame: Frame) -> FramePart:
        """The part that a site of the roster sealed for this session. Raises `FrameRefused`, `WrongWindow`,
        `NotAMember` or `WeakKey`; the frame then says nothing about any site, as anybody can have made it."""
        header = peek_step(frame)
        if header.window_id != self._view.window_id:
            raise WrongWindow("a step of another window")
        return _open(_UP, self._cipher(header.index), header, frame, _HEADER.size)

    def _cipher(self, index: int) -> AESGCM:
        cipher = self._ciphers.get(index)
        if cipher is None:
            peer = self._view.entry(index).seal_pk
            cipher = AESGCM(link_key(self._seal_key, peer, self._view.roster_hash, index))
            self._ciphers[index] = cipher
        return cipher

    def __repr__(self) -> str:
        return f"StepOpener(n={self._view.n}, ***)"


class ResultSealer(_Sealer):
    """The aggregator's maker of `ResultFrame`s: encrypted and signed once, for all sites."""

    def __init__(self, view: RosterView, secret: SessionSecret, aggregator: IdentityKey) -> None:
        super().__init__(_DOWN, view, 0, result_key(secret, view), aggregator)


class ResultOpener:
    """A site's opener of `ResultFrame`s."""

    def __init__(self, view: RosterView, secret: SessionSecret, aggregator_pk: bytes) -> None:
        """`aggregator_pk`: the pinned identity of the aggregator."""
        self._view = view
        self._cipher = AESGCM(result_key(secret, view))
        self._aggregator_pk = aggregator_pk

    def open(self, frame: Frame) -> FramePart:
        """The part of a result that the aggregator signed for this session; the signature is checked first. Raises
        `BadSignature`, `FrameRefused` or `WrongWindow`; the frame is then not the aggregator's, or not for us."""
        start = _HEADER.size + SIGNATURE_BYTES
        if not start + TAG_BYTES <= len(frame) <= MAX_FRAME_BYTES:
            raise FrameRefused(f"a frame of {len(frame)} bytes")
        signed = _signed(self._view.roster_hash, bytes(frame[: _HEADER.size]), frame[start:])
        try:
            verify(self._aggregator_pk, signed, bytes(frame[_HEADER.size : start]))
        except BadSignature:
            raise BadSignature("a result frame that the aggregator did not sign for this roster") from None
        header = _parse(_DOWN, frame, start)
        if header.window_id != self._view.window_id:
            raise WrongWindow("a result of another window")
        return _open(_DOWN, self._cipher, header, frame, start)

    def __repr__(self) -> str:
        return f"ResultOpener(n={self._view.n}, ***)"


def peek_step(frame: Frame) -> FrameHeader:
    """The header of a `StepFrame` WITHOUT any check of its tag, only to find the session and the key to check it with.
    Raises `FrameRefused`."""
    return _parse(_UP, frame, _HEADER.size)


def peek_result(frame: Frame) -> FrameHeader:
    """The header of a `ResultFrame` WITHOUT any check of its signature, only to find the session that it is for. Raises
    `FrameRefused`."""
    return _parse(_DOWN, frame, _HEADER.size + SIGNATURE_BYTES)


def _pack(direction: int, header: FrameHeader) -> bytes:
    return _HEADER.pack(
        _MAGIC[direction],
        _VERSION,
        header.window_id,
        header.step,
        header.index,
        header.kind,
        header.part,
        header.parts,
        header.length,
        header.chain,
    )


def _parse(direction: int, frame: Frame, start: int) -> FrameHeader:
    """The header of a frame whose sizes agree with each other. `start`: where its body begins."""
    if not start + TAG_BYTES <= len(frame) <= MAX_FRAME_BYTES:
        raise FrameRefused(f"a frame of {len(frame)} bytes")
    magic, version, window_id, step, index, kind, part, parts, length, chain = _HEADER.unpack_from(frame)
    if (magic, version) != (_MAGIC[direction], _VERSION) or kind not in tuple(Kind):
        raise FrameRefused("not a frame of this direction, version and kind")
    if (index == 0) != (direction == _DOWN):
        raise FrameRefused(f"index {index} in the wrong direction")
    if length > MAX_PAYLOAD_BYTES or parts != part_count(length) or part >= parts:
        raise FrameRefused(f"part {part} of {parts} of {length} bytes")
    header = FrameHeader(window_id, step, index, Kind(kind), part, parts, length, chain)
    if len(frame) != start + header.part_length + TAG_BYTES:
        raise FrameRefused(f"a frame of {len(frame)} bytes for a part of {header.part_length}")
    return header


def _open(direction: int, cipher: AESGCM, header: FrameHeader, frame: Frame, start: int) -> FramePart:
    nonce = _NONCE.pack(direction, header.step, header.part)
    try:
        content = cipher.decrypt(nonce, frame[start:], bytes(frame[: _HEADER.size]))
    except InvalidTag:
        raise FrameRefused("the frame was not sealed with this session's key") from None
    return FramePart(header, content, bytes(frame[-TAG_BYTES:]))
