"""Every known answer in contracts/vectors/strict.json is what the code computes, byte for byte."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cohortium_messages.ids import SiteId
from cohortium_messages.secure_sum import Ready
from cohortium_protocol import keys
from cohortium_protocol.encoding import sha256
from cohortium_protocol.keys import SealKey, WindowKeys
from cohortium_protocol.signing import IdentityKey
from cohortium_protocol.strict import exact, frames
from cohortium_protocol.strict.collector import Collector, StepResult
from cohortium_protocol.strict.frames import ResultOpener, ResultSealer, SessionSecret, StepOpener, StepSealer
from cohortium_protocol.strict.masks import StrictSite, strict_key
from cohortium_protocol.strict.session import Answer, SiteSession
from cohortium_protocol.strict.steps import START, Kind, SessionLimits, next_chain
from cohortium_protocol.window import RosterView, Thresholds

VECTORS = Path(__file__).parents[2] / "contracts" / "vectors"
SUM = json.loads((VECTORS / "secure_sum.json").read_text(encoding="utf-8"))
CASE = json.loads((VECTORS / "strict.json").read_text(encoding="utf-8"))
LIMITS = SessionLimits(sum_words=100, relay_bytes=100, agree_bytes=1 << 20)
SECRET = SessionSecret(bytes.fromhex(CASE["session_secret"]))
AGGREGATOR = IdentityKey.from_seed(bytes.fromhex(CASE["aggregator_identity_seed"]))
AGGREGATOR_SEAL = SealKey.from_bytes(bytes.fromhex(CASE["aggregator_seal_sk"]))
KEYS = [WindowKeys.from_bytes(bytes.fromhex(site["mask_sk"] + site["seal_sk"])) for site in SUM["sites"]]


def _entry(i: int) -> Ready:
    return Ready(
        window_id=bytes.fromhex(SUM["window_id"]),
        site_id=SiteId(SUM["sites"][i]["site_id"]),
        params_hash=bytes.fromhex(SUM["params_hash"]),
        base_model_hash=bytes.fromhex(SUM["base_model_hash"]),
        mask_pk=KEYS[i].mask_pk,
        seal_pk=KEYS[i].seal_pk,
        sig=bytes(64),
    )


VIEW = RosterView(
    window_id=bytes.fromhex(SUM["window_id"]),
    params_hash=bytes.fromhex(SUM["params_hash"]),
    roster_hash=bytes.fromhex(SUM["roster_hash"]),
    thresholds=Thresholds(SUM["t"], SUM["k_min"]),
    collusion=SUM["c"],
    entries=tuple(_entry(i) for i in range(3)),
    identity_pks=(bytes(32),) * 3,
)


def _sessions() -> list[SiteSession]:
    return [
        SiteSession(
            StrictSite(VIEW, index, KEYS[index - 1]),
            StepSealer(VIEW, index, KEYS[index - 1], AGGREGATOR_SEAL.public),
            ResultOpener(VIEW, SECRET, AGGREGATOR.public),
            START,
            LIMITS,
        )
        for index in VIEW.indices
    ]


def _ask(session: SiteSession, step: dict[str, Any], i: int) -> tuple[bytes, ...]:
    match Kind(step["kind"]):
        case Kind.SUM:
            return session.sum(np.array(step["inputs"][i], dtype=np.int64))
        case Kind.RELAY:
            return session.relay(bytes.fromhex(step["payloads"][i]))
        case Kind.AGREE:
            return session.agree(bytes.fromhex(step["payloads"][i]))


def test_a_whole_session_is_made_again_byte_for_byte() -> None:
    sessions, opener, collector = _sessions(), StepOpener(VIEW, AGGREGATOR_SEAL), Collector(3, START, LIMITS)
    sealer = ResultSealer(VIEW, SECRET, AGGREGATOR)
    for step in CASE["steps"]:
        sent = [_ask(session, step, i) for i, session in enumerate(sessions)]
        assert [[frame.hex() for frame in made] for made in sent] == [[frame] for frame in step["frames"]]
        parts = [opener.open(made[0]) for made in sent]
        assert [part.content.hex() for part in parts] == step["payloads"]
        result = [collector.take(part) for part in parts][-1]
        assert isinstance(result, StepResult)
        assert result.payload.hex() == step["result"]
        assert (result.chain.hex(), result.chain_after.hex()) == (step["chain"], step["chain_after"])
        (frame,) = sealer.seal(result.step, result.kind, result.chain, result.payload)
        assert frame.hex() == step["result_frame"]
        for session in sessions:
            answer = session.take(frame)
            assert isinstance(answer, Answer)
            assert (answer.payload.hex(), answer.chain.hex()) == (step["result"], step["chain_after"])


def test_key_schedule() -> None:
    chain = bytes.fromhex(CASE["steps"][3]["chain"])
    seed = keys.pair_seed(KEYS[0].mask, VIEW.entry(1), VIEW.entry(2), VIEW.roster_hash, 3)
    assert seed.hex() == CASE["pair_seed_12_step_3"]
    assert strict_key(seed, VIEW.roster_hash, 3, chain).hex() == CASE["strict_key_12_step_3"]
    made = [frames.link_key(AGGREGATOR_SEAL, VIEW.entry(u).seal_pk, VIEW.roster_hash, u).hex() for u in VIEW.indices]
    assert made == CASE["link_keys"]
    theirs = [frames.link_key(KEYS[u - 1].seal, AGGREGATOR_SEAL.public, VIEW.roster_hash, u) for u in VIEW.indices]
    assert [key.hex() for key in theirs] == made
    assert frames.result_key(SECRET, VIEW).hex() == CASE["result_key"]


def test_session_key() -> None:
    sealed = bytes.fromhex(CASE["session_key_sealed_to_2"])
    assert KEYS[1].seal.open(sealed)[:32].hex() == CASE["session_key_context_2"]
    opened = frames.open_session_key(sealed, VIEW.window_id, VIEW.roster_hash, 2, KEYS[1].seal)
    assert opened == SECRET


def test_a_payload_of_two_parts() -> None:
    case, content = CASE["long_payload"], bytes(range(256)) * 4096
    made = StepSealer(VIEW, 1, KEYS[0], AGGREGATOR_SEAL.public).seal(
        4, Kind.AGREE, bytes.fromhex(case["chain"]), content
    )
    assert [sha256(frame).hex() for frame in made] == case["sha256_of_frames"]
    assert made[1].hex() == case["second_frame"]


def test_the_chain_from_step_to_step() -> None:
    chain = START
    for step in CASE["steps"]:
        assert chain.hex() == step["chain"]
        chain = next_chain(chain, step["step"], Kind(step["kind"]), bytes.fromhex(step["result"]))
    assert chain.hex() == CASE["steps"][-1]["chain_after"]


def _numbers(texts: list[str]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.frombuffer(bytes.fromhex("".join(texts)), dtype="<f8")


class TestExact:
    def test_words_of_a_number(self) -> None:
        assert exact.scalar_words([0.1]).astype("<i8").tobytes().hex() == CASE["exact"]["words_of_0_1"]

    @pytest.mark.parametrize("case", CASE["exact"]["sums"])
    def test_sums(self, case: dict[str, Any]) -> None:
        words = [exact.scalar_words([number]) for number in _numbers(case["numbers"])]
        assert [sha256(one.astype("<i8").tobytes()).hex() for one in words] == case["words_sha256"]
        assert np.array(exact.scalar_sums(sum(words))).tobytes().hex() == case["sum"]

    @pytest.mark.parametrize("case", CASE["scales"])
    def test_scales(self, case: dict[str, Any]) -> None:
        assert exact.histogram_scale(case["total_rows"], case["bound"]) == case["exponent"]

    def test_fixed_point(self) -> None:
        case = CASE["fixed"]
        words = exact.to_fixed(_numbers(case["values"]), case["exponent"], case["limit"])
        assert words.tolist() == case["words"]
