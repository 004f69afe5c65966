"""A whole federation without a network: sites and server call the protocol's functions on each other's messages.

Keys come from fixed seeds, so that two runs differ only in what the protocol itself draws at random.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import numpy as np
import numpy.typing as npt

from cohortium_messages.governance import Manifest, Member
from cohortium_messages.ids import RunId, SiteId, StudyId
from cohortium_messages.secure_sum import (
    EchoCert,
    ModelRef,
    Ready,
    Survivors,
    Unmask,
    UploadHeader,
    VectorSpec,
    WindowParams,
)
from cohortium_messages.study import Deadlines
from cohortium_protocol import opening, survivors, upload, window
from cohortium_protocol.codec import IntegerCodec
from cohortium_protocol.documents import FIRST, GovernancePin, default_collusion, manifest_hash, sign_manifest
from cohortium_protocol.keys import SealKey, WindowKeys
from cohortium_protocol.masking import Words
from cohortium_protocol.signing import IdentityKey
from cohortium_protocol.survivors import CheckedSurvivors, OwnUpload, SurvivorSet
from cohortium_protocol.window import RosterView

MODEL_7 = hashlib.sha256(b"model-7").digest()
MODEL_8 = hashlib.sha256(b"model-8").digest()
GOVERNORS = tuple(IdentityKey.from_seed(bytes([0x90 + i]) * 32) for i in range(3))
PIN = GovernancePin(frozenset(key.public for key in GOVERNORS), 2)
SCHEDULER = IdentityKey.from_seed(b"\xa0" * 32)
AGGREGATOR_SEAL = SealKey.from_bytes(b"\xa1" * 32)


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def integer_spec(dimension: int, ring_bits: int = 32, chunk_bytes: int = 2048) -> VectorSpec:
    return VectorSpec(
        encoding="integer",
        dimension=dimension,
        ring_bits=ring_bits,
        rotate=False,
        rotation_seed=bytes(32),
        keep=1.0,
        keep_seed=bytes(32),
        clip_norm_l2=1.0,
        range_factor=1.0,
        weight_cap=1,
        chunk_bytes=chunk_bytes,
    )


def grid_spec(dimension: int, **changes: object) -> VectorSpec:
    values: dict[str, object] = {
        "encoding": "grid",
        "dimension": dimension,
        "ring_bits": 16,
        "rotate": True,
        "rotation_seed": digest("rotation"),
        "keep": 1.0,
        "keep_seed": digest("keep"),
        "clip_norm_l2": 1.0,
        "range_factor": 6.0,
        "weight_cap": 100,
        "chunk_bytes": 8192,
    }
    return VectorSpec.model_validate(values | changes)


@dataclass(frozen=True, slots=True)
class Site:
    site_id: SiteId
    identity: IdentityKey
    keys: WindowKeys

    @classmethod
    def number(cls, i: int, window: str = "w") -> "Site":
        """Site i: the same identity in every window, other keys in each."""
        secret = digest(f"mask {i} {window}") + digest(f"seal {i} {window}")
        site_id = SiteId(str(UUID(bytes=bytes([i]) + bytes(15))))
        return cls(site_id, IdentityKey.from_seed(digest(f"identity {i}")), WindowKeys.from_bytes(secret))


def manifest_of(sites: Sequence[Site], collusion: int | None = None, k_min_floor: int = 0) -> Manifest:
    manifest = Manifest(
        study_id=StudyId("heart"),
        version=1,
        prev_hash=FIRST,
        study_digest=digest("study"),
        members=tuple(
            Member(site_id=site.site_id, name=f"Hospital {i}", identity_pk=site.identity.public)
            for i, site in enumerate(sites)
        ),
        collusion=default_collusion(len(sites)) if collusion is None else collusion,
        k_min_floor=k_min_floor,
    )
    for key in GOVERNORS[:2]:
        manifest = sign_manifest(manifest, key)
    return manifest


def params_of(manifest: Manifest, spec: VectorSpec, **changes: object) -> WindowParams:
    values: dict[str, object] = {
        "study_id": manifest.study_id,
        "study_digest": manifest.study_digest,
        "run_id": RunId("00000000-0000-4000-8000-000000000001"),
        "window_id": digest("window")[:16],
        "purpose": "update",
        "kind": "sync",
        "round": 3,
        "manifest_hash": manifest_hash(manifest),
        "bases": (ModelRef(version=7, model_hash=MODEL_7), ModelRef(version=8, model_hash=MODEL_8)),
        "max_staleness": 5,
        "vector": spec,
        "privacy_mode": "none",
        "target_cohort": 3,
        "least_cohort": 3,
        "deadlines": Deadlines(),
        "aggregator_seal_pk": AGGREGATOR_SEAL.public,
    }
    return WindowParams.model_validate(values | changes)


@dataclass(slots=True)
class Federation:
    """Sites 1..n in one window, and what the server has received so far."""

    sites: tuple[Site, ...]
    manifest: Manifest
    params: WindowParams
    readies: tuple[Ready, ...]
    view: RosterView
    step: int = 0
    prepared: dict[int, upload.PreparedUpload] = field(default_factory=dict)
    headers: dict[int, UploadHeader] = field(default_factory=dict)
    chunks: dict[int, list[bytes]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, n: int, spec: VectorSpec, *, collusion: int | None = None, k_min_floor: int = 0, window_name: str = "w"
    ) -> "Federation":
        sites = tuple(Site.number(i, window_name) for i in range(1, n + 1))
        manifest = manifest_of(sites, collusion, k_min_floor)
        params = params_of(manifest, spec, window_id=digest(window_name)[:16])
        readies = tuple(window.make_ready(params, site.site_id, MODEL_7, site.keys, site.identity) for site in sites)
        roster = window.make_roster(params, manifest, readies)
        view = window.verify_roster(roster, params, manifest, readies[0])
        return cls(sites, manifest, params, readies, view)

    @property
    def n(self) -> int:
        return len(self.sites)

    @property
    def codec(self) -> IntegerCodec:
        return IntegerCodec(self.params.vector, self.n)

    def site(self, index: int) -> Site:
        return self.sites[index - 1]

    def send(self, index: int, words: Sequence[Words]) -> UploadHeader:
        """Site `index` masks these chunks and uploads them."""
        plan = self.codec.plan if self.params.vector.encoding == "integer" else window_plan(self)
        prepared = upload.prepare_upload(self.view, self.step, index, self.site(index).keys)
        masker = upload.SiteMasker(plan, prepared.masks)
        self.chunks[index] = [masker.mask_chunk(k, part.copy()) for k, part in enumerate(words)]
        header = upload.sign_upload(prepared, masker.vec_root(), plan.vec_len, self.site(index).identity)
        self.prepared[index] = prepared
        self.headers[index] = header
        return header

    def send_integers(self, index: int, values: npt.NDArray[np.int64]) -> UploadHeader:
        codec = self.codec
        return self.send(index, [codec.encode_chunk(values, k) for k in range(codec.plan.chunk_count)])

    def freeze(self, members: Iterable[int]) -> tuple[SurvivorSet, dict[int, UploadHeader]]:
        headers = {index: self.headers[index] for index in members}
        for header in headers.values():
            opening.check_header(self.view, header, self.step, window_plan(self).vec_len)
        return opening.freeze_survivors(self.view, self.step, headers), headers

    def own(self, index: int) -> OwnUpload | None:
        header = self.headers.get(index)
        return OwnUpload(header, self.prepared[index].own_box) if header else None

    def check(self, index: int, message: Survivors) -> CheckedSurvivors:
        return survivors.check_survivors(self.view, message, index, self.own(index), self.site(index).keys.seal)

    def shown(self, index: int, frozen: SurvivorSet) -> CheckedSurvivors:
        return self.check(index, opening.make_survivors(self.view, frozen, self.headers, index))

    def certificate(self, frozen: SurvivorSet, members: Iterable[int]) -> EchoCert:
        echoes = []
        for index in members:
            echo = survivors.build_echo(self.view, self.shown(index, frozen), self.site(index).identity)
            opening.check_echo(self.view, frozen, echo)
            echoes.append(echo)
        return opening.make_echo_cert(self.view, frozen, echoes)

    def unmask(self, index: int, frozen: SurvivorSet, cert: EchoCert) -> Unmask:
        checked = self.shown(index, frozen)
        return survivors.build_unmask(
            self.view, checked, cert, self.site(index).identity, self.params.aggregator_seal_pk
        )

    def open(self, frozen: SurvivorSet, headers: Mapping[int, UploadHeader], answers: Iterable[Unmask]) -> list[Words]:
        """The opened words, chunk by chunk."""
        shares = [opening.check_unmask(self.view, frozen, answer, AGGREGATOR_SEAL) for answer in answers]
        masks = opening.reconstruct(self.view, frozen, headers, shares)
        plan = window_plan(self)
        return [
            opening.unmask_chunk(plan, masks, k, (self.chunks[index][k] for index in frozen.members))
            for k in range(plan.chunk_count)
        ]


def window_plan(federation: Federation) -> "upload.ChunkPlan":
    return upload.ChunkPlan.of(federation.params.vector)
