"""Chunk and model frames: what was signed comes out, and nothing else does."""

import pytest
from federation_in_memory import AGGREGATOR_SEAL, digest

from cohortium_messages.secure_sum import MAX_CHUNK_BYTES
from cohortium_protocol import chunks
from cohortium_protocol.chunks import MAX_FRAME_BYTES, ChunkPlace, ModelKey, ModelPlace
from cohortium_protocol.errors import BadSignature, ChunkRefused, RemoteFault
from cohortium_protocol.keys import SealKey
from cohortium_protocol.plan import TAIL_WORDS
from cohortium_protocol.signing import IdentityKey

SITE = IdentityKey.from_seed(digest("site"))
AGGREGATOR = IdentityKey.from_seed(digest("aggregator"))
PLACE = ChunkPlace(digest("window")[:16], 2, 5, 3, 7)
CONTENT = bytes(range(256)) * 8
RUN = "00000000-0000-4000-8000-000000000001"
MODEL = ModelPlace(RUN, 9, 0, 2)
KEY = ModelKey(digest("key"))


@pytest.fixture(scope="module")
def frame() -> bytes:
    return chunks.seal_frame(PLACE, CONTENT, SITE, AGGREGATOR_SEAL.public)


@pytest.fixture(scope="module")
def model_frame() -> bytes:
    return chunks.seal_model_frame(MODEL, CONTENT, KEY, AGGREGATOR)


class TestChunkFrames:
    @pytest.mark.parametrize("view", [bytes, memoryview])
    def test_round_trip(self, frame: bytes, view: type) -> None:
        header = chunks.open_header(view(frame), SITE.public)
        assert header.place == chunks.peek_header(view(frame)).place == PLACE
        assert chunks.open_body(view(frame), header, AGGREGATOR_SEAL) == CONTENT
        assert CONTENT not in frame

    def test_each_changed_byte_is_refused(self, frame: bytes) -> None:
        for at in [*range(170), len(frame) // 2, len(frame) - 1]:
            changed = bytearray(frame)
            changed[at] ^= 1
            with pytest.raises((BadSignature, ChunkRefused)):
                chunks.open_header(bytes(changed), SITE.public)

    def test_truncated_extended_and_oversized_frames_are_refused(self, frame: bytes) -> None:
        for wrong in (b"", frame[:100], frame[:-1], frame + b"x", frame + bytes(MAX_FRAME_BYTES)):
            with pytest.raises((BadSignature, ChunkRefused)):
                chunks.open_header(wrong, SITE.public)
        with pytest.raises(ChunkRefused):
            chunks.peek_header(frame[:100])

    def test_another_sites_key_and_another_receiver_are_refused(self, frame: bytes) -> None:
        with pytest.raises(BadSignature):
            chunks.open_header(frame, AGGREGATOR.public)
        header = chunks.open_header(frame, SITE.public)
        with pytest.raises(ChunkRefused):
            chunks.open_body(frame, header, SealKey.generate())

    def test_a_body_that_is_not_the_named_one_is_refused(self, frame: bytes) -> None:
        other = chunks.seal_frame(PLACE, CONTENT[:-1], SITE, AGGREGATOR_SEAL.public)
        with pytest.raises(ChunkRefused):
            chunks.open_body(other, chunks.open_header(frame, SITE.public), AGGREGATOR_SEAL)

    def test_a_chunk_beyond_the_count_is_refused(self) -> None:
        wrong = chunks.seal_frame(ChunkPlace(PLACE.window_id, 0, 1, 7, 7), b"x", SITE, AGGREGATOR_SEAL.public)
        with pytest.raises(ChunkRefused):
            chunks.open_header(wrong, SITE.public)

    def test_the_largest_chunk_fits_one_mebibyte(self) -> None:
        largest = bytes(MAX_CHUNK_BYTES + 8 * TAIL_WORDS)
        assert len(chunks.seal_frame(PLACE, largest, SITE, AGGREGATOR_SEAL.public)) <= MAX_FRAME_BYTES
        with pytest.raises(ValueError):
            chunks.seal_frame(PLACE, bytes(MAX_FRAME_BYTES), SITE, AGGREGATOR_SEAL.public)


class TestModelFrames:
    def test_round_trip_through_a_wrapped_key(self, model_frame: bytes) -> None:
        site = SealKey.generate()
        key = chunks.unwrap_model_key(chunks.wrap_model_key(KEY, RUN, 9, site.public), RUN, 9, site)
        header, content = chunks.open_model_frame(memoryview(model_frame), key, AGGREGATOR.public)
        assert (header.place, content) == (MODEL, CONTENT)
        assert CONTENT not in model_frame

    def test_each_changed_byte_is_refused(self, model_frame: bytes) -> None:
        for at in [*range(170), len(model_frame) - 1]:
            changed = bytearray(model_frame)
            changed[at] ^= 1
            with pytest.raises((BadSignature, ChunkRefused)):
                chunks.open_model_frame(bytes(changed), KEY, AGGREGATOR.public)

    def test_another_key_signer_or_kind_is_refused(self, model_frame: bytes, frame: bytes) -> None:
        with pytest.raises(ChunkRefused):
            chunks.open_model_frame(model_frame, ModelKey.generate(), AGGREGATOR.public)
        with pytest.raises(BadSignature):
            chunks.open_model_frame(model_frame, KEY, SITE.public)
        with pytest.raises(RemoteFault):
            chunks.open_model_frame(frame, KEY, SITE.public)
        with pytest.raises(RemoteFault):
            chunks.open_header(model_frame, AGGREGATOR.public)

    def test_a_key_for_another_version_or_site_is_refused(self) -> None:
        site = SealKey.generate()
        wrapped = chunks.wrap_model_key(KEY, RUN, 9, site.public)
        with pytest.raises(ChunkRefused):
            chunks.unwrap_model_key(wrapped, RUN, 10, site)
        with pytest.raises(ChunkRefused):
            chunks.unwrap_model_key(wrapped, RUN, 9, SealKey.generate())
