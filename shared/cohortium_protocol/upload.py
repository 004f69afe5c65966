"""Trip 2 at the site: seeds, commitments, recovery boxes, masks and the signed header (sections 1.5, 1.6).

Double masking follows Bonawitz et al. (CCS 2017); that a survivor's own upload carries what is needed to take off its
pairwise masks follows the idea of Flamingo (Ma et al., IEEE S&P 2023).
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cohortium_messages.secure_sum import Box, UploadHeader
from cohortium_protocol import labels
from cohortium_protocol.encoding import H, le32, le64, pae, sha256
from cohortium_protocol.errors import OutOfOrder
from cohortium_protocol.keys import SEED_BYTES, WindowKeys, edge_commit, pair_seed, prg_key, seal, self_commit
from cohortium_protocol.masking import MaskPlan, MaskStream, Threads, Words, add_masks_threaded
from cohortium_protocol.plan import ChunkPlan
from cohortium_protocol.shares import split
from cohortium_protocol.signing import IdentityKey
from cohortium_protocol.window import RosterView


@dataclass(frozen=True, slots=True)
class Randomness:
    """Where secrets come from. Another source than the default is for known-answer tests only."""

    token: Callable[[int], bytes] = secrets.token_bytes
    randbelow: Callable[[int], int] = secrets.randbelow


SYSTEM = Randomness()


@dataclass(frozen=True, slots=True)
class PreparedUpload:
    """All of an upload but the vector.

    What of it leaves the site, and where: `self_commit`, `edge_commits` and `boxes` in the header (`sign_upload`);
    `masks` never; `own_box` only through `build_unmask`.
    """

    view: RosterView
    step: int
    index: int
    masks: MaskPlan = field(repr=False)
    self_commit: bytes = field(repr=False)
    edge_commits: tuple[bytes, ...] = field(repr=False)
    boxes: tuple[bytes, ...] = field(repr=False)
    """Sealed, for the other members, ascending."""
    own_box: bytes = field(repr=False)
    """Secret: this site's own shares, laid out as a box's content. Keep it in the spool for `build_unmask`."""


def prepare_upload(
    view: RosterView, step: int, index: int, keys: WindowKeys, randomness: Randomness = SYSTEM
) -> PreparedUpload:
    """Fresh self seed, pair seeds, shares, commitments and boxes of site `index` for one step.

    Each call draws a new self seed and so makes another upload: keep one, and write it and the masked chunks to disk
    before the first byte leaves (rule R1).
    """
    self_seed = randomness.token(SEED_BYTES)
    pairs = pair_seeds(view, step, index, keys)
    contents = _box_contents(view, step, index, (self_seed, *pairs.values()), randomness)
    return PreparedUpload(
        view=view,
        step=step,
        index=index,
        masks=_site_masks(view, step, index, self_seed, pairs),
        self_commit=self_commit(view.roster_hash, step, index, self_seed),
        edge_commits=tuple(edge_commit(view.roster_hash, step, (index, other), seed) for other, seed in pairs.items()),
        boxes=tuple(seal(view.entry(other).seal_pk, contents[other]) for other in view.others(index)),
        own_box=contents[index],
    )


def pair_seeds(view: RosterView, step: int, index: int, keys: WindowKeys) -> dict[int, bytes]:
    """s_uv for every other member v, ascending."""
    own = view.entry(index)
    seeds = {}
    for other in view.others(index):
        peer = view.entry(other)
        lower, higher = (own, peer) if index < other else (peer, own)
        seeds[other] = pair_seed(keys.mask, lower, higher, view.roster_hash, step)
    return seeds


def box_context(roster_hash: bytes, step: int, dealer: int, receiver: int) -> bytes:
    """The first 32 bytes of a box's content: binds roster, step, dealer and receiver, as a sealed box has no sender."""
    return H(labels.BOX, roster_hash, le32(step), le32(dealer), le32(receiver))


def _box_contents(
    view: RosterView, step: int, index: int, seeds: Sequence[bytes], randomness: Randomness
) -> dict[int, bytes]:
    """For each member i: context, then i's share of the self seed, then of each pair seed ascending."""
    shares = [split(seed, view.t, view.n, randomness.randbelow) for seed in seeds]
    return {
        receiver: box_context(view.roster_hash, step, index, receiver)
        + b"".join(of_seed[receiver - 1] for of_seed in shares)
        for receiver in view.indices
    }


def _site_masks(view: RosterView, step: int, index: int, self_seed: bytes, pairs: Mapping[int, bytes]) -> MaskPlan:
    own = MaskStream(prg_key(self_seed, "self", view.roster_hash, step))
    streams = {other: MaskStream(prg_key(seed, "pair", view.roster_hash, step)) for other, seed in pairs.items()}
    plus = tuple(stream for other, stream in streams.items() if other > index)
    minus = tuple(stream for other, stream in streams.items() if other < index)
    return MaskPlan((own, *plus), minus)


class SiteMasker:
    """Masks one vector chunk by chunk and keeps the chunks' digests."""

    def __init__(self, plan: ChunkPlan, masks: MaskPlan, threads: Threads | None = None) -> None:
        self._plan = plan
        self._masks = masks
        self._threads = threads
        self._digests: dict[int, bytes] = {}

    def mask_chunk(self, index: int, words: Words) -> bytes:
        """Mask `words` in place and return the chunk's wire bytes.

        Each chunk once: two different vectors under one mask would show their difference (rule R1), so a second call
        for the same chunk raises `OutOfOrder`.
        """
        if index in self._digests:
            raise OutOfOrder(f"chunk {index} is masked already")
        add_masks_threaded(words, self._masks, self._plan.mask_offset(index), self._threads)
        wire = self._plan.pack(index, words)
        self._digests[index] = sha256(wire)
        return wire

    def vec_root(self) -> bytes:
        """The root that the header signs. Raises `OutOfOrder` before all chunks are masked."""
        if len(self._digests) != self._plan.chunk_count:
            raise OutOfOrder("not all chunks are masked")
        return vec_root([self._digests[index] for index in range(self._plan.chunk_count)])


def vec_root(digests: Sequence[bytes]) -> bytes:
    """Binds the SHA-256 of every chunk's wire bytes, in order."""
    return H(labels.VECTOR, *digests)


def edges_root(edge_commits: Sequence[bytes]) -> bytes:
    """Binds all edge commitments of one site, ascending."""
    return H(labels.EDGES, *edge_commits)


def header_bytes(header: UploadHeader) -> bytes:
    """What the header's signature covers: window, roster, step, index, vector and commitments. The boxes are bound to
    it by their own signatures."""
    return pae(
        labels.UPLOAD,
        header.window_id,
        header.roster_hash,
        le32(header.step),
        le32(header.index),
        header.vec_root,
        le64(header.vec_len),
        header.self_commit,
        header.edges_root,
    )


def header_hash(header: UploadHeader) -> bytes:
    """SHA-256 of `header_bytes`."""
    return sha256(header_bytes(header))


def box_bytes(digest: bytes, receiver: int, box: bytes) -> bytes:
    """What a box's signature covers: the header's hash, the receiver and the sealed bytes."""
    return pae(labels.BOX_SIGNATURE, digest, le32(receiver), sha256(box))


def sign_upload(prepared: PreparedUpload, root: bytes, vec_len: int, identity: IdentityKey) -> UploadHeader:
    """The complete header message. `root` is `SiteMasker.vec_root()`, `vec_len` is `ChunkPlan.vec_len`.

    Everything in it leaves the site: hashes, commitments that hide their seeds, and boxes that only their receivers
    open.
    """
    unsigned = UploadHeader(
        window_id=prepared.view.window_id,
        roster_hash=prepared.view.roster_hash,
        step=prepared.step,
        index=prepared.index,
        vec_root=root,
        vec_len=vec_len,
        self_commit=prepared.self_commit,
        edges_root=edges_root(prepared.edge_commits),
        sig=bytes(64),
        edge_commits=prepared.edge_commits,
        boxes=tuple(Box(box=box, sig=bytes(64)) for box in prepared.boxes),
    )
    digest = header_hash(unsigned)
    receivers = prepared.view.others(prepared.index)
    boxes = tuple(
        Box(box=box, sig=identity.sign(box_bytes(digest, receiver, box)))
        for receiver, box in zip(receivers, prepared.boxes, strict=True)
    )
    return unsigned.model_copy(update={"sig": identity.sign(header_bytes(unsigned)), "boxes": boxes})
