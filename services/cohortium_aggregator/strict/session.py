"""One strict session in memory: its keys, the step that it is at, and how far it has come. No input or output."""

from dataclasses import dataclass, field, replace

from cohortium_aggregator.domain.strict_states import Progress
from cohortium_aggregator.store.windows import Session
from cohortium_messages.ids import SiteId
from cohortium_messages.lightgbm import LightgbmParams
from cohortium_messages.secure_sum import StrictSpec
from cohortium_messages.study import LightgbmRecipe, Study
from cohortium_messages.topology import session_partition, steps_key
from cohortium_protocol.errors import AgreementFailed, IntegrityFault, RemoteFault, StepRefused
from cohortium_protocol.keys import SealKey
from cohortium_protocol.signing import IdentityKey
from cohortium_protocol.strict.collector import Collector, StepResult, Taken
from cohortium_protocol.strict.frames import FrameHeader, FramePart, ResultSealer, SessionSecret, StepOpener
from cohortium_protocol.strict.steps import limits_of
from cohortium_protocol.trees.binning import Binning

STEPS_PER_SPLIT = 4
STEPS_PER_TREE = 16
STEPS_PER_ROUND = 16
STEPS_TO_BEGIN = 256


class TooManySteps(RemoteFault):
    """The session has more steps than the trees of its study can need."""

    code = "TOO_MANY_STEPS"


@dataclass(frozen=True, slots=True)
class Broken:
    """Why a session cannot go on. `gone`: the sites that ended it, by index; none where it cannot be told. `is_fault`:
    their own frames break the protocol."""

    code: str
    gone: tuple[int, ...] = ()
    is_fault: bool = False


@dataclass(frozen=True, slots=True)
class Material:
    """What a session is made from: its window, its run's study and bins, and the secret of its results. `begin_s`:
    seconds that are left for its first step."""

    session: Session
    spec: StrictSpec
    study: Study
    rules: Binning
    begin_s: float
    secret: SessionSecret = field(repr=False)


def most_steps(study: Study) -> int:
    """Generous: two collectives for each split, a few for each tree and round."""
    params = study.recipe.params if isinstance(study.recipe, LightgbmRecipe) else LightgbmParams()
    tree = STEPS_PER_TREE + STEPS_PER_SPLIT * params.num_leaves
    return STEPS_TO_BEGIN + study.boosting_rounds * (STEPS_PER_ROUND + study.trees_per_round * tree)


class HeldSession:
    """A session whose steps this process holds.

    `take` gives the result of each step once; `seal` makes its frames, which `last_frames` keeps until the next.
    Whoever calls decides when a result may be shown: one that changes the records, after they are written.
    """

    def __init__(self, material: Material, seal_key: SealKey, key: IdentityKey) -> None:
        """Raises `ValueError` where the study's relays are too large for so many sites."""
        self.material = material
        self.view = material.session.view
        self.over = False
        self.writing = False
        """The last step's result waits for its record, so no site can be late."""
        self.last_frames: tuple[bytes, ...] = ()
        self._opener = StepOpener(self.view, seal_key)
        self._sealer = ResultSealer(self.view, material.secret, key)
        self._collector = Collector(self.view.n, material.spec.chain, limits_of(material.study))
        self._most_steps = most_steps(material.study)
        self._progress = Progress(material.spec.trees_done, material.spec.chain)
        self.deadline = 0.0
        """When the step is late, by the service's monotonic clock; and when our word is to be renewed."""
        self.renew_at = 0.0
        partition = session_partition(self.window_id)
        self._keys = [steps_key(site, partition) for site in material.session.sites]

    @property
    def window_id(self) -> bytes:
        return self.material.session.window_id

    @property
    def name(self) -> str:
        """For messages about this session."""
        return self.window_id.hex()

    def site(self, index: int) -> SiteId:
        return self.material.session.site(index)

    @property
    def step(self) -> int:
        """The step that is being collected."""
        return self._collector.step

    @property
    def progress(self) -> Progress:
        """The rounds that are on record, and the steps so far."""
        return replace(self._progress, steps=self._collector.step, sums=self._collector.sums)

    def routing_key(self, index: int) -> str:
        """The key under which this site's frames must come. Raises `NotAMember`."""
        self.view.entry(index)
        return self._keys[index - 1]

    def silent(self) -> tuple[int, ...]:
        """The sites that the current step waits for."""
        return self._collector.waiting_for()

    def open(self, frame: bytes) -> FramePart:
        """The part in a site's frame. Raises `RemoteFault` for a frame that no site of this session sealed."""
        return self._opener.open(frame)

    def take(self, part: FramePart, frame_bytes: int) -> StepResult | Taken | Broken:
        """Add an authentic part. After `Broken` the session takes nothing more."""
        try:
            taken = self._collector.take(part)
            if self._collector.step > self._most_steps:
                raise TooManySteps(f"step {self._collector.step}")
        except RemoteFault as fault:
            return _broken(fault, part.header, self.view.n)
        if taken is not Taken.REPEATED and taken is not Taken.BEHIND:
            self._count(frame_bytes, 0)
        return taken

    def seal(self, result: StepResult) -> tuple[bytes, ...]:
        """The frames that show a result to all sites: encrypted and signed once."""
        self.last_frames = self._sealer.seal(result.step, result.kind, result.chain, result.payload)
        self._count(0, self.view.n * sum(map(len, self.last_frames)))
        return self.last_frames

    def with_round(self, chain: bytes) -> Progress:
        """How far the session has come once one more round, which ends with `chain`, is on record."""
        return replace(self.progress, trees=self._progress.trees + 1, chain=chain)

    def recorded(self, progress: Progress) -> None:
        """What `with_round` said is on record. The round stands even where no site hears of it any more: each wrote it
        down before it asked."""
        self._progress = replace(self._progress, trees=progress.trees, chain=progress.chain)

    def _count(self, up: int, down: int) -> None:
        known = self._progress
        self._progress = replace(known, bytes_up=known.bytes_up + up, bytes_down=known.bytes_down + down)


def _broken(fault: RemoteFault, header: FrameHeader, n: int) -> Broken:
    match fault:
        case IntegrityFault():
            return Broken("CANARY_MISMATCH")
        case TooManySteps():
            return Broken(fault.code)
        case AgreementFailed(differing=differing):
            few = 2 * len(differing) < n  # else the one that they differ from may be the wrong one
            return Broken(fault.code, differing if few else (), is_fault=few)
        case StepRefused(index=index):
            return Broken(fault.code, (index,), is_fault=True)
        case _:
            return Broken(fault.code, (header.index,), is_fault=True)
