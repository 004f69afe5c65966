"""One site's part of a strict session, as its training sees it: ask for a sum, relay a split, agree on trees.

While the journal replays, answers come from it and nothing is asked; after that they come over the live line and go
into the journal. Every step of the session is a question of ours, so the chain over its results is known here as well
as in the connector. That is needed: a round goes into the journal before the sites are asked to agree on it, with the
chain that there will be if they do, since they may agree although this site never hears of it.
"""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cohortium_connector.training.course import Place, UnknownCollective
from cohortium_connector.training.journal import METRIC, Journal
from cohortium_connector.training.live_wire import (
    AGREE,
    RELAY,
    STOP,
    SUM,
    ChildBridge,
    LiveFault,
    relay_parts,
)
from cohortium_connector.training.splits import Splits
from cohortium_protocol.strict.exact import from_fixed, histogram_scale, scalar_sums, scalar_words, to_fixed
from cohortium_protocol.strict.steps import Kind, agreed_bytes, next_chain

Floats = NDArray[np.float64]
Words = NDArray[np.int64]

_HEADER: Final = b"H"
_TREES: Final = b"T"
_END: Final = b"E"
_ROOT = struct.Struct("<ddq")


class SessionStopped(Exception):
    """The connector has ended the session with this code, after so many rounds."""

    def __init__(self, code: str, rounds: int) -> None:
        super().__init__(f"{code} after {rounds} rounds")
        self.code = code
        self.rounds = rounds


class SumImpossible(UnknownCollective):
    """An opened count cannot be true: it is negative, or beyond all rows of the study."""


@dataclass(frozen=True, slots=True)
class Share:
    """What a site's sums are scaled by. The same at all sites, but for `own_rows`.

    `total_rows`: training rows of all sites, `own_rows`: of this one, those that train. `bound`: from the opened counts
    of rows, the most that one row adds to a cell of a histogram. `keeps_histograms`: the journal keeps what LightGBM
    got of each histogram, for parameters that draw by what they find in it (`extra_trees`).
    """

    sites: int
    own_rows: int
    total_rows: int
    bound: Callable[[tuple[int, ...]], float]
    keeps_histograms: bool


class Session:
    """Answers what LightGBM gathers. Scaling and rounding are done here; masking is the connector's. `chain`: over all
    results of the run before this session."""

    def __init__(self, bridge: ChildBridge, journal: Journal, share: Share, chain: bytes) -> None:
        self._bridge = bridge
        self._journal = journal
        self._share = share
        self._chain = chain
        self._counts: list[int] = []
        self._scale: tuple[float, int] | None = None
        self.steps = 0
        """Steps of the session that have their result."""
        self.replayed = 0
        """Rounds that came out of the journal."""

    @property
    def interrupted(self) -> bool:
        """Has somebody asked this process to end what it does?"""
        return self._bridge.interrupted()

    def count(self, mine: int) -> int:
        """Rows of a kind, over all sites. Before the first histogram."""
        if self._journal.replaying:
            total = int(struct.unpack("<q", self._journal.take(Place.COUNT.value))[0])
        else:
            total = self._possible(int(self._sum(np.array([mine], dtype=np.int64))[0]))
            self._journal.note(Place.COUNT.value, struct.pack("<q", total))
        self._counts.append(total)
        return total

    def number(self, place: Place, mine: float) -> float:
        """The sum of one number, rounded once."""
        if self._journal.replaying:
            return float(struct.unpack("<d", self._journal.take(place.value))[0])
        (total,) = scalar_sums(self._sum(scalar_words([mine])))
        self._journal.note(place.value, struct.pack("<d", total))
        return total

    def root(self, hessian: float, gradient: float, rows: int) -> tuple[float, float, int]:
        """Totals of a tree's root: Σ hessian, Σ gradient, rows."""
        if self._journal.replaying:
            kept = _ROOT.unpack(self._journal.take(Place.ROOT.value))
            return float(kept[0]), float(kept[1]), int(kept[2])
        words = np.append(scalar_words([hessian, gradient]), np.int64(rows))
        sums = self._sum(words)
        all_rows = self._possible(int(sums[-1]))
        all_hessian, all_gradient = scalar_sums(sums[:-1])
        self._journal.note(Place.ROOT.value, _ROOT.pack(all_hessian, all_gradient, all_rows))
        return all_hessian, all_gradient, all_rows

    def histogram(self, cells: Floats, own: slice) -> Floats | None:
        """The part `own` of the summed cells; None while a replay does without."""
        limit, exponent = self._cell_scale()
        if self._journal.replaying:
            if not self._share.keeps_histograms:
                return None
            kept = np.frombuffer(self._journal.take(Place.HISTOGRAM.value), dtype="<i8").astype(np.int64)
            return from_fixed(kept, exponent)
        sums = self._sum(to_fixed(cells, exponent, limit))[own]
        if self._share.keeps_histograms:
            self._journal.note(Place.HISTOGRAM.value, sums.astype("<i8", copy=False).tobytes())
        return from_fixed(sums, exponent)

    def _cell_scale(self) -> tuple[float, int]:
        """The largest cell of this site, and the exponent of all sites' fixed point."""
        if self._scale is None:
            bound = self._share.bound(tuple(self._counts))
            self._scale = self._share.own_rows * bound, histogram_scale(self._share.total_rows, bound)
        return self._scale

    def splits(self, mine: bytes, rules: Splits) -> bytes:
        """The best splits of both leaves, of all sites' finds."""
        if self._journal.replaying:
            return rules.best((self._journal.take(Place.SPLITS.value),))
        best = rules.best(self._relay(rules.wiped(mine)))
        self._journal.note(Place.SPLITS.value, best)
        return best

    def metric(self, words: Words) -> Words:
        """The sum that early stopping looks at."""
        if self._journal.replaying:
            return np.frombuffer(self._journal.take(METRIC), dtype="<i8").astype(np.int64)
        sums = self._sum(words)
        self._journal.note(METRIC, sums.astype("<i8", copy=False).tobytes())
        return sums

    def agree_header(self, header: str) -> None:
        """All sites are about to write the same model: asked in each session, kept in none."""
        self._agree(_HEADER + header.encode("ascii"))

    def agree_round(self, round_: int, trees: str) -> None:
        """The trees of a finished round are the same everywhere; then the round stands."""
        content = _TREES + trees.encode("ascii")
        if self._journal.replaying:
            self._journal.take_round(round_, content)
            self.replayed += 1
            return
        chain = next_chain(self._chain, self.steps, Kind.AGREE, agreed_bytes(content))
        self._journal.note_round(round_, chain, content)
        self._agree(content)

    def agree_end(self, *, best_round: int, rounds: int) -> None:
        """Training is over; trees after `best_round` are not part of the model."""
        end = json.dumps({"best_round": best_round, "rounds": rounds}, separators=(",", ":"), sort_keys=True)
        self._agree(_END + end.encode("ascii"))

    def _possible(self, rows: int) -> int:
        if not 0 <= rows <= self._share.total_rows:
            raise SumImpossible("a count of rows is opened that cannot be")
        return rows

    def _sum(self, words: Words) -> Words:
        payload = self._ask(SUM, words.astype("<i8", copy=False).tobytes())
        if len(payload) != 8 * words.size:
            raise LiveFault(f"{len(payload)} bytes answer {words.size} words")
        self._answered(Kind.SUM, payload)
        return np.frombuffer(payload, dtype="<i8").astype(np.int64, copy=False)

    def _relay(self, content: bytes) -> tuple[bytes, ...]:
        payload = self._ask(RELAY, content)
        self._answered(Kind.RELAY, payload)
        return relay_parts(payload, self._share.sites)

    def _agree(self, content: bytes) -> None:
        payload = self._ask(AGREE, content)
        self._answered(Kind.AGREE, agreed_bytes(content))
        if payload != self._chain:
            raise LiveFault("the connector's chain of results is another one")

    def _ask(self, kind: int, content: bytes) -> bytes:
        answered, payload = self._bridge.ask(kind, content)
        if answered == STOP:
            raise SessionStopped(payload.decode("ascii", errors="replace")[:64], self._journal.rounds)
        return payload

    def _answered(self, kind: Kind, result: bytes) -> None:
        self._chain = next_chain(self._chain, self.steps, kind, result)
        self.steps += 1
