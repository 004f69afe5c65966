"""Whole strict sessions, and servers that cheat in one."""

from dataclasses import replace

import numpy as np
import pytest
from federation_in_memory import MODEL_7, MODEL_8, Site, digest, integer_spec, manifest_of, params_of
from strict_stage import AGGREGATOR, LIMITS, SECRET, Stage, some_values, strict_spec

from cohortium_messages.secure_sum import ModelRef
from cohortium_protocol import window
from cohortium_protocol.errors import (
    BadSignature,
    BaseModelRefused,
    ChainMismatch,
    FrameRefused,
    IntegrityFault,
    OutOfOrder,
    ResultRefused,
    WrongWindow,
)
from cohortium_protocol.signing import IdentityKey
from cohortium_protocol.strict.collector import StepResult, Taken
from cohortium_protocol.strict.frames import PART_BYTES, ResultSealer, SessionSecret
from cohortium_protocol.strict.masks import open_sum
from cohortium_protocol.strict.session import Answer
from cohortium_protocol.strict.steps import (
    START,
    Kind,
    agreed_bytes,
    join_relay,
    next_chain,
    split_relay,
    sum_bytes,
)

N = 4


@pytest.fixture
def stage() -> Stage:
    return Stage(N)


def first_sum(stage: Stage) -> StepResult:
    """All sites ask for a sum, and the aggregator has it; nobody was shown it yet."""
    frames = [frame for made in stage.ask(Kind.SUM, some_values(N, 5)) for frame in made]
    result = stage.collect(frames)[-1]
    assert isinstance(result, StepResult)
    return result


def signed_by(stage: Stage, result: StepResult, payload: bytes, **changes: object) -> tuple[bytes, ...]:
    """Frames of another payload for the same step, by the aggregator itself."""
    shown = replace(result, payload=payload, **changes)
    sealer = ResultSealer(stage.view, SECRET, AGGREGATOR)
    return sealer.seal(shown.step, shown.kind, shown.chain, shown.payload)


class TestACourse:
    @pytest.mark.parametrize("n", [3, 4, 16])
    def test_all_kinds_of_steps_in_one_session(self, n: int) -> None:
        stage = Stage(n)
        values = some_values(n, 700)
        assert stage.sum(values).tolist() == sum(values).tolist()
        splits = [b"split %d" % i * i for i in range(n)]
        for answer in stage.step(Kind.RELAY, splits):
            assert split_relay(answer.payload, n) == tuple(splits)
        for answer in stage.step(Kind.AGREE, [b"Ttree"] * n):
            assert answer.payload == agreed_bytes(b"Ttree")
        again = some_values(n, 3, seed=1)
        assert stage.sum(again).tolist() == sum(again).tolist()
        assert {site.chain for site in stage.sites} == {stage.collector.chain}
        assert {site.step for site in stage.sites} == {stage.collector.step} == {4}
        assert stage.collector.sums == 2

    def test_payloads_and_results_of_several_parts(self, stage: Stage) -> None:
        values = some_values(N, PART_BYTES // 8 * 2 + 100)
        assert stage.sum(values).tolist() == sum(values).tolist()
        text = bytes(2 * PART_BYTES)
        assert stage.step(Kind.AGREE, [text] * N)[0].payload == agreed_bytes(text)
        last = stage.collector.last
        assert last is not None
        assert last.agreed == text

    def test_a_resumed_session_goes_on_from_the_chain(self, stage: Stage) -> None:
        stage.sum(some_values(N, 10))
        chain = stage.collector.chain
        resumed = Stage(N, "strict resumed", chain)
        values = some_values(N, 10)
        assert resumed.sum(values).tolist() == sum(values).tolist()
        assert resumed.collector.chain == next_chain(chain, 0, Kind.SUM, sum_bytes(sum(values)))

    def test_frames_sent_again_change_nothing(self, stage: Stage) -> None:
        made = stage.ask(Kind.SUM, some_values(N, 5))
        assert [site.unanswered for site in stage.sites] == made
        (first,) = made[0]
        assert stage.collect([first, first]) == [Taken.KEPT, Taken.REPEATED]
        result = stage.collect([frame for frames in made[1:] for frame in frames])[-1]
        assert isinstance(result, StepResult)
        assert stage.collect([first]) == [Taken.BEHIND]
        assert stage.collector.last == result
        (shown,) = stage.seal(result)
        assert isinstance(stage.sites[0].take(shown), Answer)
        assert stage.sites[0].take(shown) is None
        assert stage.sites[0].unanswered == ()

    def test_one_step_at_a_time(self, stage: Stage) -> None:
        stage.sites[0].relay(b"x")
        with pytest.raises(OutOfOrder):
            stage.sites[0].sum(np.ones(3, dtype=np.int64))

    def test_what_is_beyond_the_limits_never_leaves(self, stage: Stage) -> None:
        site = stage.sites[0]
        with pytest.raises(ValueError):
            site.sum(np.ones(LIMITS.sum_words + 1, dtype=np.int64))
        with pytest.raises(ValueError):
            site.sum(np.ones(0, dtype=np.int64))
        with pytest.raises(ValueError):
            site.relay(bytes(LIMITS.relay_bytes + 1))
        with pytest.raises(ValueError):
            site.agree(bytes(LIMITS.agree_bytes + 1))
        assert site.step == 0
        assert site.unanswered == ()


class TestALyingServer:
    def test_sites_shown_different_results_share_no_mask_any_more(self, stage: Stage) -> None:
        result = first_sum(stage)
        (honest,) = stage.seal(result)
        lie = np.frombuffer(result.payload, dtype="<i8").copy()
        lie[0] += 1
        (lying,) = signed_by(stage, result, sum_bytes(lie))
        for site in stage.sites[:-1]:
            site.take(honest)
        stage.sites[-1].take(lying)
        assert stage.sites[-1].chain != stage.sites[0].chain
        values = some_values(N, 50, seed=2)
        frames = [frame for made in stage.ask(Kind.SUM, values) for frame in made]
        # An honest aggregator sees it in the header; one that adds the words all the same gets noise.
        with pytest.raises(ChainMismatch, match="site 4"):
            stage.collect(frames)
        parts = [stage.opener.open(frame) for frame in frames]
        total = sum(np.frombuffer(part.content, dtype="<u8") for part in parts)
        with pytest.raises(IntegrityFault):
            open_sum(total, N)
        clear = np.append(sum(values).view(np.uint64), [N] * 4)
        assert not np.any(total == clear)

    def test_two_halves_shown_different_results_open_neither(self, stage: Stage) -> None:
        result = first_sum(stage)
        frames = [stage.seal(result)[0], signed_by(stage, result, bytes(len(result.payload)))[0]]
        for site, place in zip(stage.sites, [0, 0, 1, 1], strict=True):
            site.take(frames[place])
        values = some_values(N, 20, seed=3)
        words = [
            np.frombuffer(stage.opener.open(frame).content, dtype="<u8")
            for made in stage.ask(Kind.SUM, values)
            for frame in made
        ]
        for half in ([0, 1], [2, 3]):
            masked = sum(words[i] for i in half)[:20]
            assert not np.any(masked == sum(values[i] for i in half).view(np.uint64))

    def test_masks_outlive_neither_roster_nor_step(self) -> None:
        values = np.zeros(10, dtype=np.int64)
        one, other = Stage(N, "a").roster.strict_site(1), Stage(N, "b").roster.strict_site(1)
        masked = {one.mask(0, START, values), one.mask(1, START, values), other.mask(0, START, values)}
        masked.add(one.mask(2, digest("chain"), values))
        assert len(masked) == 4

    @pytest.mark.parametrize("change", ["shorter", "longer", "other kind", "later step", "other chain"])
    def test_a_signed_result_that_cannot_be_ends_the_session(self, stage: Stage, change: str) -> None:
        result = first_sum(stage)
        payload, changes = {
            "shorter": (result.payload[:-8], {}),
            "longer": (result.payload + bytes(8), {}),
            "other kind": (result.payload, {"kind": Kind.RELAY}),
            "later step": (result.payload, {"step": 1}),
            "other chain": (result.payload, {"chain": digest("other")}),
        }[change]
        site = stage.sites[0]
        with pytest.raises(ChainMismatch if change == "other chain" else ResultRefused):
            site.take(signed_by(stage, result, payload, **changes)[0])
        assert site.unanswered == ()
        with pytest.raises(OutOfOrder):
            site.sum(np.ones(3, dtype=np.int64))
        with pytest.raises(OutOfOrder):
            site.take(stage.seal(result)[0])

    def test_a_result_of_a_step_that_was_not_asked_ends_the_session(self, stage: Stage) -> None:
        result = StepResult(0, Kind.SUM, START, bytes(8), START)
        with pytest.raises(ResultRefused):
            stage.sites[0].take(stage.seal(result)[0])
        with pytest.raises(OutOfOrder):
            stage.sites[0].relay(b"x")

    def test_an_agreement_that_is_none_is_refused(self, stage: Stage) -> None:
        stage.ask(Kind.AGREE, [b"Ttree"] * N)
        result = StepResult(0, Kind.AGREE, START, agreed_bytes(b"Tanother"), START)
        with pytest.raises(ResultRefused, match="other bytes"):
            stage.sites[0].take(stage.seal(result)[0])

    def test_a_relay_that_changes_our_part_is_refused(self, stage: Stage) -> None:
        for parts in (
            [b"no", b"b", b"c", b"d"],
            [b"b", b"a", b"c", b"d"],
            [b"a", b"b", b"c"],
            [b"a", b"b", b"c", b"d", b""],
        ):
            stage = Stage(N)
            stage.ask(Kind.RELAY, [b"a", b"b", b"c", b"d"])
            result = StepResult(0, Kind.RELAY, START, join_relay(parts), START)
            with pytest.raises(ResultRefused):
                stage.sites[0].take(stage.seal(result)[0])

    def test_two_results_for_one_step_in_parts_are_refused(self, stage: Stage) -> None:
        values = some_values(N, PART_BYTES // 8 + 10)
        frames = [frame for made in stage.ask(Kind.SUM, values) for frame in made]
        result = stage.collect(frames)[-1]
        assert isinstance(result, StepResult)
        honest, lying = stage.seal(result), signed_by(stage, result, bytes(len(result.payload)))
        mixed = Stage(N).sites[0]
        mixed.sum(values[0])
        assert mixed.take(honest[0]) is None
        assert mixed.take(honest[0]) is None
        with pytest.raises(ResultRefused, match="two results"):
            mixed.take(lying[0])


class TestSomebodyElse:
    """Who holds the session's key but not the aggregator's identity, or neither, makes no result and stops nothing."""

    def test_another_members_result_is_refused_and_the_session_goes_on(self, stage: Stage) -> None:
        result = first_sum(stage)
        forger = ResultSealer(stage.view, SECRET, IdentityKey.from_seed(digest("member")))
        (forged,) = forger.seal(result.step, result.kind, result.chain, result.payload)
        with pytest.raises(BadSignature):
            stage.sites[0].take(forged)
        assert isinstance(stage.sites[0].take(stage.seal(result)[0]), Answer)

    def test_each_changed_byte_is_refused(self, stage: Stage) -> None:
        (frame,) = stage.seal(first_sum(stage))
        for at in range(len(frame)):
            changed = bytearray(frame)
            changed[at] ^= 1
            with pytest.raises((BadSignature, FrameRefused)):
                stage.sites[0].take(bytes(changed))
        assert isinstance(stage.sites[0].take(memoryview(frame)), Answer)

    def test_truncated_extended_and_oversized_results_are_refused(self, stage: Stage) -> None:
        (frame,) = stage.seal(first_sum(stage))
        for wrong in (b"", frame[:67], frame[:140], frame[:-1], frame + b"x", frame + bytes(1 << 20)):
            with pytest.raises((BadSignature, FrameRefused)):
                stage.sites[0].take(wrong)

    def test_a_result_of_another_session_or_secret_is_refused(self, stage: Stage) -> None:
        other = Stage(N, "another window")
        (frame,) = other.seal(first_sum(other))
        first_sum(stage)
        with pytest.raises(BadSignature):
            stage.sites[0].take(frame)
        result = stage.collector.last
        assert result is not None
        sealer = ResultSealer(stage.view, SessionSecret(digest("other secret")), AGGREGATOR)
        with pytest.raises(FrameRefused):
            stage.sites[0].take(sealer.seal(result.step, result.kind, result.chain, result.payload)[0])
        moved = replace(stage.view, window_id=digest("moved")[:16])
        sealer = ResultSealer(moved, SECRET, AGGREGATOR)
        with pytest.raises(WrongWindow):
            stage.sites[0].take(sealer.seal(result.step, result.kind, result.chain, result.payload)[0])

    def test_a_sites_own_frame_is_no_result(self, stage: Stage) -> None:
        (frame,) = stage.sites[0].relay(b"x" * 200)
        with pytest.raises(BadSignature):
            stage.sites[0].take(frame)


def test_a_strict_window_has_one_base_model() -> None:
    sites = tuple(Site.number(i) for i in range(1, N + 1))
    manifest = manifest_of(sites)
    bases = (ModelRef(version=7, model_hash=MODEL_7), ModelRef(version=8, model_hash=MODEL_8))
    spec = integer_spec(1, ring_bits=64)
    params = params_of(manifest, spec, kind="strict", purpose="training", bases=bases, strict=strict_spec())
    models = [MODEL_7, MODEL_7, MODEL_8, MODEL_7]
    readies = [
        window.make_ready(params, site.site_id, model, site.keys, site.identity)
        for site, model in zip(sites, models, strict=True)
    ]
    with pytest.raises(BaseModelRefused):
        window.make_roster(params, manifest, readies)
