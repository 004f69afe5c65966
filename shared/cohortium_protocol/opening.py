"""The server's half: check headers and votes, rebuild seeds, take the masks off (sections 1.5, 1.9, 1.10)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

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
from cohortium_protocol.errors import (
    BadSignature,
    BoxRefused,
    DealerFault,
    EchoMismatch,
    HeaderRefused,
    NotASurvivor,
    QuorumMissing,
    TooFewShares,
    UnmaskRefused,
    VectorRefused,
    WrongWindow,
)
from cohortium_protocol.keys import SealKey, edge_commit, prg_key, self_commit
from cohortium_protocol.masking import MaskPlan, MaskStream, Threads, Words, add_masks_threaded
from cohortium_protocol.plan import ChunkPlan
from cohortium_protocol.shares import SHARE_BYTES, rebuild
from cohortium_protocol.signing import verify
from cohortium_protocol.survivors import (
    CONTEXT_BYTES,
    SurvivorSet,
    abort_bytes,
    abort_quorum,
    check_place,
    echo_bytes,
    survivor_set,
    unmask_bytes,
    unmask_context,
)
from cohortium_protocol.upload import box_bytes, edges_root, header_bytes, header_hash, vec_root
from cohortium_protocol.window import RosterView

SEAL_OVERHEAD = 48


@dataclass(frozen=True, slots=True)
class OpenedShares:
    """One site's shares for one survivor set: of self seeds by owner, of pair seeds by (dealer, absent site)."""

    index: int
    survivors_hash: bytes
    own: Mapping[int, bytes] = field(repr=False)
    pairs: Mapping[tuple[int, int], bytes] = field(repr=False)


def check_header(view: RosterView, header: UploadHeader, step: int, vec_len: int) -> bytes:
    """The header_hash of a header that passes every check; `vec_len` is `ChunkPlan.vec_len`.

    Window, step and roster; the signature under the manifest; lengths; the root over the edge commitments; each box's
    size and signature. Raises `WrongWindow`, `NotAMember`, `BadSignature`, `HeaderRefused` or `BoxRefused`.
    """
    check_place(view, step, header)
    if header.roster_hash != view.roster_hash:
        raise WrongWindow("header for another roster")
    identity_pk = view.identity_pk(header.index)
    verify(identity_pk, header_bytes(header), header.sig)
    if header.vec_len != vec_len:
        raise HeaderRefused(f"a vector of {header.vec_len} bytes; the window has {vec_len}")
    if len(header.edge_commits) != view.n - 1 or len(header.boxes) != view.n - 1:
        raise HeaderRefused("one commitment and one box for each other member")
    if header.edges_root != edges_root(header.edge_commits):
        raise HeaderRefused("edges_root is not that of the commitments")
    digest = header_hash(header)
    for receiver, box in zip(view.others(header.index), header.boxes, strict=True):
        if len(box.box) != CONTEXT_BYTES + SHARE_BYTES * view.n + SEAL_OVERHEAD:
            raise BoxRefused(header.index, f"wrong size for {receiver}")
        try:
            verify(identity_pk, box_bytes(digest, receiver, box.box), box.sig)
        except BadSignature:
            raise BoxRefused(header.index, f"wrong signature for {receiver}") from None
    return digest


def check_vector(header: UploadHeader, digests: Sequence[bytes], plan: ChunkPlan) -> None:
    """The stored chunks' SHA-256 digests, in order, are those that the header signed. Raises `VectorRefused`."""
    if len(digests) != plan.chunk_count or vec_root(digests) != header.vec_root:
        raise VectorRefused(f"chunks of site {header.index} are not those of its header")


def edge_conflicts(headers: Mapping[int, UploadHeader]) -> frozenset[int]:
    """Sites in a pair whose two ends committed to different seeds.

    One of the two is wrong and it cannot be seen which, so both are left out and flagged, before anything is opened.
    The headers must have passed `check_header`.
    """
    conflicts: set[int] = set()
    indices = sorted(headers)
    for place, low in enumerate(indices):
        for high in indices[place + 1 :]:
            if _edge(headers[low], high) != _edge(headers[high], low):
                conflicts |= {low, high}
    return frozenset(conflicts)


def _edge(header: UploadHeader, other: int) -> bytes:
    """The commitment to s_uv in u's header; u's list skips u itself."""
    commit: bytes = header.edge_commits[other - 1 if other < header.index else other - 2]
    return commit


def freeze_survivors(view: RosterView, step: int, headers: Mapping[int, UploadHeader]) -> SurvivorSet:
    """U of these headers' sites; afterwards it never changes. Raises `TooFewSurvivors`, or `HeaderRefused` while two of
    the headers conflict."""
    conflicts = edge_conflicts(headers)
    if conflicts:
        raise HeaderRefused(f"sites {sorted(conflicts)} committed to different seeds")
    return survivor_set(view, step, {index: header_hash(header) for index, header in headers.items()})


def make_survivors(
    view: RosterView, survivors: SurvivorSet, headers: Mapping[int, UploadHeader], index: int
) -> Survivors:
    """The message to site `index`, with the boxes that the other members of U sealed to it."""
    boxes = []
    for dealer in survivors.members:
        if dealer != index:
            box = headers[dealer].boxes[view.others(dealer).index(index)]
            boxes.append(DealtBox(dealer=dealer, box=box.box, sig=box.sig))
    return Survivors(
        window_id=view.window_id,
        step=survivors.step,
        bitmap=survivors.bitmap,
        header_hashes=survivors.header_hashes,
        boxes=tuple(boxes),
    )


def check_echo(view: RosterView, survivors: SurvivorSet, echo: Echo) -> None:
    """A valid echo of this set. Raises `WrongWindow`, `NotAMember`, `EchoMismatch` or `BadSignature`."""
    check_place(view, survivors.step, echo)
    if echo.survivors_hash != survivors.digest:
        raise EchoMismatch(f"member {echo.index} echoed another set")
    verify(view.identity_pk(echo.index), echo_bytes(survivors.digest, echo.index), echo.sig)


def make_echo_cert(view: RosterView, survivors: SurvivorSet, echoes: Iterable[Echo]) -> EchoCert:
    """The certificate of checked echoes; repetitions are dropped. Raises `QuorumMissing` below t distinct members."""
    votes = {echo.index: Vote(index=echo.index, sig=echo.sig) for echo in echoes}
    if len(votes) < view.t:
        raise QuorumMissing(f"{len(votes)} of {view.t} echoes")
    return EchoCert(
        window_id=view.window_id,
        step=survivors.step,
        survivors_hash=survivors.digest,
        bitmap=survivors.bitmap,
        header_hashes=survivors.header_hashes,
        echoes=tuple(votes[index] for index in sorted(votes)),
    )


def check_unmask(view: RosterView, survivors: SurvivorSet, message: Unmask, seal_key: SealKey) -> OpenedShares:
    """Verify, open and take apart one site's shares.

    Raises `WrongWindow`, `NotAMember`, `EchoMismatch`, `BadSignature` or `UnmaskRefused`. That the shares are right
    ones shows only when secrets are rebuilt.
    """
    check_place(view, survivors.step, message)
    if message.survivors_hash != survivors.digest:
        raise EchoMismatch(f"member {message.index} answers for another set")
    signed = unmask_bytes(survivors.digest, message.index, message.sealed)
    verify(view.identity_pk(message.index), signed, message.sig)
    try:
        content = seal_key.open(message.sealed)
    except ValueError:
        raise UnmaskRefused(f"the shares of member {message.index} do not open") from None
    pairs = [(dealer, other) for dealer in survivors.members for other in survivors.absent(view)]
    if content[:CONTEXT_BYTES] != unmask_context(survivors.digest, message.index):
        raise UnmaskRefused(f"the shares of member {message.index} were sealed for another place")
    if len(content) != CONTEXT_BYTES + SHARE_BYTES * (len(survivors.members) + len(pairs)):
        raise UnmaskRefused(f"the shares of member {message.index} are not of the right number")
    shares = [content[at : at + SHARE_BYTES] for at in range(CONTEXT_BYTES, len(content), SHARE_BYTES)]
    own = dict(zip(survivors.members, shares, strict=False))
    return OpenedShares(message.index, survivors.digest, own, dict(zip(pairs, shares[len(own) :], strict=True)))


def reconstruct(
    view: RosterView, survivors: SurvivorSet, headers: Mapping[int, UploadHeader], shares: Sequence[OpenedShares]
) -> MaskPlan:
    """The masks on the sum of U: to add and to subtract so that none is left.

    Self seeds of U, and for each u in U and v outside U the pair seed from u's shares; each checked against the
    commitment in the dealer's header. Raises `EchoMismatch` for another set's shares, `TooFewShares` below t sites,
    `NotASurvivor` if a survivor's header is not the certified one, and `DealerFault` if no t shares of a secret fit its
    commitment.
    """
    given = {opened.index: opened for opened in shares}
    if any(opened.survivors_hash != survivors.digest for opened in shares):
        raise EchoMismatch("shares for another set")
    if len(given) < view.t:
        raise TooFewShares(f"{len(given)} of {view.t} sites")
    _check_certified(survivors, headers)
    plus: list[MaskStream] = []
    minus: list[MaskStream] = []
    for dealer in survivors.members:
        minus.append(_self_stream(view, survivors.step, headers[dealer], given))
        for other in survivors.absent(view):
            # In u's upload the mask toward v has sign + for v > u; here it is undone.
            undo = minus if other > dealer else plus
            undo.append(_pair_stream(view, survivors.step, (headers[dealer], other), given))
    return MaskPlan(tuple(plus), tuple(minus))


def _check_certified(survivors: SurvivorSet, headers: Mapping[int, UploadHeader]) -> None:
    for index, digest in zip(survivors.members, survivors.header_hashes, strict=True):
        if index not in headers or header_hash(headers[index]) != digest:
            raise NotASurvivor(f"the header of site {index} is not the certified one")


def _self_stream(view: RosterView, step: int, header: UploadHeader, given: Mapping[int, OpenedShares]) -> MaskStream:
    dealer = header.index

    def valid(seed: bytes) -> bool:
        return bool(self_commit(view.roster_hash, step, dealer, seed) == header.self_commit)

    seed = rebuild({x: opened.own[dealer] for x, opened in given.items()}, view.t, valid)
    if seed is None:
        raise DealerFault(dealer, "self seed")
    return MaskStream(prg_key(seed, "self", view.roster_hash, step))


def _pair_stream(
    view: RosterView, step: int, edge: tuple[UploadHeader, int], given: Mapping[int, OpenedShares]
) -> MaskStream:
    header, other = edge
    pair = (header.index, other)

    def valid(seed: bytes) -> bool:
        return edge_commit(view.roster_hash, step, pair, seed) == _edge(header, other)

    seed = rebuild({x: opened.pairs[pair] for x, opened in given.items()}, view.t, valid)
    if seed is None:
        raise DealerFault(header.index, f"pair seed toward {other}")
    return MaskStream(prg_key(seed, "pair", view.roster_hash, step))


def unmask_chunk(
    plan: ChunkPlan, masks: MaskPlan, index: int, chunks: Iterable[bytes | memoryview], threads: Threads | None = None
) -> Words:
    """Sum one chunk over U's uploads and take the masks off.

    `chunks` are the wire bytes of this chunk of every member of U, in any order; with a generator only one is in
    memory. Words of packed rings come back as uint16 whose upper bits mean nothing: the codec reads them.
    """
    total: Words = np.zeros(plan.chunk(index).words, dtype=plan.dtype)
    for chunk in chunks:
        np.add(total, plan.unpack(index, chunk), out=total)
    add_masks_threaded(total, masks, plan.mask_offset(index), threads)
    return total


def check_abort_vote(view: RosterView, step: int, vote: AbortVote) -> None:
    """A valid promise for this step. Raises `WrongWindow`, `NotAMember` or `BadSignature`."""
    check_place(view, step, vote)
    verify(view.identity_pk(vote.index), abort_bytes(view, step, vote.index), vote.sig)


def make_abort_cert(view: RosterView, step: int, votes: Iterable[AbortVote]) -> AbortCert:
    """The certificate of checked promises; repetitions are dropped. Raises `QuorumMissing` below n - t + 1 + c."""
    distinct = {vote.index: Vote(index=vote.index, sig=vote.sig) for vote in votes}
    if len(distinct) < abort_quorum(view):
        raise QuorumMissing(f"{len(distinct)} of {abort_quorum(view)} promises")
    return AbortCert(window_id=view.window_id, step=step, votes=tuple(distinct[index] for index in sorted(distinct)))
