"""Another hospital of the connector's federation, honest or corrupt: it does what the test tells it."""

from uuid import UUID

import numpy as np

from cohortium_messages.ids import SiteId
from cohortium_messages.secure_sum import (
    AbortVote,
    Echo,
    EchoCert,
    Ready,
    Survivors,
    Unmask,
    UploadHeader,
    VectorSpec,
    WindowParams,
)
from cohortium_protocol.codec import codec_for
from cohortium_protocol.keys import WindowKeys
from cohortium_protocol.signing import IdentityKey
from cohortium_protocol.survivors import (
    CheckedSurvivors,
    OwnUpload,
    build_abort_vote,
    build_echo,
    build_unmask,
    check_survivors,
)
from cohortium_protocol.upload import SiteMasker, prepare_upload, sign_upload
from cohortium_protocol.window import RosterView, make_ready


class Peer:
    """Another hospital, or a corrupt one: it does what it is told."""

    def __init__(self, number: int) -> None:
        self.site_id = SiteId(str(UUID(bytes=bytes([0x10 + number]) * 16)))
        self.key = IdentityKey.generate()
        self.keys: dict[bytes, WindowKeys] = {}
        self.own: dict[bytes, OwnUpload] = {}

    def ready(self, params: WindowParams, base: bytes) -> Ready:
        keys = self.keys.setdefault(params.window_id, WindowKeys.generate())
        return make_ready(params, self.site_id, base, keys, self.key)

    def upload(self, view: RosterView, spec: VectorSpec, value: int) -> UploadHeader:
        """A header for a vector of equal integers; its chunks are not needed here."""
        index = view.index_of(self.site_id)
        prepared = prepare_upload(view, 0, index, self.keys[view.window_id])
        codec = codec_for(spec, view.n)
        masker = SiteMasker(codec.plan, prepared.masks)
        for chunk in range(codec.plan.chunk_count):
            words = np.zeros(codec.plan.chunk(chunk).words, dtype=codec.plan.dtype)
            words += np.array(value, dtype=codec.plan.dtype)
            masker.mask_chunk(chunk, words)
        header = sign_upload(prepared, masker.vec_root(), codec.plan.vec_len, self.key)
        self.own[view.window_id] = OwnUpload(header, prepared.own_box)
        return header

    def checked(self, view: RosterView, message: Survivors) -> CheckedSurvivors:
        index = view.index_of(self.site_id)
        own = self.own.get(view.window_id)
        return check_survivors(view, message, index, own, self.keys[view.window_id].seal)

    def echo(self, view: RosterView, message: Survivors) -> Echo:
        return build_echo(view, self.checked(view, message), self.key)

    def unmask(self, view: RosterView, message: Survivors, cert: EchoCert, seal_pk: bytes) -> Unmask:
        return build_unmask(view, self.checked(view, message), cert, self.key, seal_pk)

    def vote(self, view: RosterView) -> AbortVote:
        return build_abort_vote(view, 0, view.index_of(self.site_id), self.key)
