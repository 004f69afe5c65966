"""Frames of strict sessions: what a site or the aggregator sealed for a place comes out there, and nowhere else."""

import pytest
from federation_in_memory import AGGREGATOR_SEAL, digest
from strict_stage import AGGREGATOR, SECRET, Roster

from cohortium_protocol.errors import FrameRefused, NotAMember, SessionKeyRefused, StepReused, WeakKey, WrongWindow
from cohortium_protocol.keys import SealKey
from cohortium_protocol.strict import frames
from cohortium_protocol.strict.frames import (
    MAX_FRAME_BYTES,
    PART_BYTES,
    FrameHeader,
    ResultOpener,
    ResultSealer,
    SessionSecret,
    StepOpener,
    StepSealer,
)
from cohortium_protocol.strict.masks import StrictSite
from cohortium_protocol.strict.steps import MAX_PAYLOAD_BYTES, START, Kind

HEADER_BYTES = 68
TAG_BYTES = 16
CONTENT = bytes(range(200))


@pytest.fixture(scope="module")
def roster() -> Roster:
    return Roster.of(4)


@pytest.fixture(scope="module")
def frame(roster: Roster) -> bytes:
    (made,) = roster.step_sealer(2).seal(7, Kind.RELAY, digest("chain"), CONTENT)
    return made


@pytest.fixture
def opener(roster: Roster) -> StepOpener:
    return StepOpener(roster.view, AGGREGATOR_SEAL)


class TestSteps:
    @pytest.mark.parametrize("view", [bytes, memoryview])
    def test_round_trip(self, roster: Roster, frame: bytes, opener: StepOpener, view: type) -> None:
        part = opener.open(view(frame))
        assert part.header == FrameHeader(roster.view.window_id, 7, 2, Kind.RELAY, 0, 1, len(CONTENT), digest("chain"))
        assert part.header == frames.peek_step(view(frame))
        assert part.content == CONTENT
        assert part.tag == frame[-TAG_BYTES:]
        assert CONTENT not in frame
        assert len(frame) == HEADER_BYTES + len(CONTENT) + TAG_BYTES

    def test_each_changed_byte_is_refused(self, frame: bytes, opener: StepOpener) -> None:
        for at in range(len(frame)):
            changed = bytearray(frame)
            changed[at] ^= 1
            with pytest.raises((FrameRefused, WrongWindow, NotAMember)):
                opener.open(bytes(changed))

    def test_truncated_extended_and_oversized_frames_are_refused(self, frame: bytes, opener: StepOpener) -> None:
        for wrong in (b"", frame[:40], frame[:HEADER_BYTES], frame[:-1], frame + b"x", frame + bytes(MAX_FRAME_BYTES)):
            with pytest.raises(FrameRefused):
                opener.open(wrong)
            with pytest.raises(FrameRefused):
                frames.peek_step(wrong)

    def test_another_sites_index_is_refused(self, roster: Roster, opener: StepOpener) -> None:
        """Site 3 says that it is site 2: under its own link's key, and under that of its index with 2 in the header."""
        (own,) = roster.step_sealer(3).seal(0, Kind.SUM, START, CONTENT)
        claimed = bytearray(own)
        claimed[25] = 2
        with pytest.raises(FrameRefused):
            opener.open(bytes(claimed))
        (forged,) = StepSealer(roster.view, 2, roster.sites[2].keys, AGGREGATOR_SEAL.public).seal(
            0, Kind.SUM, START, CONTENT
        )
        assert frames.peek_step(forged).index == 2
        with pytest.raises(FrameRefused):
            opener.open(forged)

    def test_another_window_roster_and_aggregator_are_refused(self, roster: Roster, frame: bytes) -> None:
        with pytest.raises(WrongWindow):
            StepOpener(Roster.of(4, "other").view, AGGREGATOR_SEAL).open(frame)
        with pytest.raises(FrameRefused):
            StepOpener(roster.view, SealKey.generate()).open(frame)
        smaller = Roster.of(3)  # the same window and keys, another roster
        assert smaller.view.window_id == roster.view.window_id
        with pytest.raises(FrameRefused):
            StepOpener(smaller.view, AGGREGATOR_SEAL).open(frame)

    def test_an_index_outside_the_roster_is_refused(self, roster: Roster, opener: StepOpener, frame: bytes) -> None:
        outside = bytearray(frame)
        outside[25] = 5
        with pytest.raises(NotAMember):
            opener.open(bytes(outside))
        outside[25] = 0
        with pytest.raises(FrameRefused):
            opener.open(bytes(outside))

    def test_headers_are_read_for_their_own_direction_only(self, roster: Roster, frame: bytes) -> None:
        (result,) = ResultSealer(roster.view, SECRET, AGGREGATOR).seal(4, Kind.AGREE, digest("chain"), CONTENT)
        expected = FrameHeader(roster.view.window_id, 4, 0, Kind.AGREE, 0, 1, len(CONTENT), digest("chain"))
        assert frames.peek_result(result) == expected
        for peek, other in ((frames.peek_result, frame), (frames.peek_step, result), (frames.peek_result, result[:-1])):
            with pytest.raises(FrameRefused):
                peek(other)

    def test_a_result_is_no_step(self, roster: Roster, opener: StepOpener) -> None:
        (result,) = ResultSealer(roster.view, SECRET, AGGREGATOR).seal(0, Kind.SUM, START, CONTENT)
        with pytest.raises(FrameRefused):
            opener.open(result)


class TestParts:
    def test_a_large_payload_goes_in_parts_of_at_most_one_mebibyte(self, roster: Roster, opener: StepOpener) -> None:
        payload = bytes(i % 251 for i in range(PART_BYTES)) + b"rest"
        made = roster.step_sealer(1).seal(0, Kind.SUM, START, payload)
        assert [len(frame) for frame in made] == [HEADER_BYTES + PART_BYTES + TAG_BYTES, HEADER_BYTES + 4 + TAG_BYTES]
        results = ResultSealer(roster.view, SECRET, AGGREGATOR).seal(0, Kind.SUM, START, payload)
        assert max(len(frame) for frame in (*made, *results)) <= MAX_FRAME_BYTES
        parts = [opener.open(frame) for frame in made]
        assert b"".join(part.content for part in parts) == payload
        assert [(part.header.part, part.header.parts, part.header.length) for part in parts] == [
            (0, 2, len(payload)),
            (1, 2, len(payload)),
        ]

    @pytest.mark.parametrize(("length", "count"), [(0, 1), (1, 1), (PART_BYTES, 1), (PART_BYTES + 1, 2)])
    def test_the_length_says_how_many_parts_there_are(self, roster: Roster, length: int, count: int) -> None:
        made = roster.step_sealer(1).seal(0, Kind.RELAY, START, bytes(length))
        assert len(made) == frames.part_count(length) == count

    def test_parts_that_the_length_does_not_allow_are_refused(self, frame: bytes) -> None:
        for at, value in [(28, 1), (30, 2), (30, 0), (35, 0xFF)]:  # part, parts, parts, length's high byte
            changed = bytearray(frame)
            changed[at] = value
            with pytest.raises(FrameRefused):
                frames.peek_step(bytes(changed))

    def test_a_payload_beyond_the_most_is_never_sealed(self, roster: Roster) -> None:
        with pytest.raises(ValueError):
            roster.step_sealer(1).seal(0, Kind.AGREE, START, bytes(MAX_PAYLOAD_BYTES + 1))


class TestOneNonceOnePayload:
    @pytest.mark.parametrize("side", ["site", "aggregator"])
    def test_a_second_payload_for_a_step_is_refused(self, roster: Roster, side: str) -> None:
        sealer = roster.step_sealer(1) if side == "site" else ResultSealer(roster.view, SECRET, AGGREGATOR)
        first = sealer.seal(3, Kind.RELAY, START, b"first")
        assert sealer.seal(3, Kind.RELAY, START, b"first") == first
        for step, kind, chain, payload in [
            (3, Kind.RELAY, START, b"other"),
            (3, Kind.AGREE, START, b"first"),
            (3, Kind.RELAY, digest("other"), b"first"),
            (2, Kind.RELAY, START, b"first"),
        ]:
            with pytest.raises(StepReused):
                sealer.seal(step, kind, chain, payload)
        assert sealer.seal(3, Kind.RELAY, START, b"first") == first
        assert sealer.seal(4, Kind.RELAY, START, b"first") != first


class TestSessionKeys:
    def test_for_another_place_or_site_is_refused(self, roster: Roster) -> None:
        view, keys = roster.view, roster.sites[1].keys
        sealed = frames.seal_session_key(SECRET, view.window_id, view.roster_hash, 2, keys.seal_pk)
        assert frames.open_session_key(sealed, view.window_id, view.roster_hash, 2, keys.seal) == SECRET
        other = digest("other")
        for window_id, roster_hash, index, key in [
            (other[:16], view.roster_hash, 2, keys.seal),
            (view.window_id, other, 2, keys.seal),
            (view.window_id, view.roster_hash, 1, keys.seal),
            (view.window_id, view.roster_hash, 2, roster.sites[0].keys.seal),
        ]:
            with pytest.raises(SessionKeyRefused):
                frames.open_session_key(sealed, window_id, roster_hash, index, key)
        for wrong in (sealed[:-1], sealed + b"x", b""):
            with pytest.raises(SessionKeyRefused):
                frames.open_session_key(wrong, view.window_id, view.roster_hash, 2, keys.seal)

    def test_a_key_of_another_length_is_refused(self, roster: Roster) -> None:
        view, keys = roster.view, roster.sites[0].keys
        short = frames.seal_session_key(SessionSecret(bytes(31)), view.window_id, view.roster_hash, 1, keys.seal_pk)
        with pytest.raises(SessionKeyRefused):
            frames.open_session_key(short, view.window_id, view.roster_hash, 1, keys.seal)

    def test_secrets_are_fresh_and_keys_differ_by_roster_and_site(self, roster: Roster) -> None:
        assert SessionSecret.generate() != SessionSecret.generate()
        other = Roster.of(3).view
        assert frames.result_key(SECRET, roster.view) != frames.result_key(SECRET, other)
        keys = {
            frames.link_key(AGGREGATOR_SEAL, roster.view.entry(index).seal_pk, view.roster_hash, index)
            for view in (roster.view, other)
            for index in (1, 2)
        }
        assert len(keys) == 4

    def test_an_aggregator_key_of_small_order_is_refused(self, roster: Roster) -> None:
        with pytest.raises(WeakKey):
            StepSealer(roster.view, 1, roster.sites[0].keys, bytes(32))

    def test_no_secret_shows_in_a_repr(self, roster: Roster, frame: bytes) -> None:
        key = frames.result_key(SECRET, roster.view)
        part = StepOpener(roster.view, AGGREGATOR_SEAL).open(frame)
        shown = [
            SECRET,
            part,
            roster.step_sealer(1),
            StepOpener(roster.view, AGGREGATOR_SEAL),
            ResultSealer(roster.view, SECRET, AGGREGATOR),
            ResultOpener(roster.view, SECRET, AGGREGATOR.public),
            StrictSite(roster.view, 1, roster.sites[0].keys),
            roster.session(1),
        ]
        for value in shown:
            for secret in (SECRET.secret, key, CONTENT, roster.sites[0].keys.to_bytes()[:32]):
                assert secret.hex() not in repr(value)
                assert repr(secret)[2:-1] not in repr(value)
