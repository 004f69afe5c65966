"""All bytes that leave one hospital while LightGBM trains, against the hospital's own numbers.

In one process every part can be listened to: what hospitals put under their masks (their own totals and histograms),
what they hand to the bus, what the aggregator finds in it after decryption, and the sums that it opens.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cohortium_kit.bus import Outgoing
from cohortium_kit.memory import MemoryBus
from cohortium_messages.study_file import parse_study
from cohortium_protocol.strict import collector
from cohortium_protocol.strict.exact import LIMBS, histogram_scale, scalar_sums
from cohortium_protocol.strict.frames import FramePart, StepOpener
from cohortium_protocol.strict.masks import StrictSite
from cohortium_protocol.strict.steps import Kind, Values
from cohortium_sim.plan import Plan, SiteTable, check_plan
from cohortium_sim.simulate import run_plan

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(600)]

HEADER_BYTES = 68
"""Of a step's frame, in clear: magic, window, step, index, kind, parts, length, chain."""
LEAST_BITS = 24
"""A number with so many significant bits is not met by chance. Sums of LightGBM's gradients have 24 to 40."""

FEATURES, ROWS, ROUNDS = 6, 600, 20
STUDY = {
    "apiVersion": "cohortium/study/1",
    "governance": "trial",
    "name": "what-leaves",
    "purpose": "Listen to a session",
    "dataset": {
        "features": [{"name": f"f{number}", "type": "float", "range": [0, 1]} for number in range(FEATURES)],
        "label": {"name": "disease", "type": "binary"},
        "split": {"test": 0.2},
    },
    "recipe": {
        "trainer": "lightgbm",
        "rounds": ROUNDS,
        "params": {"num_leaves": 4, "max_bin": 15, "min_data_in_leaf": 100},
    },
    "federation": {"min_sites": 3},
}


def plan_of(folder: Path) -> Plan:
    """Four hospitals with patients alike, so that no bin of any leaf is one hospital's alone: what is a hospital's own
    number is nobody else's, and no sum."""
    rng, sites = np.random.default_rng(7), []
    for name in ("north", "south", "east", "west"):
        values = rng.random((ROWS, FEATURES))
        labels = (values[:, 0] + values[:, 1] * values[:, 2] + rng.normal(0, 0.3, ROWS) > 0.8).astype(int)
        lines = [
            ",".join([*(f"{value:.6f}" for value in row), str(label)])
            for row, label in zip(values, labels, strict=True)
        ]
        path = folder / f"{name}.csv"
        path.write_text("\n".join([",".join([*(f"f{n}" for n in range(FEATURES)), "disease"]), *lines]) + "\n")
        sites.append(SiteTable(name, path))
    return check_plan(Plan(study=parse_study(json.dumps(STUDY)), sites=tuple(sites), out=folder / "out"))


@dataclass
class Recording:
    """By index in the roster: a site's own numbers, and what of it can be read where. `frames` are by site id."""

    own: dict[int, list[Values]] = field(default_factory=lambda: defaultdict(list))
    read: dict[int, list[FramePart]] = field(default_factory=lambda: defaultdict(list))
    opened: list[Values] = field(default_factory=list)
    frames: dict[str, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    said: dict[str, list[bytes]] = field(default_factory=lambda: defaultdict(list))


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> Recording:
    found = Recording()
    mask, read, opened, publish = StrictSite.mask, StepOpener.open, collector.open_sum, MemoryBus.publish

    def masked(self: StrictSite, step: int, chain: bytes, values: Values) -> bytes:
        found.own[self.index].append(values.copy())
        return mask(self, step, chain, values)

    def decrypted(self: StepOpener, frame: Any) -> FramePart:
        part = read(self, frame)
        found.read[part.header.index].append(part)
        return part

    def summed(words: Any, n: int) -> Values:
        sums = opened(words, n)
        found.opened.append(sums.copy())
        return sums

    async def published(self: MemoryBus, outgoing: Outgoing, *, timeout_s: float = 10.0) -> None:
        sender, _, rest = outgoing.routing_key.removeprefix("site.").partition(".")
        if outgoing.exchange == "uplink":
            (found.frames if rest.startswith("steps.") else found.said)[sender].append(outgoing.body)
        await publish(self, outgoing, timeout_s=timeout_s)

    monkeypatch.setattr(StrictSite, "mask", masked)
    monkeypatch.setattr(StepOpener, "open", decrypted)
    monkeypatch.setattr(collector, "open_sum", summed)
    monkeypatch.setattr(MemoryBus, "publish", published)
    return found


def windows(content: Iterable[bytes], width: int) -> set[bytes]:
    """Every run of `width` bytes."""
    return {piece[start : start + width] for piece in content for start in range(len(piece) - width + 1)}


def telling(values: Iterable[Values]) -> set[int]:
    """Fixed-point numbers, not the 32-bit limbs of exact scalars."""
    numbers = {number for vector in values for number in map(int, vector) if abs(number) >> 33}
    return {number for number in numbers if significant_bits(number) >= LEAST_BITS}


def totals(values: Iterable[Values]) -> set[bytes]:
    """A hospital's own totals of hessians and gradients at each tree's root, as binary64: two exact scalars and a count
    of rows are what is summed for them."""
    roots = [scalar_sums(vector[:-1]) for vector in values if len(vector) == 2 * LIMBS + 1]
    return {np.float64(total).tobytes() for root in roots for total in root}


def significant_bits(value: int) -> int:
    return abs(value).bit_length() - ((value & -value).bit_length() - 1 if value else 0)


def as_words(values: set[int]) -> set[bytes]:
    return {value.to_bytes(8, "little", signed=True) for value in values}


def as_doubles(values: set[int]) -> set[bytes]:
    """What the fixed-point words stand for, as binary64. A row adds at most 1 to a sum of a binary label."""
    scale = histogram_scale(4 * ROWS * 4 // 5, 1.0)
    return {np.ldexp(float(value), -scale).tobytes() for value in values}


def chi_square(content: bytes) -> float:
    """Of the bytes against the uniform distribution, as standard deviations from its mean of 255."""
    expected = len(content) / 256
    counts = Counter(content)
    statistic = sum((counts.get(byte, 0) - expected) ** 2 / expected for byte in range(256))
    return (statistic - 255) / math.sqrt(2 * 255)


def check_what_can_be_read(recording: Recording) -> None:
    """By the aggregator, which decrypts: masked words are uniform, and what is relayed tells of opened sums alone."""
    for index, vectors in recording.own.items():
        own = telling(vectors)
        assert len(own) > 1_000
        assert as_words(own) <= windows((vector.tobytes() for vector in vectors), 8)  # the search does find
        seen = windows((part.content for part in recording.read[index]), 8)
        assert len(totals(vectors)) == 2 * ROUNDS
        assert not totals(vectors) & seen
        assert not as_words(own) & seen
        assert not as_doubles(own) & seen
        masked = b"".join(part.content for part in recording.read[index] if part.header.kind is Kind.SUM)
        assert len(masked) > 50_000
        assert abs(chi_square(masked)) < 6


def check_what_travels(recording: Recording) -> None:
    """By the broker: ciphertext in the frames, and no number about rows in any other message."""
    own = telling(vector for vectors in recording.own.values() for vector in vectors)
    numbers = as_words(own | telling(recording.opened))
    for frames in recording.frames.values():
        assert not numbers & windows(frames, 8)
        assert abs(chi_square(b"".join(frame[HEADER_BYTES:] for frame in frames))) < 6
    for messages in recording.said.values():
        assert not numbers & windows(messages, 8)
        text = b" ".join(messages)
        assert not any(word.hex().encode() in text for word in sorted(as_words(own))[:2000])


async def test_nothing_of_one_hospital_is_in_what_leaves_it(recording: Recording, tmp_path: Path) -> None:
    outcome = await run_plan(plan_of(tmp_path), live=False)
    assert outcome.result.state == "FINISHED"
    assert sorted(recording.own) == [1, 2, 3, 4]
    assert len(recording.frames) == 4
    check_what_can_be_read(recording)
    check_what_travels(recording)
