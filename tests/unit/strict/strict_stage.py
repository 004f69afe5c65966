"""A strict session without a network: real sites and a real collector hand each other their frames."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from federation_in_memory import AGGREGATOR_SEAL, MODEL_7, Site, digest, integer_spec, manifest_of, params_of

from cohortium_messages.secure_sum import ModelRef, StrictSpec
from cohortium_protocol import window
from cohortium_protocol.signing import IdentityKey
from cohortium_protocol.strict.collector import Collector, StepResult, Taken
from cohortium_protocol.strict.frames import (
    ResultOpener,
    ResultSealer,
    SessionSecret,
    StepOpener,
    StepSealer,
    open_session_key,
    seal_session_key,
)
from cohortium_protocol.strict.masks import StrictSite
from cohortium_protocol.strict.session import Answer, SiteSession
from cohortium_protocol.strict.steps import START, Kind, SessionLimits
from cohortium_protocol.window import RosterView

Values = npt.NDArray[np.int64]

AGGREGATOR = IdentityKey.from_seed(digest("aggregator"))
SECRET = SessionSecret(digest("session"))
LIMITS = SessionLimits(sum_words=400_000, relay_bytes=2000, agree_bytes=3 << 20)


def strict_spec(chain: bytes = START, trees_done: int = 0) -> StrictSpec:
    return StrictSpec(step_s=30, rounds=100, trees_done=trees_done, chain=chain, total_rows=1000)


@dataclass(frozen=True, slots=True)
class Roster:
    """Sites 1..n with their window keys, and the roster of a strict window after all its checks."""

    sites: tuple[Site, ...]
    view: RosterView

    @classmethod
    def of(cls, n: int, window_name: str = "strict", chain: bytes = START) -> "Roster":
        sites = tuple(Site.number(i, window_name) for i in range(1, n + 1))
        manifest = manifest_of(sites)
        params = params_of(
            manifest,
            integer_spec(1, ring_bits=64),
            window_id=digest(window_name)[:16],
            kind="strict",
            purpose="training",
            bases=(ModelRef(version=1, model_hash=MODEL_7),),
            strict=strict_spec(chain),
        )
        readies = [window.make_ready(params, site.site_id, MODEL_7, site.keys, site.identity) for site in sites]
        roster = window.make_roster(params, manifest, readies)
        return cls(sites, window.verify_roster(roster, params, manifest, readies[0]))

    @property
    def n(self) -> int:
        return len(self.sites)

    def strict_site(self, index: int) -> StrictSite:
        return StrictSite(self.view, index, self.sites[index - 1].keys)

    def step_sealer(self, index: int) -> StepSealer:
        return StepSealer(self.view, index, self.sites[index - 1].keys, AGGREGATOR_SEAL.public)

    def told_secret(self, index: int, secret: SessionSecret = SECRET) -> SessionSecret:
        """The session's secret on its way through a `SessionKey` message."""
        keys = self.sites[index - 1].keys
        place = (self.view.window_id, self.view.roster_hash, index)
        return open_session_key(seal_session_key(secret, *place, keys.seal_pk), *place, keys.seal)

    def session(self, index: int, chain: bytes = START) -> SiteSession:
        opener = ResultOpener(self.view, self.told_secret(index), AGGREGATOR.public)
        return SiteSession(self.strict_site(index), self.step_sealer(index), opener, chain, LIMITS)


class Stage:
    """Sites and aggregator of one session, in step."""

    def __init__(self, n: int, window_name: str = "strict", chain: bytes = START) -> None:
        self.roster = Roster.of(n, window_name, chain)
        self.view = self.roster.view
        self.sites = [self.roster.session(index, chain) for index in self.view.indices]
        self.opener = StepOpener(self.view, AGGREGATOR_SEAL)
        self.collector = Collector(n, chain, LIMITS)
        self.sealer = ResultSealer(self.view, SECRET, AGGREGATOR)

    def ask(self, kind: Kind, payloads: Sequence[Values] | Sequence[bytes]) -> list[tuple[bytes, ...]]:
        """Every site's frames of one step."""
        made = []
        for site, payload in zip(self.sites, payloads, strict=True):
            if isinstance(payload, bytes):
                made.append(site.relay(payload) if kind is Kind.RELAY else site.agree(payload))
            else:
                made.append(site.sum(payload))
        return made

    def collect(self, frames: Sequence[bytes]) -> list[StepResult | Taken]:
        return [self.collector.take(self.opener.open(frame)) for frame in frames]

    def seal(self, result: StepResult) -> tuple[bytes, ...]:
        return self.sealer.seal(result.step, result.kind, result.chain, result.payload)

    def step(self, kind: Kind, payloads: Sequence[Values] | Sequence[bytes]) -> list[Answer]:
        """A whole step without any trouble: what each site is answered."""
        frames = [frame for made in self.ask(kind, payloads) for frame in made]
        *earlier, result = self.collect(frames)
        assert set(earlier) <= {Taken.KEPT}
        assert isinstance(result, StepResult)
        answers = []
        for site in self.sites:
            *waiting, answer = [site.take(frame) for frame in self.seal(result)]
            assert set(waiting) <= {None}
            assert isinstance(answer, Answer)
            answers.append(answer)
        return answers

    def sum(self, values: Sequence[Values]) -> Values:
        """The opened sum, as every site is shown it."""
        answers = self.step(Kind.SUM, values)
        assert len({answer.payload for answer in answers}) == 1
        return answers[0].values()


def some_values(n: int, words: int, seed: int = 0) -> list[Values]:
    """Different values for each site, over almost all of what n of them can add without overflow."""
    most = (1 << 62) // n
    return [np.random.default_rng([seed, index]).integers(-most, most, words) for index in range(1, n + 1)]
