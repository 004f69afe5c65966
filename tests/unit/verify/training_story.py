"""What everybody says in a study of LightGBM: two sessions, the first one paused, and the model of trees."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cohortium_messages import events as ev
from cohortium_messages.governance import Permit
from cohortium_messages.runs import EvaluationResult, WindowEnd
from cohortium_messages.secure_sum import ModelRef
from cohortium_messages.study import BinaryLabel
from cohortium_protocol.documents import grant_digest
from cohortium_protocol.parameters import model_hash
from cohortium_protocol.trees.bins import Binning, CategoryBins, NumberBins
from cohortium_protocol.trees.text import make_header, render
from governance_stage import DIGEST, STUDY, Hospital, Stage
from study_story import RUN, Line, attestation, study_lines, window, window_lines, witness_lines

BINNING = Binning(
    study_id=STUDY,
    study_digest=DIGEST,
    features=(
        NumberBins(name="age", low=18, high=110, whole=False, edges=(40.0, 60.0), missing="native"),
        CategoryBins(name="sex", levels=("f", "m"), missing="refuse"),
    ),
    label=BinaryLabel(name="disease", type="binary"),
    training_rows=400,
    sites=4,
)
STUMP = """\
Tree=0
num_leaves=2
num_cat=0
split_feature=0
split_gain=3
threshold=40
decision_type=10
left_child=-1
right_child=-2
leaf_value=0.1 -0.1
leaf_weight=30 20
leaf_count=120 80
internal_value=0
internal_weight=0
internal_count=200
is_linear=0
shrinkage=0.1


"""


def text(rounds: int) -> bytes:
    """A model of so many stumps."""
    header = make_header(("age", "sex"), ("[18:110]", "0:1"), objective="binary", classes=1)
    return render(header, [STUMP] * rounds, {"objective": "binary"})


def files_of(rounds: int, binning: Binning = BINNING) -> dict[str, bytes]:
    return {"model.txt": text(rounds), "preprocessing.json": binning.canonical(), "card.json": b"{}"}


def version(number: int, files: Mapping[str, bytes]) -> ModelRef:
    """The reference that these files have as a version."""
    digest = hashlib.sha256(files.get("model.txt", b"")).digest()
    return ModelRef(version=number, model_hash=model_hash(digest, files["preprocessing.json"]))


@dataclass(frozen=True)
class Session:
    """One strict session as it was: window, end, trees that stood after it, who was in it."""

    number: int
    state: WindowEnd
    trees: int
    model: int
    sites: tuple[Hospital, ...]
    chain: bytes = b""

    @property
    def links(self) -> bytes:
        return self.chain or hashlib.sha256(b"chain%d" % self.trees).digest()


@dataclass(frozen=True)
class Story:
    """The study's course. `files`: of the model that is bundled in the end."""

    stage: Stage
    sessions: Sequence[Session]
    rounds: int
    files: Mapping[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, stage: Stage, *, rounds: int = 8) -> "Story":
        """A session that paused at 5 trees, and one that ended at 8."""
        sites = tuple(stage.hospitals)
        sessions = (Session(2, "PAUSED", 5, 1, sites), Session(3, "RELEASED", 8, 2, sites))
        return cls(stage, sessions, rounds, files_of(rounds))

    def model(self, number: int) -> ModelRef:
        """The version of this number: the last one is the bundled files, the others are what stood then."""
        if number == self.sessions[-1].model:
            return version(number, self.files)
        trees = next((one.trees for one in self.sessions if one.model == number), 0)
        return version(number, {**files_of(trees or 1), **({} if trees else {"model.txt": b""})})

    def lines(self) -> list[Line]:
        ordinary = study_lines(self.stage)
        start = next(place for place, line in enumerate(ordinary) if isinstance(line.message, ev.ModelReleased))
        lines = [*ordinary[:start]]
        first = ev.ModelReleased(run_id=RUN, model=self.model(0), parent=None, window_id=window(1))
        lines.append(Line("aggregator", first))
        for session in self.sessions:
            lines += self.session_lines(session)
        last = self.sessions[-1].model
        lines += window_lines(self.stage, 9, "evaluation")
        result = EvaluationResult(model=self.model(last), rows=100, positives=40, auc=0.8)
        lines.append(Line("aggregator", ev.ModelEvaluated(run_id=RUN, window_id=window(9), result=result)))
        digest = hashlib.sha256(attestation(self.stage, self.files)).digest()
        bundled = ev.ModelBundled(run_id=RUN, model=self.model(last), attestation_sha256=digest)
        return [
            *lines,
            Line("aggregator", bundled),
            *witness_lines(self.stage),
            Line("scheduler", ev.RunStateChanged(run_id=RUN, state="FINISHED")),
        ]

    def session_lines(self, session: Session) -> list[Line]:
        """One session, from its authorisation to the model that came of it."""
        stage, ids = self.stage, {"run_id": RUN, "window_id": window(session.number)}
        digests = {site.site_id: grant_digest(stage.grant(site, begin=stage.started)) for site in stage.hospitals}
        permits = tuple(Permit(site_id=site, permitted=True, grant_digest=digest) for site, digest in digests.items())
        everybody = tuple(site.site_id for site in session.sites)
        n = len(everybody)
        authorised = ev.WindowAuthorised(**ids, round=1, purpose="training", params_hash=DIGEST, permits=permits)
        fixed = ev.CohortFixed(**ids, roster_hash=DIGEST, sites=everybody, n=n, t=(n + 1) // 2 + 1, c=1, k_min=3)
        summed = ev.StrictSessionSummed(
            **ids, roster_hash=DIGEST, sites=everybody, steps=90, sums=60, trees=session.trees, chain=session.links
        )
        released = ev.ModelReleased(**ids, model=self.model(session.model), parent=self.model(session.model - 1))
        ended = ev.WindowEnded(**ids, purpose="training", state=session.state, reason="")
        taken = [
            Line(site, ev.TaskTaken(**ids, site_id=site.site_id, grant_digest=digests[site.site_id]))
            for site in session.sites
        ]
        lines = [Line("scheduler", authorised, wait_s=1.0), *taken, Line("scheduler", fixed)]
        return [*lines, *(Line("aggregator", message) for message in (released, summed, ended))]
