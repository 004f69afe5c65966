"""A site's side of one strict session: payloads and results in their order, and nothing else (section 3.6). No
input or output."""

from dataclasses import dataclass, field

from cohortium_protocol.errors import ChainMismatch, OutOfOrder, ProtocolError, ResultRefused
from cohortium_protocol.strict.frames import Frame, FrameHeader, FramePart, ResultOpener, StepSealer
from cohortium_protocol.strict.masks import StrictSite
from cohortium_protocol.strict.steps import (
    DIGEST_BYTES,
    Kind,
    SessionLimits,
    Values,
    agreed_bytes,
    next_chain,
    split_relay,
    sum_values,
)


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a step that this site asked for. `chain` is over it and all results before it."""

    step: int
    kind: Kind
    payload: bytes = field(repr=False)
    chain: bytes

    def values(self) -> Values:
        """Of a SUM: the opened sums; read-only."""
        return sum_values(self.payload)


@dataclass(slots=True)
class _Asked:
    kind: Kind
    frames: tuple[bytes, ...]
    content: bytes
    """RELAY: what we sent. AGREE: the result that says that all others hold the same."""
    least: int
    most: int
    """Bytes that the result can have."""
    parts: dict[int, FramePart] = field(default_factory=dict)
    length: int = -1


class SiteSession:
    """One step after the other: ask (`sum`, `relay` or `agree`), send the frames, `take` result frames until one
    answers.

    The chain goes on with each answer, so this object is the only place that knows what may be masked next. A fault
    that the aggregator answers for ends it: afterwards everything raises `OutOfOrder`. It is never continued from
    storage; a restarted site waits for another session.
    """

    def __init__(
        self, site: StrictSite, link: StepSealer, results: ResultOpener, chain: bytes, limits: SessionLimits
    ) -> None:
        """`chain`: the window's `strict.chain`."""
        self.step = 0
        self.chain = chain
        self._site = site
        self._link = link
        self._results = results
        self._limits = limits
        self._asked: _Asked | None = None
        self._over = False

    def sum(self, values: Values) -> tuple[bytes, ...]:
        """Frames that ask for the sum of `values` over all sites, which each send as many. The only way by which a
        site's numbers leave it: they are masked here. Raises `OutOfOrder` while a step is open, `ValueError` beyond the
        limits."""
        self._check_free()
        if not 1 <= len(values) <= self._limits.sum_words:
            raise ValueError(f"{len(values)} words; at most {self._limits.sum_words}")
        masked = self._site.mask(self.step, self.chain, values)
        size = 8 * len(values)
        return self._ask(Kind.SUM, masked, b"", (size, size))

    def relay(self, content: bytes) -> tuple[bytes, ...]:
        """Frames that ask for every site's bytes. The aggregator and all sites read them: give nothing but functions
        of opened results. Raises as `sum`."""
        self._check_free()
        n = self._site.view.n
        self._check_size(Kind.RELAY, content)
        return self._ask(Kind.RELAY, content, content, (4 * n + len(content), self._limits.down(Kind.RELAY, n)))

    def agree(self, content: bytes) -> tuple[bytes, ...]:
        """Frames that ask whether all sites hold these bytes, which the aggregator reads. Raises as `sum`."""
        self._check_free()
        self._check_size(Kind.AGREE, content)
        return self._ask(Kind.AGREE, content, agreed_bytes(content), (DIGEST_BYTES, DIGEST_BYTES))

    @property
    def unanswered(self) -> tuple[bytes, ...]:
        """Frames of the open step, to be sent again as they are; none while no step is open."""
        return () if self._asked is None else self._asked.frames

    def take(self, frame: Frame) -> Answer | None:
        """The answer, once the result of the open step is complete. None for a part of it and for repeated frames.

        Raises `BadSignature`, `FrameRefused` or `WrongWindow` for a frame that the aggregator did not make for this
        session: drop it and go on. Raises `ResultRefused` or `ChainMismatch` where the aggregator broke the protocol:
        the session is over for this site, and nothing more is masked in it.
        """
        part = self._results.open(frame)
        if self._over:
            raise OutOfOrder("this site has left the session")
        if part.header.step < self.step:
            return None
        try:
            return self._take(part)
        except ProtocolError:
            self._over = True
            self._asked = None
            raise

    def _take(self, part: FramePart) -> Answer | None:
        asked = self._check_fits(part.header)
        known = asked.parts.setdefault(part.header.part, part)
        if known.tag != part.tag or asked.length not in (-1, part.header.length):
            raise ResultRefused(f"two results for step {self.step}")
        asked.length = part.header.length
        if len(asked.parts) < part.header.parts:
            return None
        payload = b"".join(asked.parts[number].content for number in range(part.header.parts))
        self._check_content(asked, payload)
        after = next_chain(self.chain, self.step, asked.kind, payload)
        answer = Answer(self.step, asked.kind, payload, after)
        self.step, self.chain, self._asked = self.step + 1, after, None
        return answer

    def _check_fits(self, header: FrameHeader) -> _Asked:
        asked = self._asked
        if asked is None or header.step > self.step:
            raise ResultRefused(f"a result of step {header.step} that nothing was sent for")
        if header.chain != self.chain:
            raise ChainMismatch(f"the aggregator stands on other results before step {header.step}")
        if header.kind is not asked.kind or not asked.least <= header.length <= asked.most:
            raise ResultRefused(
                f"{header.kind.name} of {header.length} bytes for the {asked.kind.name} of step {self.step}"
            )
        return asked

    def _check_content(self, asked: _Asked, payload: bytes) -> None:
        if asked.kind is Kind.AGREE and payload != asked.content:
            raise ResultRefused(f"step {self.step}: the others hold other bytes than this site")
        if asked.kind is Kind.RELAY:
            own = split_relay(payload, self._site.view.n)[self._site.index - 1]
            if own != asked.content:
                raise ResultRefused(f"step {self.step}: our own part was changed")

    def _ask(self, kind: Kind, payload: bytes, content: bytes, sizes: tuple[int, int]) -> tuple[bytes, ...]:
        frames = self._link.seal(self.step, kind, self.chain, payload)
        self._asked = _Asked(kind, frames, content, *sizes)
        return frames

    def _check_free(self) -> None:
        if self._over or self._asked is not None:
            raise OutOfOrder("the session is over" if self._over else f"step {self.step} is not answered yet")

    def _check_size(self, kind: Kind, content: bytes) -> None:
        if len(content) > self._limits.up(kind):
            raise ValueError(f"{len(content)} bytes for a {kind.name}; at most {self._limits.up(kind)}")
