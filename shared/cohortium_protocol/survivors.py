"""Survivor sets, echoes, certificates, unmask shares and abort votes: trips 3 and 4 at the site (sections 1.5, 1.8).

The echo round keeps the opened set large: without it a server could show different sets to different sites and push all
but one honest site out (Bonawitz et al., CCS 2017, consistency check).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from cohortium_messages.secure_sum import (
    AbortCert,
    AbortVote,
    DealtBox,
    Echo,
    EchoCert,
    Survivors,
    Unmask,
    UploadHeader,
    Vote,
)
from cohortium_protocol import labels
from cohortium_protocol.encoding import H, le32, pae, sha256
from cohortium_protocol.errors import (
    BadSignature,
    BoxRefused,
    EchoMismatch,
    Malformed,
    OwnHeaderChanged,
    QuorumMissing,
    TooFewSurvivors,
    WrongWindow,
)
from cohortium_protocol.keys import SealKey, seal
from cohortium_protocol.shares import SHARE_BYTES
from cohortium_protocol.signing import IdentityKey, verify
from cohortium_protocol.upload import box_bytes, box_context, header_hash
from cohortium_protocol.window import RosterView

CONTEXT_BYTES = 32


@dataclass(frozen=True, slots=True)
class SurvivorSet:
    """A survivor set U of one step. `header_hashes` runs over `members`, ascending; `digest` is survivors_hash."""

    step: int
    members: tuple[int, ...]
    bitmap: bytes
    header_hashes: tuple[bytes, ...]
    digest: bytes

    def absent(self, view: RosterView) -> tuple[int, ...]:
        """R \\ U, ascending."""
        return tuple(index for index in view.indices if index not in self.members)


@dataclass(frozen=True, slots=True)
class OwnUpload:
    """What a site kept of its own upload: the header that it sent, and its own shares (secret)."""

    header: UploadHeader
    own_box: bytes = field(repr=False)
    """`PreparedUpload.own_box`."""


@dataclass(frozen=True, slots=True)
class CheckedSurvivors:
    """A survivor set that passed rule R4 at site `index`, with the opened boxes (secret) by dealer, its own among them
    if it is in the set."""

    survivors: SurvivorSet
    index: int
    boxes: Mapping[int, bytes] = field(repr=False)


class _Placed(Protocol):
    @property
    def window_id(self) -> bytes: ...
    @property
    def step(self) -> int: ...


def check_place(view: RosterView, step: int, message: _Placed) -> None:
    """The message is for this window and step. Raises `WrongWindow`."""
    if (message.window_id, message.step) != (view.window_id, step):
        raise WrongWindow("message for another window or step")


def survivor_set(view: RosterView, step: int, header_hashes: Mapping[int, bytes]) -> SurvivorSet:
    """The set of these members. Raises `TooFewSurvivors` below k_min.

    Its digest binds window, roster, step, who is in (bit i-1, low bit of a byte first) and every member's header.
    """
    members = tuple(sorted(header_hashes))
    for index in members:
        view.entry(index)
    if len(members) < view.k_min:
        raise TooFewSurvivors(f"{len(members)} of at least {view.k_min}")
    bits = sum(1 << (index - 1) for index in members)
    bitmap = bits.to_bytes(-(-view.n // 8), "little")
    hashes = tuple(header_hashes[index] for index in members)
    digest = H(labels.SURVIVORS, view.window_id, view.roster_hash, le32(step), bitmap, *hashes)
    return SurvivorSet(step, members, bitmap, hashes, digest)


def _read_set(view: RosterView, message: Survivors | EchoCert) -> SurvivorSet:
    """The set that a message describes. Raises `WrongWindow`, `Malformed` or `TooFewSurvivors`."""
    check_place(view, message.step, message)
    bits = int.from_bytes(message.bitmap, "little")
    if len(message.bitmap) != -(-view.n // 8) or bits >> view.n:
        raise Malformed("the bitmap does not fit the roster")
    members = [index for index in view.indices if bits >> (index - 1) & 1]
    if len(members) != len(message.header_hashes):
        raise Malformed("one header hash for each survivor")
    return survivor_set(view, message.step, dict(zip(members, message.header_hashes, strict=True)))


def check_survivors(
    view: RosterView, message: Survivors, index: int, own: OwnUpload | None, seal_key: SealKey
) -> CheckedSurvivors:
    """Rule R4 at site `index`; `own` is its upload, None if it sent none.

    |U| >= k_min; our own header, if we are in U, is the one that we signed; there is exactly one box from every other
    member of U, signed by its dealer for this header and this place, and it opens to what was dealt to us in this step.
    Raises `TooFewSurvivors`, `OwnHeaderChanged`, `BoxRefused`, `WrongWindow` or `Malformed`.
    """
    survivors = _read_set(view, message)
    hashes = dict(zip(survivors.members, survivors.header_hashes, strict=True))
    dealers = tuple(dealer for dealer in survivors.members if dealer != index)
    boxes = {}
    if index in hashes:
        boxes[index] = _check_own(view, message.step, (index, hashes[index]), own)
    if tuple(dealt.dealer for dealt in message.boxes) != dealers:
        raise Malformed("one box from each other survivor, ascending")
    for dealt in message.boxes:
        boxes[dealt.dealer] = _open_box(view, message.step, index, (dealt, hashes[dealt.dealer]), seal_key)
    return CheckedSurvivors(survivors, index, boxes)


def _check_own(view: RosterView, step: int, named: tuple[int, bytes], own: OwnUpload | None) -> bytes:
    index, digest = named
    if own is None or header_hash(own.header) != digest:
        raise OwnHeaderChanged("the survivor set names an upload that we did not send")
    if own.own_box[:CONTEXT_BYTES] != box_context(view.roster_hash, step, index, index):
        raise OwnHeaderChanged("our own shares are of another step")
    return own.own_box


def _open_box(view: RosterView, step: int, index: int, dealt: tuple[DealtBox, bytes], seal_key: SealKey) -> bytes:
    box, digest = dealt
    try:
        verify(view.identity_pk(box.dealer), box_bytes(digest, index, box.box), box.sig)
    except BadSignature:
        raise BoxRefused(box.dealer, "not signed for this header and receiver") from None
    try:
        content = seal_key.open(box.box)
    except ValueError:
        raise BoxRefused(box.dealer, "does not open") from None
    context = box_context(view.roster_hash, step, box.dealer, index)
    if len(content) != CONTEXT_BYTES + SHARE_BYTES * view.n or content[:CONTEXT_BYTES] != context:
        raise BoxRefused(box.dealer, "dealt for another place")
    return content


def echo_bytes(survivors_hash: bytes, index: int) -> bytes:
    """What an echo signs."""
    return pae(labels.ECHO, survivors_hash, le32(index))


def build_echo(view: RosterView, checked: CheckedSurvivors, identity: IdentityKey) -> Echo:
    """Trip 3. Once per (window, step): persist the survivors_hash first, and afterwards only ever send that one
    again."""
    survivors = checked.survivors
    return Echo(
        window_id=view.window_id,
        step=survivors.step,
        survivors_hash=survivors.digest,
        index=checked.index,
        sig=identity.sign(echo_bytes(survivors.digest, checked.index)),
    )


def verify_echo_cert(view: RosterView, cert: EchoCert) -> SurvivorSet:
    """The set that at least t distinct members echoed.

    Two sets of one step cannot both have a certificate while at most c sites collude, since 2(t - c) > n - c. Raises
    `QuorumMissing`, `BadSignature`, `EchoMismatch`, `TooFewSurvivors`, `WrongWindow` or `Malformed`.
    """
    survivors = _read_set(view, cert)
    if survivors.digest != cert.survivors_hash:
        raise EchoMismatch("the certificate's hash is not that of its set")
    _check_votes(view, cert.echoes, view.t, lambda index: echo_bytes(survivors.digest, index))
    return survivors


class _SignedBytes(Protocol):
    def __call__(self, index: int, /) -> bytes: ...


def _check_votes(view: RosterView, votes: Iterable[Vote], needed: int, signed: _SignedBytes) -> None:
    voters: set[int] = set()
    for vote in votes:
        if vote.index in voters:
            raise Malformed(f"member {vote.index} votes twice")
        verify(view.identity_pk(vote.index), signed(vote.index), vote.sig)
        voters.add(vote.index)
    if len(voters) < needed:
        raise QuorumMissing(f"{len(voters)} of {needed} votes")


def frees_update(view: RosterView, cert: EchoCert, index: int) -> bool:
    """Rule R6(a): a valid certificate whose set leaves this site out. Its upload then stays masked for ever and its
    update may be used again. Raises as `verify_echo_cert`."""
    return index not in verify_echo_cert(view, cert).members


def unmask_bytes(survivors_hash: bytes, index: int, sealed: bytes) -> bytes:
    """What an unmask answer signs."""
    return pae(labels.UNMASK, survivors_hash, le32(index), sha256(sealed))


def unmask_context(survivors_hash: bytes, index: int) -> bytes:
    """The first 32 bytes of what is sealed to the aggregator: binds the set (so window, roster and step) and the
    sender."""
    return H(labels.UNMASK_BOX, survivors_hash, le32(index))


def select_shares(view: RosterView, survivors: SurvivorSet, boxes: Mapping[int, bytes]) -> bytes:
    """Rule R5, the one place that decides which shares leave: for u in U the share of u's self seed; for u in U and v
    not in U the share of s_uv from u's box. All self shares first, then the pair shares by u, then v.

    Never the self share of a site outside U, never a pair share with both ends in U: so never both masks of one site.
    """
    absent = survivors.absent(view)
    own = [_share(boxes[dealer], 0) for dealer in survivors.members]
    pairs = [
        _share(boxes[dealer], 1 + view.others(dealer).index(other)) for dealer in survivors.members for other in absent
    ]
    return b"".join(own + pairs)


def _share(box: bytes, place: int) -> bytes:
    start = CONTEXT_BYTES + place * SHARE_BYTES
    return box[start : start + SHARE_BYTES]


def build_unmask(
    view: RosterView, checked: CheckedSurvivors, cert: EchoCert, identity: IdentityKey, aggregator_seal_pk: bytes
) -> Unmask:
    """Trip 4: the shares of rule R5 (`select_shares`), sealed to the aggregator.

    Only for the set that this site echoed, or has persisted after the same checks: `EchoMismatch` otherwise. Persist
    the answer before it is sent; one answer per (window, step). Raises as `verify_echo_cert` too.
    """
    survivors = verify_echo_cert(view, cert)
    if survivors != checked.survivors:
        raise EchoMismatch("the certificate is for another set than the one that we checked")
    content = unmask_context(survivors.digest, checked.index) + select_shares(view, survivors, checked.boxes)
    sealed = seal(aggregator_seal_pk, content)
    return Unmask(
        window_id=view.window_id,
        step=survivors.step,
        survivors_hash=survivors.digest,
        index=checked.index,
        sealed=sealed,
        sig=identity.sign(unmask_bytes(survivors.digest, checked.index, sealed)),
    )


def abort_bytes(view: RosterView, step: int, index: int) -> bytes:
    """What an abort vote signs."""
    return pae(labels.ABORT, view.window_id, view.roster_hash, le32(step), le32(index))


def build_abort_vote(view: RosterView, step: int, index: int, identity: IdentityKey) -> AbortVote:
    """The promise: I have not sent and will never send Unmask for this step. Only if none was made; persist it
    first."""
    return AbortVote(
        window_id=view.window_id, step=step, index=index, sig=identity.sign(abort_bytes(view, step, index))
    )


def abort_quorum(view: RosterView) -> int:
    """n - t + 1 + c: of so many promises at least n - t + 1 are honest, so no t shares of any self seed can meet."""
    return view.n - view.t + 1 + view.collusion


def verify_abort_cert(view: RosterView, cert: AbortCert) -> None:
    """Rule R6(b): enough distinct valid promises, so every update of this step is free again. Raises `QuorumMissing`,
    `BadSignature`, `WrongWindow` or `Malformed`."""
    check_place(view, cert.step, cert)
    _check_votes(view, cert.votes, abort_quorum(view), lambda index: abort_bytes(view, cert.step, index))
