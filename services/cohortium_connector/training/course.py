"""The order in which LightGBM's data-parallel learner gathers, and what it gathers at each place.

Read from the sources of LightGBM 4.7 and held against it by tests. A collective is known by its place, never by its
size alone: 8 bytes are a sum of labels in one place and a first score in another.

    when                       objective    collective              place
    the booster is made        binary       allgather of 4 bytes    COUNT      rows with label 1
                                            allgather of 4 bytes    COUNT      rows with label 0
                               multiclass   allgather of 8 bytes    TOTAL      sum of weights
                                            the same, for a class   TOTAL      sum of its weights; for all classes
                               regression, poisson   none
    the first round begins,    binary       allgather of 8 bytes    TOTAL      sum of weights of label 1
    where it starts from the                allgather of 8 bytes    TOTAL      sum of weights
    average                                 allgather of 8 bytes    SAME       the first score
                               multiclass   allgather of 8 bytes    SAME       a class's first score; for all classes
                               regression   allgather of 8 bytes    MEAN       the mean label
                               poisson      allgather of 8 bytes    MEAN       the logarithm of the mean label
    a tree begins              all          allgather of 24 bytes   ROOT       rows, Σ gradient, Σ hessian
    the root is searched,      all          reduce-scatter          HISTOGRAM  Σ gradient, Σ hessian by feature and bin,
    and after every split                                                      of the smaller leaf
                                            allgather               SPLITS     the best splits of both leaves, found on
                                                                               the sums of one part of the features
    the first round ends       all          as where it starts from the average, for each class without a split
    without a split, and
    does not start from it

The same with weights, is_unbalance, scale_pos_weight, categories, monotone constraints, feature fractions, extra trees,
smoothing and early stopping: they change numbers, or how many features a histogram has, but add no collective. A leaf
that is too deep or has too few rows is not searched, by the sums that all sites hold, so that it is the same
everywhere. A booster that goes on from a model starts from that model's scores: it has no place before its first tree.

In a MEAN LightGBM takes the plain mean over sites of each site's mean, whatever its rows: that is its distributed mode.
SAME needs no sum, since each site has computed the number from the totals before it.
"""

from collections import deque
from enum import Enum

from cohortium_connector.training.base import SiteRefusal
from cohortium_messages.lightgbm import Objective

COUNT_BYTES, NUMBER_BYTES, ROOT_BYTES = 4, 8, 24


class Place(Enum):
    """What is gathered. The values are those of the journal."""

    COUNT = 1
    TOTAL = 2
    MEAN = 3
    SAME = 4
    ROOT = 5
    HISTOGRAM = 6
    SPLITS = 7


class UnknownCollective(SiteRefusal):
    """LightGBM gathers what nobody has looked at: it is not the version that this connector was written for, or it was
    asked for something that must not be. Nothing of it has left the site."""

    def __init__(self, detail: str) -> None:
        super().__init__("UNKNOWN_COLLECTIVE", local=f"LightGBM's network: {detail}")


class Course:
    """Says of each collective what it is, or refuses it. `starts_from_average` is false where a model is gone on
    with."""

    def __init__(
        self,
        objective: Objective,
        *,
        classes: int,
        starts_from_average: bool,
        starts_from_model: bool,
        split_bytes: int,
    ) -> None:
        self._first_score = {
            "binary": (Place.TOTAL, Place.TOTAL, Place.SAME),
            "multiclass": (Place.SAME,),
            "regression": (Place.MEAN,),
            "poisson": (Place.MEAN,),
        }[objective]
        making = {"binary": 2 * [Place.COUNT], "multiclass": (1 + classes) * [Place.TOTAL]}.get(objective, [])
        self._due = deque(making)
        self._classes = classes
        self._from_average = starts_from_average and not starts_from_model
        self._late_scores = 0 if starts_from_average or starts_from_model else classes
        self._split_bytes = split_bytes
        self._last = Place.COUNT
        self._rounds = 0

    def gathered(self, size: int) -> Place:
        """The place of an allgather of `size` bytes from each site. Raises `UnknownCollective`."""
        if not self._due and size == NUMBER_BYTES and self._late_scores and self._last is not Place.HISTOGRAM:
            self._late_scores -= 1
            self._due.extend(self._first_score)
        if self._due:
            return self._step(self._due.popleft(), size)
        if self._last is Place.HISTOGRAM:
            return self._step(Place.SPLITS, size)
        return self._step(Place.ROOT, size)

    def scattered(self, size: int, largest: int) -> Place:
        """The place of a reduce-scatter of `size` bytes, of which the largest histogram has `largest`."""
        if self._due or self._rounds == 0 or self._last not in (Place.ROOT, Place.SPLITS):
            raise UnknownCollective(f"a reduce-scatter of {size} bytes after {self._last.name} in round {self._rounds}")
        if size % 16 or not 0 < size <= largest:
            raise UnknownCollective(f"a histogram of {size} bytes where at most {largest} belong")
        self._last = Place.HISTOGRAM
        return self._last

    def begin_round(self) -> None:
        """A boosting round begins. Raises `UnknownCollective` if the part before it has not come to its end."""
        self.check_complete()
        self._rounds += 1
        self._last = Place.COUNT
        if self._rounds == 1 and self._from_average:
            self._due.extend(self._classes * self._first_score)
        if self._rounds > 1:
            self._late_scores = 0

    def check_complete(self) -> None:
        """Raises `UnknownCollective` if LightGBM has left out what had to come."""
        if self._due:
            raise UnknownCollective(f"{self._due[0].name} did not come in round {self._rounds}")
        if self._last is Place.HISTOGRAM:
            raise UnknownCollective(f"no split after a histogram in round {self._rounds}")

    def _step(self, place: Place, size: int) -> Place:
        expected = {Place.COUNT: COUNT_BYTES, Place.ROOT: ROOT_BYTES, Place.SPLITS: self._split_bytes}
        if size != expected.get(place, NUMBER_BYTES) or (place is Place.ROOT and self._rounds == 0):
            raise UnknownCollective(f"an allgather of {size} bytes at {place.name} in round {self._rounds}")
        self._last = place
        return place
