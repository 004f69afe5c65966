"""Messages of the secure sum SA/1. What is signed and hashed is rebuilt by `cohortium_protocol` from these fields with
PAE over raw bytes; the JSON is only transport. Site messages carry `sig`, made with the site's identity key.
"""

from typing import Annotated, Literal

from pydantic import Field

from cohortium_messages.ids import (
    Bitmap,
    Bytes16,
    Bytes32,
    Bytes64,
    RunIdField,
    Sealed,
    SiteIdField,
    StudyIdField,
    Wire,
)
from cohortium_messages.registry import Message
from cohortium_messages.study import Deadlines
from cohortium_messages.witness import Logged

U32 = Annotated[int, Field(ge=0, lt=1 << 32)]
Index = Annotated[int, Field(ge=1, le=200)]
"""A site's place in a roster, from 1; also its Shamir x-coordinate."""

MAX_CHUNK_BYTES = (1 << 20) - 4096
"""Words of a masked vector in one chunk, in bytes, at most: sealed and framed it stays below 1 MiB. Chunk limits are a
multiple of 2,048 bytes, so that a chunk of a rotated 16-bit vector holds whole blocks of 1,024."""

Purpose = Literal["statistics", "refinement", "update", "training", "evaluation"]
"""refinement: a second look at the features whose bins the statistics left uneven, for trees. training: a strict
session in which LightGBM grows the whole model."""


class ModelRef(Wire):
    """A published model version by number and digest."""

    version: U32
    model_hash: Bytes32


class VectorSpec(Wire):
    """How a site's numbers become words of the ring Z/2^ring_bits; section 1.7 and 1.13.

    `grid`: floats, clipped to `clip_norm_l2`, weighted up to `weight_cap` rows, on a common grid. `integer`: integers
    as they are. `dimension` counts coordinates before padding, choice and tail.
    """

    encoding: Literal["grid", "integer"]
    dimension: Annotated[int, Field(ge=1, le=1 << 33)]
    ring_bits: Literal[8, 12, 16, 32, 64]
    rotate: bool
    rotation_seed: Bytes32
    keep: Annotated[float, Field(gt=0, le=1)]
    keep_seed: Bytes32
    clip_norm_l2: Annotated[float, Field(gt=0)]
    range_factor: Annotated[float, Field(gt=0)]
    weight_cap: Annotated[int, Field(ge=1, le=1 << 40)]
    chunk_bytes: Annotated[int, Field(ge=2048, le=MAX_CHUNK_BYTES, multiple_of=2048)]


class StrictSpec(Wire):
    """What a strict session adds to a window (kind `strict`): pairwise masks only, all of the roster in every step.

    `trees_done` rounds of the run stand already, and `chain` is the hash chain over all results that led to them (zeros
    where there are none): sites grow them again from their journals, without a single sum. With `from_model`, after a
    change of the cohort, the rounds so far are that model instead, and nothing is replayed.
    """

    step_s: Annotated[float, Field(gt=0, le=86400)]
    rounds: Annotated[int, Field(ge=1, le=5000)]
    trees_done: Annotated[int, Field(ge=0, le=5000)]
    chain: Bytes32
    from_model: ModelRef | None = None
    total_rows: Annotated[int, Field(ge=1, le=1 << 40)]
    """Training rows of all sites, from the statistics: with the study it fixes the scale of every fixed-point sum."""


class NoiseSpec(Wire):
    """What every site does to a vector for differential privacy before it is masked.

    The vector is put on a lattice of `step` (in the units of the vector), and each coordinate gets a share of discrete
    Gaussian noise with the standard deviation `site_sigma`, in lattice steps. A site works the numbers out from the
    study version that it approved and the manifest, and refuses others.
    """

    multiplier: Annotated[float, Field(gt=0, le=10_000)]
    sampling_rate: Annotated[float, Field(gt=0, le=1)]
    clip: Annotated[float, Field(gt=0, le=1e6)]
    step: Annotated[float, Field(gt=0, le=1e6)]
    site_sigma: Annotated[float, Field(ge=0, le=1e12)]
    """0 in mode `local`, where the noise is in every training step and not in the sum."""


PrivacyMode = Literal["none", "local", "distributed", "site"]


class WindowParams(Wire):
    """Everything a site must agree to before it answers; `params_hash` covers every field."""

    study_id: StudyIdField
    study_digest: Bytes32
    run_id: RunIdField
    window_id: Bytes16
    purpose: Purpose
    kind: Literal["sync", "buffered", "strict"]
    round: U32
    manifest_hash: Bytes32
    bases: Annotated[tuple[ModelRef, ...], Field(max_length=1001)]
    max_staleness: Annotated[int, Field(ge=0, le=1000)]
    vector: VectorSpec
    privacy_mode: PrivacyMode
    target_cohort: Annotated[int, Field(ge=3, le=200)]
    least_cohort: Annotated[int, Field(ge=3, le=200)]
    deadlines: Deadlines
    aggregator_seal_pk: Bytes32
    noise: NoiseSpec | None = None
    """There unless `privacy_mode` is `none` or nothing of this window depends on any row."""
    strict: StrictSpec | None = None
    """There if and only if `kind` is `strict`; `vector` then says only the ring, as every step has its own length."""


class WindowOpen(Message, type_name="cohortium.window.open.v1"):
    """Scheduler to site: a sum is wanted. `sig` is the scheduler's over params_hash's bytes. `logged`: the event that
    authorised it is in the study's log; a site does nothing without, services among themselves need none."""

    params: WindowParams
    sig: Bytes64
    logged: Logged | None = None


class Ready(Message, type_name="cohortium.window.ready.v1"):
    """Site to scheduler, trip 1: an update is finished and these are its fresh keys. No data."""

    window_id: Bytes16
    site_id: SiteIdField
    params_hash: Bytes32
    base_model_hash: Bytes32
    mask_pk: Bytes32
    seal_pk: Bytes32
    sig: Bytes64


class Roster(Message, type_name="cohortium.window.roster.v1"):
    """Aggregator to site: who takes part. Self-certifying: each entry is signed by its site. Entries are sorted by
    the 16 bytes of the site id."""

    window_id: Bytes16
    params_hash: Bytes32
    n: Index
    t: Index
    c: Annotated[int, Field(ge=0, le=198)]
    k_min: Index
    entries: Annotated[tuple[Ready, ...], Field(min_length=3, max_length=200)]


class Box(Wire):
    """Recovery material for one roster member, sealed to its `seal_pk`; the signature binds it to its header."""

    box: Sealed
    sig: Bytes64


class UploadHeader(Message, type_name="cohortium.window.upload.v1"):
    """Site to aggregator, trip 2, beside the chunks. `edge_commits` and `boxes` run over the other members,
    ascending."""

    window_id: Bytes16
    roster_hash: Bytes32
    step: U32
    index: Index
    vec_root: Bytes32
    vec_len: Annotated[int, Field(ge=1, le=1 << 36)]
    self_commit: Bytes32
    edges_root: Bytes32
    sig: Bytes64
    edge_commits: Annotated[tuple[Bytes32, ...], Field(min_length=2, max_length=199)]
    boxes: Annotated[tuple[Box, ...], Field(min_length=2, max_length=199)]


class Receipt(Message, type_name="cohortium.window.receipt.v1"):
    """Aggregator to site: which chunks are stored (bit k of byte k//8, LSB first) and whether the header is."""

    window_id: Bytes16
    step: U32
    header_stored: bool
    chunks_stored: Bitmap
    complete: bool


class ReceiptAsked(Message, type_name="cohortium.window.receipt_asked.v1"):
    """Site to aggregator after a broken connection: what have you got of mine?"""

    window_id: Bytes16
    step: U32
    index: Index


class DealtBox(Wire):
    dealer: Index
    box: Sealed
    sig: Bytes64


class Survivors(Message, type_name="cohortium.window.survivors.v1"):
    """Aggregator to one site: whose uploads are to be summed, and the boxes that those sites sealed to it."""

    window_id: Bytes16
    step: U32
    bitmap: Bitmap
    header_hashes: Annotated[tuple[Bytes32, ...], Field(min_length=1, max_length=200)]
    boxes: Annotated[tuple[DealtBox, ...], Field(max_length=200)]


class Echo(Message, type_name="cohortium.window.echo.v1"):
    """Site to aggregator, trip 3: the survivor set that this site was shown."""

    window_id: Bytes16
    step: U32
    survivors_hash: Bytes32
    index: Index
    sig: Bytes64


class Vote(Wire):
    index: Index
    sig: Bytes64


class EchoCert(Message, type_name="cohortium.window.echo_cert.v1"):
    """Aggregator to site: at least t echoes of one survivors_hash. Also the answer to an upload that came too late."""

    window_id: Bytes16
    step: U32
    survivors_hash: Bytes32
    bitmap: Bitmap
    header_hashes: Annotated[tuple[Bytes32, ...], Field(min_length=1, max_length=200)]
    echoes: Annotated[tuple[Vote, ...], Field(min_length=1, max_length=200)]


class Unmask(Message, type_name="cohortium.window.unmask.v1"):
    """Site to aggregator, trip 4: the shares of rule R5, sealed to the aggregator."""

    window_id: Bytes16
    step: U32
    survivors_hash: Bytes32
    index: Index
    sealed: Sealed
    sig: Bytes64


class AbortAsked(Message, type_name="cohortium.window.abort_asked.v1"):
    """Aggregator to site: this window will not be opened; please promise never to unmask it."""

    window_id: Bytes16
    step: U32
    reason: Annotated[str, Field(max_length=64, pattern=r"^[A-Z_]+$")]


class AbortVote(Message, type_name="cohortium.window.abort_vote.v1"):
    """Site to aggregator: I have not sent and will never send Unmask for this step."""

    window_id: Bytes16
    step: U32
    index: Index
    sig: Bytes64


class AbortCert(Message, type_name="cohortium.window.abort_cert.v1"):
    """Aggregator to site: n - t + 1 + c promises. No sum of this window can ever open; the updates are free again."""

    window_id: Bytes16
    step: U32
    votes: Annotated[tuple[Vote, ...], Field(max_length=200)]


class SessionKey(Message, type_name="cohortium.strict.key.v1"):
    """Aggregator to one site, with the roster of a strict session: the key that the session's results are encrypted
    with, once for all sites. `sealed` holds H(context) and 32 secret bytes, sealed to the site's `seal_pk`."""

    window_id: Bytes16
    roster_hash: Bytes32
    sealed: Sealed


class SessionLeft(Message, type_name="cohortium.strict.left.v1"):
    """Site to aggregator: this site's training cannot go on in this session, and why, as a code."""

    window_id: Bytes16
    step: U32
    code: Annotated[str, Field(max_length=64, pattern=r"^[A-Z][A-Z0-9_]*$")]


class WindowClosed(Message, type_name="cohortium.window.closed.v1"):
    """Aggregator to site: the window's end. `released` names the model version that came of it, where one did."""

    window_id: Bytes16
    step: U32
    state: Literal["RELEASED", "CANCELLED", "PAUSED", "ABORTED", "FAILED", "FAILED_INTEGRITY"]
    reason: Annotated[str, Field(max_length=64, pattern=r"^[A-Z_]*$")]
    survivors_hash: Bytes32 | None = None
    model: ModelRef | None = None
