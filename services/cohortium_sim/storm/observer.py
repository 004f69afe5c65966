"""What is seen of a federation while it runs, and what must never be seen.

Messages are read where they reach the broker; vectors where a site masks them and where the aggregator opens a sum. A
message that is repeated is the same message: only what contradicts an earlier one is a violation.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cohortium_aggregator import opener
from cohortium_aggregator.domain.states import SumReleased
from cohortium_aggregator.making import Job
from cohortium_aggregator.summing import rebuild_masks, sum_reader
from cohortium_connector import sealing, uploads
from cohortium_kit.bus import Delivery, Outgoing
from cohortium_messages.envelope import KEY_ID_HEADER
from cohortium_messages.topology import ENTRIES
from cohortium_protocol.masking import Words
from cohortium_protocol.opening import check_unmask
from cohortium_protocol.plan import ChunkPlan
from cohortium_protocol.upload import SiteMasker, header_hash
from cohortium_sim.storm.replacing import replaced

READY, UPLOAD = "cohortium.window.ready.v1", "cohortium.window.upload.v1"
SURVIVORS, ECHO = "cohortium.window.survivors.v1", "cohortium.window.echo.v1"
UNMASK, VOTE = "cohortium.window.unmask.v1", "cohortium.window.abort_vote.v1"
CERT, ABORTED = "cohortium.window.echo_cert.v1", "cohortium.window.abort_cert.v1"
OPENED, FAULT = "cohortium.audit.aggregate_opened.v1", "cohortium.audit.fault_seen.v1"
AUTHORISED, GRANT_ENDED = "cohortium.consent.authorised.v1", "cohortium.consent.grant_ended.v1"
GIVES_AWAY = frozenset({READY, UPLOAD, ECHO, UNMASK})
"""What a hospital says only as a part of a sum."""
CONSENT = "service:consent"
PRESENCE = "cohortium.site.presence.v1"
ENDED = "cohortium.audit.window_ended.v1"
NEVER = frozenset({"CANARY_MISMATCH", "UPLOADS_LOST", "SHARES_INCONSISTENT", "SUM_NOT_FINITE", "ROUNDS_LOST"})
"""Reasons for the end of a window that no fault of network, machine or absence explains."""
MOST_LINES = 20_000


@dataclass(frozen=True, slots=True)
class Plain:
    """What a site masked for one window: the words, chunk by chunk, and the finished work that they are."""

    index: int
    product: str
    header_hash: bytes
    chunks: tuple[Words, ...] = field(repr=False)


@dataclass
class Observer:
    """One federation's witness. `violations`: what must not be, in words, the first one first."""

    violations: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    events: dict[str, str] = field(default_factory=dict)
    """Audit events that the broker took, by id: their types."""
    tellers: dict[str, str] = field(default_factory=dict)
    """Who said them: `site:<id>` or `service:<name>`."""
    opened: set[str] = field(default_factory=set)
    """Windows whose sum was opened."""
    counted: set[str] = field(default_factory=set)
    """Sites of which an update was in one."""
    accused: list[str] = field(default_factory=list)
    spoken: set[str] = field(default_factory=set)
    """Ids of all messages that reached the broker."""
    gone: dict[str, frozenset[str]] = field(default_factory=dict)
    """Sites that withdrew, and what they had said before, by message id."""
    put_back: set[str] = field(default_factory=set)
    """Key ids of services whose clock was put back: of their times the later one is not the greater one."""
    last_s: float = 0.0
    """When anything but presence was last said."""
    _left: dict[tuple[str, str], dict[str, int]] = field(default_factory=lambda: defaultdict(dict))
    _certified: dict[str, int] = field(default_factory=dict)
    _aborted: set[str] = field(default_factory=set)
    _plain: dict[tuple[str, str], dict[bytes, Plain]] = field(default_factory=lambda: defaultdict(dict))
    _once: dict[tuple[str, ...], str] = field(default_factory=dict)
    _used: dict[tuple[str, str], str] = field(default_factory=dict)
    _ended: dict[str, str] = field(default_factory=dict)
    _history: Any = field(default_factory=hashlib.sha256)

    def violation(self, text: str) -> None:
        if text not in self.violations:
            self.violations.append(text)

    @property
    def digest(self) -> str:
        """Of the whole history: two runs of a scenario have the same one."""
        return str(self._history.hexdigest())[:16]

    def note(self, now: float, text: str) -> None:
        """One line of history. Nothing in it may come from a key, a mask or a random id."""
        line = f"{now:12.6f}  {text}"
        self._history.update(line.encode())
        if len(self.lines) < MOST_LINES:
            self.lines.append(line)

    # Messages

    def said(self, outgoing: Outgoing, now: float = 0.0) -> None:
        """The broker has taken a message."""
        if outgoing.type != PRESENCE:
            self.last_s = now
        self.spoken.add(outgoing.message_id)
        if outgoing.type.startswith("cohortium.audit.") and outgoing.exchange != ENTRIES.name:
            self.events[outgoing.message_id] = outgoing.type
            self.tellers[outgoing.message_id] = outgoing.headers[KEY_ID_HEADER]
        if outgoing.type not in _WATCHED:
            return
        envelope: dict[str, Any] = json.loads(outgoing.body)
        data: dict[str, Any] = envelope["data"]
        source: str = envelope["source"]
        if outgoing.type in GIVES_AWAY:
            self._by_site(outgoing, source.removeprefix("/site/"), data)
        match outgoing.type:
            case "cohortium.window.survivors.v1":
                shown = data["bitmap"] + "".join(data["header_hashes"])
                self._same(("survivor set", data["window_id"]), shown, "was changed after it was shown")
            case "cohortium.window.abort_vote.v1":
                self._promise(data["window_id"], source, "promised not to unmask")
            case "cohortium.window.echo_cert.v1":
                self._certified[data["window_id"]] = int.from_bytes(bytes.fromhex(data["bitmap"]), "little")
            case "cohortium.window.abort_cert.v1":
                self._aborted.add(data["window_id"])
            case "cohortium.audit.window_ended.v1":
                if data["state"] == "FAILED_INTEGRITY" or data["reason"] in NEVER:
                    self.violation(f"window {_short(data['window_id'])} ended {data['state']} {data['reason']}")
            case "cohortium.audit.aggregate_opened.v1":
                self._opened(data)
            case "cohortium.audit.fault_seen.v1":
                self.accused.append(f"{data['key_id']} of {data['code']} by {source}")
            case "cohortium.consent.grant_ended.v1":
                self._ended.setdefault(data["site_id"], envelope["time"])
            case "cohortium.consent.authorised.v1":
                self._authorised(envelope["time"], data)
            case _:
                pass

    def _by_site(self, outgoing: Outgoing, site: str, data: dict[str, Any]) -> None:
        window: str = data["window_id"]
        before = self.gone.get(site)
        if before is not None and outgoing.message_id not in before:
            self.violation(f"{_short(site)} withdrew, and then sent {_name(outgoing.type)} of window {_short(window)}")
        match outgoing.type:
            case "cohortium.window.ready.v1":
                self._same(("mask key", data["mask_pk"]), window, "serves in two windows: its masks can be taken off")
                self._same(("seal key", data["seal_pk"]), window, "serves in two windows")
            case "cohortium.window.upload.v1":
                about = ("upload", window, site)
                self._same(about, data["vec_root"] + data["self_commit"], "is another vector under the same masks (R1)")
                self._leaves(window, site)
            case "cohortium.window.echo.v1":
                self._same(("echo", window, site), data["survivors_hash"], "confirms another survivor set (R4)")
            case _:
                self._same(("shares", window, site), data["survivors_hash"], "are for another survivor set (R5)")
                self._same(("opening", window), data["survivors_hash"], "has shares for two survivor sets (R5)")
                self._promise(window, f"/site/{site}", "gave its shares")

    def _leaves(self, window: str, site: str) -> None:
        """An update that left goes out again only where a certificate shows that the first one stays masked (R6)."""
        for plain in self._plain[window, site].values():
            earlier = self._left[site, plain.product]
            for other, index in earlier.items():
                shut_out = other in self._certified and not self._certified[other] >> (index - 1) & 1
                if other != window and not shut_out and other not in self._aborted:
                    self.violation(
                        f"an update of {_short(site)} left in windows {_short(other)} and {_short(window)} (R6)"
                    )
            earlier[window] = plain.index

    def _same(self, about: tuple[str, ...], value: str, otherwise: str) -> None:
        if self._once.setdefault(about, value) != value:
            self.violation(f"{about[0]} {' '.join(map(_short, about[1:]))} {otherwise}")

    def _promise(self, window: str, source: str, what: str) -> None:
        self._same(("window", window, source), what, "was both promised never to be unmasked and unmasked (R6)")

    def _authorised(self, time: str, data: dict[str, Any]) -> None:
        if CONSENT in self.put_back:
            return
        for permit in data["permits"]:
            ended = self._ended.get(permit["site_id"])
            if permit["permitted"] and ended is not None and time > ended:
                self.violation(f"{_short(permit['site_id'])} was permitted into a window after its grant had ended")

    def _opened(self, data: dict[str, Any]) -> None:
        window: str = data["window_id"]
        self.opened.add(window)
        for site in data["survivors"]:
            for plain in self._plain[window, site].values():
                first = self._used.setdefault((site, plain.product), window)
                if first != window:
                    self.violation(
                        f"an update of {_short(site)} was counted in windows {_short(first)}, {_short(window)}"
                    )

    # Vectors

    def masked(self, order: sealing.Order, plain: Plain) -> None:
        site = order.view.entry(order.index).site_id
        self._plain[order.view.window_id.hex(), site][plain.header_hash] = plain

    def summed(self, job: Job, seal_key: Any) -> None:
        """Whether the sum that was opened is the integer sum of what its declared survivors masked, word for word; and
        that of no site everything was opened."""
        inputs, window = job.inputs, job.inputs.view.window_id.hex()
        inside = inputs.survivors.members
        plains = []
        for index, digest in zip(inside, inputs.survivors.header_hashes, strict=True):
            site = inputs.view.entry(index).site_id
            plain = self._plain[window, site].get(digest)
            if plain is None:
                self.violation(f"window {_short(window)} counts an upload that {_short(site)} did not make")
                return
            plains.append(plain)
        with sum_reader(inputs, rebuild_masks(inputs, seal_key)) as reader:
            for chunk in range(inputs.plan.chunk_count):
                expected = sum((plain.chunks[chunk].astype(np.uint64) for plain in plains), np.uint64(0))
                if not _agree(
                    inputs.plan, chunk, job.window.session.params.vector.ring_bits, reader.words(chunk), expected
                ):
                    self.violation(f"the sum of window {_short(window)} is not that of its {len(inside)} survivors")
                    return
        self._both_masks(job, seal_key)
        if job.window.session.params.purpose == "update":
            self.counted |= {inputs.view.entry(index).site_id for index in inside}

    def _both_masks(self, job: Job, seal_key: Any) -> None:
        """A site's self seed may be opened, or its pair seeds, never both: else its vector is bare."""
        inputs = job.inputs
        selves: dict[int, int] = defaultdict(int)
        pairs: dict[frozenset[int], int] = defaultdict(int)
        for answer in inputs.answers.values():
            shares = check_unmask(inputs.view, inputs.survivors, answer, seal_key)
            for site in shares.own:
                selves[site] += 1
            for pair in shares.pairs:
                pairs[frozenset(pair)] += 1
        t = inputs.view.t
        for site in inputs.view.indices:
            others = [other for other in inputs.view.indices if other != site]
            bare = all(pairs[frozenset((site, other))] >= t for other in others)
            if selves[site] >= t and bare:
                window = inputs.view.window_id.hex()
                self.violation(f"both masks of site {site} of window {_short(window)} were opened (R5)")

    def heard(self, part: str, delivery: Delivery) -> None:
        """A handler begins with a message; nothing to check: it may come at any time, any number of times."""


_WATCHED = GIVES_AWAY | {SURVIVORS, VOTE, OPENED, FAULT, AUTHORISED, GRANT_ENDED, CERT, ABORTED, ENDED}


def _agree(plan: ChunkPlan, chunk: int, ring_bits: int, words: Words, expected: Any) -> bool:
    """Modulo the ring; the tail's words keep the width of their type."""
    width = 8 * np.dtype(plan.dtype).itemsize
    tail = plan.chunk(chunk).tail
    masks = np.full(len(words), (1 << ring_bits) - 1, dtype=np.uint64)
    if tail:
        masks[-tail:] = (1 << width) - 1
    return bool(np.array_equal(words.astype(np.uint64) & masks, expected & masks))


def _short(name: str) -> str:
    return name[:8] if len(name) > 12 else name


def _name(kind: str) -> str:
    return kind.removeprefix("cohortium.").removesuffix(".v1")


@contextmanager
def watching(observer: Observer) -> Iterator[None]:
    """Look on where vectors are masked and sums are opened. What happens there is not changed."""
    make_upload, mask_chunk, make = sealing.make_upload, SiteMasker.mask_chunk, opener.Opener._make
    chunks: list[Words] = []

    def seen_chunk(self: SiteMasker, index: int, words: Words) -> bytes:
        chunks.append(words.copy())
        return mask_chunk(self, index, words)

    def seen_upload(order: sealing.Order, *args: Any) -> sealing.Finished:
        chunks.clear()
        finished = make_upload(order, *args)
        digest = header_hash(finished.header)
        observer.masked(order, Plain(order.index, order.product.product_id, digest, tuple(chunks)))
        return finished

    def seen_sum(self: opener.Opener, job: Job) -> Any:
        outcome = make(self, job)
        if isinstance(outcome[0], SumReleased):
            observer.summed(job, self._ctx.seal_key)
        return outcome

    with (
        replaced(uploads, make_upload=seen_upload),
        replaced(SiteMasker, mask_chunk=seen_chunk),
        replaced(opener.Opener, _make=seen_sum),
    ):
        yield
