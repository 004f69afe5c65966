"""The aggregator's side of a strict session: what completes a step, and what ends the session."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from federation_in_memory import digest
from strict_stage import LIMITS, some_values

from cohortium_messages.lightgbm import LightgbmParams
from cohortium_messages.study import Study
from cohortium_protocol.errors import (
    AgreementFailed,
    ChainMismatch,
    IntegrityFault,
    NotAMember,
    OutOfOrder,
    ProtocolError,
    ResultRefused,
    StepRefused,
)
from cohortium_protocol.strict.collector import Collector, StepResult, Taken
from cohortium_protocol.strict.frames import PART_BYTES, FrameHeader, FramePart, part_count
from cohortium_protocol.strict.steps import (
    CANARIES,
    MAX_PAYLOAD_BYTES,
    START,
    Kind,
    SessionLimits,
    agreed_bytes,
    join_relay,
    limits_of,
    next_chain,
    split_relay,
    sum_values,
)

N = 3


def parts(
    index: int, kind: Kind, payload: bytes, step: int = 0, chain: bytes = START, tag: bytes = b""
) -> list[FramePart]:
    """The opened parts of one site's payload; the tag stands for the content, as a real one does."""
    count = part_count(len(payload))
    made = []
    for part in range(count):
        header = FrameHeader(bytes(16), step, index, kind, part, count, len(payload), chain)
        content = payload[header.start : header.start + header.part_length]
        made.append(FramePart(header, content, tag or digest(content.hex())[:16]))
    return made


def unmasked(values: np.ndarray) -> bytes:
    """A vector as if its masks had cancelled already."""
    return np.append(values, [1] * CANARIES).astype("<i8").tobytes()


@pytest.fixture
def collector() -> Collector:
    return Collector(N, START, LIMITS)


def run(collector: Collector, kind: Kind, payloads: Sequence[bytes], step: int = 0, chain: bytes = START) -> StepResult:
    taken = [
        collector.take(part)
        for index, payload in enumerate(payloads, 1)
        for part in parts(index, kind, payload, step, chain)
    ]
    assert isinstance(taken[-1], StepResult)
    assert set(taken[:-1]) <= {Taken.KEPT}
    return taken[-1]


class TestCompleteSteps:
    def test_a_sum(self, collector: Collector) -> None:
        values = some_values(N, 9)
        result = run(collector, Kind.SUM, [unmasked(one) for one in values])
        assert sum_values(result.payload).tolist() == sum(values).tolist()
        assert (result.step, result.chain, result.agreed) == (0, START, b"")
        assert result.chain_after == next_chain(START, 0, Kind.SUM, result.payload) == collector.chain
        assert (collector.step, collector.sums, collector.last) == (1, 1, result)

    def test_a_relay_of_different_lengths_and_an_agreement(self, collector: Collector) -> None:
        relayed = run(collector, Kind.RELAY, [b"a", b"", b"ccc"])
        assert relayed.payload == join_relay([b"a", b"", b"ccc"])
        agreed = run(collector, Kind.AGREE, [b"Ttree"] * N, 1, relayed.chain_after)
        assert (agreed.payload, agreed.agreed) == (agreed_bytes(b"Ttree"), b"Ttree")
        assert collector.sums == 0

    @pytest.mark.parametrize("kind", list(Kind))
    def test_parts_in_any_order_of_sites_and_numbers(self, kind: Kind) -> None:
        limits = SessionLimits(sum_words=400_000, relay_bytes=3 << 20, agree_bytes=3 << 20)
        collector = Collector(N, START, limits)
        values = [one % 1000 for one in some_values(N, PART_BYTES // 8 * 2 + 3)]
        payloads = {
            Kind.SUM: [unmasked(one) for one in values],
            Kind.RELAY: [unmasked(one)[: -8 * index] for index, one in enumerate(values, 1)],
            Kind.AGREE: [unmasked(values[0])] * N,
        }[kind]
        every = [part for index, payload in enumerate(payloads, 1) for part in parts(index, kind, payload)]
        shuffled = [every[i] for i in np.random.default_rng(1).permutation(len(every))]
        result = [collector.take(part) for part in shuffled][-1]
        assert isinstance(result, StepResult)
        match kind:
            case Kind.SUM:
                assert sum_values(result.payload).tolist() == sum(values).tolist()
            case Kind.RELAY:
                assert list(split_relay(result.payload, N)) == payloads
            case Kind.AGREE:
                assert result.agreed == payloads[0]

    def test_a_missing_part_keeps_the_step_open(self, collector: Collector) -> None:
        payloads = [unmasked(np.ones(PART_BYTES // 8, dtype=np.int64))] * N
        first, second, third = (parts(index, Kind.SUM, payload) for index, payload in enumerate(payloads, 1))
        assert collector.waiting_for() == (1, 2, 3)
        for part in (*first, second[1], *third):
            assert collector.take(part) is Taken.KEPT
        assert collector.waiting_for() == (2,)
        assert isinstance(collector.take(second[0]), StepResult)

    def test_a_site_that_sends_its_part_again_is_not_counted_twice(self, collector: Collector) -> None:
        ones = unmasked(np.ones(4, dtype=np.int64))
        (first,) = parts(1, Kind.SUM, ones)
        assert [collector.take(first) for _ in range(3)] == [Taken.KEPT, Taken.REPEATED, Taken.REPEATED]
        collector.take(parts(2, Kind.SUM, ones)[0])
        result = collector.take(parts(3, Kind.SUM, ones)[0])
        assert isinstance(result, StepResult)
        assert sum_values(result.payload).tolist() == [N] * 4
        assert collector.take(first) is Taken.BEHIND
        assert collector.sums == 1


ONE = unmasked(np.ones(4, dtype=np.int64))
TWO_PARTS = unmasked(np.ones(PART_BYTES // 8, dtype=np.int64))


def _again(content: bytes) -> list[FramePart]:
    return [*parts(1, Kind.SUM, ONE), *parts(1, Kind.SUM, content)]


FAULTS: dict[str, tuple[type[ProtocolError], Callable[[], list[FramePart]]]] = {
    "another kind": (StepRefused, lambda: [*parts(1, Kind.SUM, ONE), *parts(2, Kind.RELAY, b"x")]),
    "another length": (StepRefused, lambda: [*parts(1, Kind.SUM, ONE), *parts(2, Kind.SUM, ONE + bytes(8))]),
    "no whole words": (StepRefused, lambda: parts(1, Kind.SUM, ONE[:-1])),
    "canaries only": (StepRefused, lambda: parts(1, Kind.SUM, ONE[: 8 * CANARIES])),
    "too many words": (StepRefused, lambda: parts(1, Kind.SUM, bytes(8 * (LIMITS.sum_words + CANARIES + 1)))[:1]),
    "too long a relay": (StepRefused, lambda: parts(1, Kind.RELAY, bytes(LIMITS.relay_bytes + 1))),
    "too long an agreement": (StepRefused, lambda: parts(1, Kind.AGREE, bytes(LIMITS.agree_bytes + 1))[:1]),
    "a step ahead": (StepRefused, lambda: parts(1, Kind.SUM, ONE, step=1)),
    "another chain": (ChainMismatch, lambda: parts(1, Kind.SUM, ONE, chain=digest("other"))),
    "a second vector": (StepRefused, lambda: _again(unmasked(np.full(4, 2)))),
    "a second relay of another length": (
        StepRefused,
        lambda: [*parts(1, Kind.RELAY, b"one"), *parts(1, Kind.RELAY, b"other")],
    ),
    "another part under its number": (
        StepRefused,
        lambda: [parts(1, Kind.SUM, TWO_PARTS)[0], parts(1, Kind.SUM, TWO_PARTS, tag=b"another")[0]],
    ),
    "an index outside": (NotAMember, lambda: parts(N + 1, Kind.SUM, ONE)),
    "masks that do not cancel": (
        IntegrityFault,
        lambda: [part for i in (1, 2, 3) for part in parts(i, Kind.SUM, ONE if i < 3 else bytes(len(ONE)))],
    ),
    "different texts": (
        AgreementFailed,
        lambda: [part for i in (1, 2, 3) for part in parts(i, Kind.AGREE, b"Ta" if i < 3 else b"Tb")],
    ),
    "texts of different lengths": (
        AgreementFailed,
        lambda: [part for i in (1, 2, 3) for part in parts(i, Kind.AGREE, b"T" * i)],
    ),
}


class TestFaults:
    @pytest.mark.parametrize("name", FAULTS)
    def test_ends_the_session(self, collector: Collector, name: str) -> None:
        fault, made = FAULTS[name]
        *before, wrong = made()
        for part in before:
            assert collector.take(part) is Taken.KEPT
        with pytest.raises(fault):
            collector.take(wrong)
        with pytest.raises(OutOfOrder):
            collector.take(parts(1, Kind.SUM, ONE)[0])
        assert collector.step == 0
        assert collector.last is None
        assert collector.sums == 0

    def test_the_faulty_site_is_named(self, collector: Collector) -> None:
        collector.take(parts(1, Kind.SUM, ONE)[0])
        with pytest.raises(StepRefused, match="site 2") as caught:
            collector.take(parts(2, Kind.AGREE, b"x")[0])
        assert caught.value.index == 2

    def test_all_that_differ_from_the_first_are_named(self, collector: Collector) -> None:
        collector.take(parts(2, Kind.AGREE, b"Todd")[0])
        collector.take(parts(1, Kind.AGREE, b"Teven")[0])
        with pytest.raises(AgreementFailed, match="site 1, 3 differs from site 2") as caught:
            collector.take(parts(3, Kind.AGREE, b"Teven")[0])
        assert caught.value.differing == (1, 3)

    def test_different_texts_in_one_part_of_two(self, collector: Collector) -> None:
        text = bytes(PART_BYTES + 5)
        for index in (1, 2):
            for part in parts(index, Kind.AGREE, text):
                assert collector.take(part) is Taken.KEPT
        first, second = parts(3, Kind.AGREE, text[:-1] + b"x")
        assert collector.take(second) is Taken.KEPT
        with pytest.raises(AgreementFailed):
            collector.take(first)

    @pytest.mark.parametrize("lengths", [(1, 2, 2), (2, 2, 1), (2, 1, 2)])
    def test_a_text_that_another_goes_on_from_is_another(self, collector: Collector, lengths: tuple[int, ...]) -> None:
        """Every part that both have is the same; only one has more of them."""
        made = [
            part
            for index, count in enumerate(lengths, 1)
            for part in parts(index, Kind.AGREE, bytes(count * PART_BYTES))
        ]
        for part in made[:-1]:
            assert collector.take(part) is Taken.KEPT
        with pytest.raises(AgreementFailed):
            collector.take(made[-1])

    def test_parts_of_two_payloads_are_not_put_together(self) -> None:
        collector = Collector(N, START, SessionLimits(sum_words=1, relay_bytes=3 << 20, agree_bytes=1))
        one, other = (parts(1, Kind.RELAY, bytes(PART_BYTES + more)) for more in (5, 9))
        assert collector.take(one[0]) is Taken.KEPT
        with pytest.raises(StepRefused, match="two lengths"):
            collector.take(other[1])


class TestLimits:
    @pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (1 << 22, 1, 1), (1, 1, MAX_PAYLOAD_BYTES + 1)])
    def test_out_of_range_are_refused(self, sizes: tuple[int, int, int]) -> None:
        with pytest.raises(ValueError):
            SessionLimits(*sizes)

    def test_relays_that_no_result_could_hold_are_refused(self) -> None:
        with pytest.raises(ValueError):
            Collector(200, START, SessionLimits(1, 1 << 20, 1))

    def test_of_a_study_hold_its_histograms_and_trees(self) -> None:
        study = Study.model_validate(STUDY)
        limits = limits_of(study)
        bins = 2 * (LightgbmParams().max_bin + 4) * 100 + 2 * (4 + 4)
        assert limits.sum_words == bins
        assert limits.up(Kind.SUM) == 8 * (bins + CANARIES)
        assert limits.agree_bytes > 3 * 31 * 400
        assert limits.down(Kind.AGREE, 4) == 32
        assert limits.down(Kind.RELAY, 4) == 4 * (4 + limits.relay_bytes)
        Collector(200, START, limits)


STUDY = {
    "apiVersion": "cohortium/study/1",
    "governance": "trial",
    "name": "trees",
    "purpose": "To know how large a session can be.",
    "dataset": {
        "features": [
            *({"name": f"x{i}", "type": "float", "range": [0, 1]} for i in range(100)),
            {"name": "c", "type": "category", "levels": ["a", "b", "c", "d"]},
        ],
        "label": {"name": "y", "type": "multiclass", "levels": ["a", "b", "c"]},
        "split": {"test": 0.2},
    },
    "recipe": {"trainer": "lightgbm", "rounds": 10},
    "federation": {},
}


class TestResults:
    @pytest.mark.parametrize("wrong", [b"", b"\x01", join_relay([b"a"]), join_relay([b"a", b"b", b"c"]), b"\xff" * 9])
    def test_a_relay_that_is_not_n_parts_is_refused(self, wrong: bytes) -> None:
        with pytest.raises(ResultRefused):
            split_relay(wrong, 2)

    def test_a_sum_that_is_no_whole_words_is_refused(self) -> None:
        with pytest.raises(ResultRefused):
            sum_values(bytes(9))

    def test_the_chain_binds_all_that_it_is_made_of(self) -> None:
        made = {
            next_chain(START, 0, Kind.SUM, b"x"),
            next_chain(digest("chain"), 0, Kind.SUM, b"x"),
            next_chain(START, 1, Kind.SUM, b"x"),
            next_chain(START, 0, Kind.RELAY, b"x"),
            next_chain(START, 0, Kind.SUM, b"y"),
        }
        assert len(made) == 5
