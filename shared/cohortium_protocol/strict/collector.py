"""The aggregator's side of one strict session: parts in, results out (sections 3.2, 3.6). No input or
output, no keys, no time."""

from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import numpy.typing as npt

from cohortium_protocol.errors import AgreementFailed, ChainMismatch, NotAMember, OutOfOrder, StepRefused
from cohortium_protocol.strict.frames import FrameHeader, FramePart
from cohortium_protocol.strict.masks import open_sum
from cohortium_protocol.strict.steps import (
    CANARIES,
    MAX_PAYLOAD_BYTES,
    Kind,
    SessionLimits,
    agreed_bytes,
    join_relay,
    next_chain,
    sum_bytes,
)


@dataclass(frozen=True, slots=True)
class StepResult:
    """A complete step. `payload` is what all sites are shown, `chain` is over all results before it and `chain_after`
    over this one as well. `agreed`: of an AGREE, the bytes that all sites hold; empty otherwise."""

    step: int
    kind: Kind
    chain: bytes
    payload: bytes = field(repr=False)
    chain_after: bytes
    agreed: bytes = field(default=b"", repr=False)


class Taken(Enum):
    """What became of a part that completed no step."""

    KEPT = "kept"
    REPEATED = "repeated"
    """It was there already."""
    BEHIND = "behind"
    """It is of an earlier step: the site may not have seen `Collector.last` and can be sent it again."""


class _Step:
    """What has arrived for the current step. One payload in memory: sums are added up part by part."""

    def __init__(self, first: FrameHeader) -> None:
        self.kind = first.kind
        self.length = first.length
        self.first_site = first.index
        self.shapes: dict[int, tuple[int, int]] = {}
        self.tags: dict[tuple[int, int], bytes] = {}
        self.missing: dict[int, int] = {}
        self.total: npt.NDArray[np.uint64] = np.zeros(0, dtype=np.uint64)
        if first.kind is Kind.SUM:
            self.total = np.zeros(first.length // 8, dtype=np.uint64)
        self.contents: dict[int, dict[int, bytes]] = {}
        self.differing: set[int] = set()

    def absorb(self, part: FramePart) -> None:
        header = part.header
        match self.kind:
            case Kind.SUM:
                words = np.frombuffer(part.content, dtype="<u8")
                at = header.start // 8
                place = self.total[at : at + len(words)]
                np.add(place, words, out=place)
            case Kind.RELAY:
                self.contents.setdefault(header.index, {})[header.part] = part.content
            case Kind.AGREE:
                self._compare(part)

    def _compare(self, part: FramePart) -> None:
        """Keep the first to arrive of each part; remember who differs from it."""
        kept = self.contents.setdefault(0, {})
        same_length = part.header.length == self.length
        if not same_length or kept.setdefault(part.header.part, part.content) != part.content:
            self.differing.add(part.header.index)

    def content(self, index: int) -> bytes:
        parts = self.contents[index]
        return b"".join(parts[number] for number in sorted(parts))


class Collector:
    """Takes the parts of `n` sites, step by step, and says when a step is complete.

    Steps count from 0. A step is complete when every site's whole payload is in; nothing is opened before. Any fault of
    a site is final for the session: afterwards `take` raises `OutOfOrder`. The parts must come from `StepOpener`.
    """

    def __init__(self, n: int, chain: bytes, limits: SessionLimits) -> None:
        """`chain`: the window's `strict.chain`. Raises `ValueError` where n relays exceed what a result may hold."""
        if limits.down(Kind.RELAY, n) < n * (4 + limits.relay_bytes):
            raise ValueError(f"relays of {n} sites exceed {MAX_PAYLOAD_BYTES} bytes")
        self.n = n
        self.step = 0
        self.chain = chain
        self.sums = 0
        """How many sums were opened."""
        self.last: StepResult | None = None
        """The result of the step before this one."""
        self._limits = limits
        self._current: _Step | None = None
        self._failed = False

    def waiting_for(self) -> tuple[int, ...]:
        """Indices of the sites whose payload of the current step is not complete."""
        missing = {} if self._current is None else self._current.missing
        return tuple(index for index in range(1, self.n + 1) if missing.get(index) != 0)

    def take(self, part: FramePart) -> StepResult | Taken:
        """The result, if this part completes its step; otherwise what became of it.

        Raises `StepRefused`, `ChainMismatch` or `NotAMember` for a part that does not fit, `IntegrityFault` where the
        opened canaries are wrong, `AgreementFailed` where an AGREE's bytes differ; and `OutOfOrder` after any of them.
        """
        if self._failed:
            raise OutOfOrder("the session has failed")
        header = part.header
        if header.step < self.step:
            return Taken.BEHIND
        self._failed = True
        taken = self._take(part)
        self._failed = False
        return taken

    def _take(self, part: FramePart) -> StepResult | Taken:
        header = part.header
        self._check_place(header)
        if self._current is None:
            self._current = _Step(header)
        current = self._current
        self._check_shape(current, header)
        place = (header.index, header.part)
        known = current.tags.get(place)
        if known is not None:
            if known != part.tag:
                raise StepRefused(header.index, f"two different parts {header.part} of step {header.step}")
            return Taken.REPEATED
        current.tags[place] = part.tag
        current.absorb(part)
        current.missing[header.index] = current.missing.get(header.index, header.parts) - 1
        return Taken.KEPT if self.waiting_for() else self._complete(current)

    def _check_place(self, header: FrameHeader) -> None:
        if not 1 <= header.index <= self.n:
            raise NotAMember(f"index {header.index} of {self.n}")
        if header.step > self.step:
            raise StepRefused(header.index, f"step {header.step}; the session is at {self.step}")
        if header.chain != self.chain:
            raise ChainMismatch(f"site {header.index} stands on other results before step {header.step}")
        if header.length > self._limits.up(header.kind):
            raise StepRefused(header.index, f"{header.length} bytes for a {header.kind.name}")
        if header.kind is Kind.SUM and (header.length % 8 or header.length <= 8 * CANARIES):
            raise StepRefused(header.index, f"{header.length} bytes are no words to add")

    def _check_shape(self, current: _Step, header: FrameHeader) -> None:
        if header.kind is not current.kind:
            first = f"{current.kind.name} of site {current.first_site}"
            raise StepRefused(header.index, f"{header.kind.name} in step {header.step}, beside {first}")
        if header.kind is Kind.SUM and header.length != current.length:
            raise StepRefused(
                header.index, f"{header.length} bytes; site {current.first_site} sent {current.length} to be added"
            )
        shape = (header.length, header.parts)
        if current.shapes.setdefault(header.index, shape) != shape:
            raise StepRefused(header.index, f"two lengths in step {header.step}")

    def _complete(self, current: _Step) -> StepResult:
        agreed = self._agreed(current) if current.kind is Kind.AGREE else b""
        payload = self._payload(current, agreed)
        after = next_chain(self.chain, self.step, current.kind, payload)
        result = StepResult(self.step, current.kind, self.chain, payload, after, agreed)
        self.step, self.chain, self.last, self._current = self.step + 1, after, result, None
        return result

    def _payload(self, current: _Step, agreed: bytes) -> bytes:
        match current.kind:
            case Kind.SUM:
                opened = sum_bytes(open_sum(current.total, self.n))
                self.sums += 1
                return opened
            case Kind.RELAY:
                return join_relay([current.content(index) for index in range(1, self.n + 1)])
            case Kind.AGREE:
                return agreed_bytes(agreed)

    def _agreed(self, current: _Step) -> bytes:
        if current.differing:
            differing = tuple(sorted(current.differing))
            named = ", ".join(str(index) for index in differing)
            raise AgreementFailed(differing, f"step {self.step}: site {named} differs from site {current.first_site}")
        return current.content(0)
