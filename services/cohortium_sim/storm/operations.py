"""What happens to a federation besides its work: drawn from a seed, written as data, so that a list can be shortened.

An operation waits for the n-th time that a part passes a point of its course, and then does something to it:

| Point | The part |
|---|---|
| `commit`, `committed` | is about to commit a transaction that changed something, or has just done so |
| `publish`, `published` | is about to hand a message over, or has the broker's confirm |
| `delivery` | is handed a message |
| `disk` | has finished a piece of work in a thread: a file, a sum, a signature |
"""

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

Point = Literal["commit", "committed", "publish", "published", "delivery", "disk"]
Action = Literal[
    "kill",  # kill -9 at this very point, started again `seconds` later
    "drop",  # a hospital dies here and never comes back
    "cut",  # the part's connection to the broker is broken for `seconds`
    "broker_down",  # the broker is killed for `seconds`; what handlers hold goes back to the queues
    "confirm_lost",  # the message arrives, its confirm does not
    "not_taken",  # the message does not arrive, and the sender is told
    "vanish",  # a message that need not survive is confirmed and never arrives
    "late",  # the message is held up for `seconds`, those behind it are not
    "twice",  # the message is handled, and delivered again
    "slow",  # the hospital's training takes `seconds` more from here on
    "withdraw",  # a person in the hospital withdraws from the study
    "revoke",  # the operator revokes the site
    "stop",  # the operator stops the run
    "clock",  # the part's clock steps by `seconds`
    "restart",  # SIGTERM, and a new process `seconds` later
]

SERVICES: Final = ("enrolment", "consent", "scheduler", "aggregator", "audit")
BUSY: Final = ("scheduler", "aggregator", "aggregator", "consent", "audit", "enrolment")
_LATEST = 150
WRONG_S: Final = (299.0, -299.0, 3600.0, -3600.0, 60.0, -60.0)
"""How far a service's clock is set wrong."""


@dataclass(frozen=True, slots=True)
class Operation:
    """`action` at the `nth` time (from 1) that `part` passes `point`. `seconds` is of the action."""

    part: str
    point: Point
    nth: int
    action: Action
    seconds: float = 0.0

    def __str__(self) -> str:
        seconds = f" {self.seconds:g} s" if self.seconds else ""
        return f"{self.action}{seconds} at {self.part}'s {self.point} {self.nth}"


@dataclass(frozen=True, slots=True)
class Scenario:
    """One federation: how many hospitals, which study, what happens. Equal scenarios have equal histories."""

    seed: int
    sites: int
    mode: Literal["synchronous", "buffered"]
    rounds: int
    ring_bits: int
    refuses_by_one: bool
    operations: tuple[Operation, ...]
    cohort: int | None = None
    """Sites that a round asks; None: all of them."""

    @property
    def site_names(self) -> tuple[str, ...]:
        return tuple(f"site-{number}" for number in range(1, self.sites + 1))

    def describe(self) -> str:
        head = f"seed {self.seed}: {self.sites} sites, {self.mode}, {self.rounds} rounds, ring {self.ring_bits}"
        rule = ", rule R9 on" if self.refuses_by_one else ""
        return "\n".join([f"{head}{rule}", *(f"  {operation}" for operation in self.operations)])

    def to_json(self) -> str:
        """For `--replay`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Scenario":
        """Raises `ValueError` or `TypeError` for a text that `to_json` did not write."""
        values: dict[str, Any] = json.loads(text)
        operations = tuple(Operation(**one) for one in values.pop("operations"))
        return cls(operations=operations, **values)


def draw(seed: int, aim: Action | None = None) -> Scenario:
    """The scenario of a seed. `aim`: one more operation in it, which does this."""
    chance = random.Random(seed)  # noqa: S311 - a reproducible history, no secret
    sites = chance.choice((3, 4, 4, 5, 5, 6))
    names = [f"site-{number}" for number in range(1, sites + 1)]
    count = chance.choice((0, 1, 1, 2, 2, 3, 3, 4, 6, 9, 14))
    return Scenario(
        seed=seed,
        sites=sites,
        mode=chance.choice(("synchronous", "buffered")),
        rounds=chance.choice((1, 2, 2, 3)),
        ring_bits=chance.choice((16, 16, 12, 32)),
        refuses_by_one=chance.random() < 0.2,
        operations=(
            *_wrong_clocks(seed),
            *(_operation(chance, names, wanted) for wanted in (*[None] * count, *([] if aim is None else [aim]))),
        ),
    )


def _wrong_clocks(seed: int) -> Iterator[Operation]:
    """In one seed of five the clock of a service is set wrong, and in half of these right again, or it dies so.

    Drawn by a generator of their own: the other operations of a seed are what they were before there were these.
    """
    chance = random.Random(f"clocks of {seed}")  # noqa: S311 - a reproducible history, no secret
    if chance.random() >= 0.2:
        return
    part, seconds, then = chance.choice(SERVICES), chance.choice(WRONG_S), chance.random()
    first = max(1, round(math.exp(chance.uniform(0, math.log(_LATEST / 3)))))
    yield Operation(part, "committed", first, "clock", seconds)
    if then < 0.25:
        yield Operation(part, "committed", first + chance.randint(1, 20), "kill", 1.0)
    if then < 0.5:
        yield Operation(part, "committed", first + chance.randint(1, 20), "clock", -seconds)


def _operation(chance: random.Random, names: Sequence[str], wanted: Action | None) -> Operation:
    """Parts that do much are hit often, and early moments as often as late ones."""
    action: Action = wanted or chance.choices(*_WEIGHTS)[0]
    part = chance.choice(names) if action in _OF_SITES or chance.random() < 0.5 else chance.choice(BUSY)
    if action == "broker_down":
        part = chance.choice(BUSY)
    point: Point = chance.choice(_POINTS.get(action, ("commit", "committed", "publish", "published", "disk")))
    nth = max(1, round(math.exp(chance.uniform(0, math.log(_LATEST)))))
    low, high = _SECONDS.get(action, (0.0, 0.0))
    seconds = round(math.exp(chance.uniform(math.log(low), math.log(high))), 2) if low else 0.0
    if action == "clock" and chance.random() < 0.5:
        seconds = -seconds
    return Operation(part, point, nth, action, seconds)


_WEIGHTS: Final[tuple[tuple[Action, ...], tuple[int, ...]]] = (
    (
        *("kill", "drop", "cut", "broker_down", "confirm_lost", "not_taken", "vanish", "late", "twice"),
        *("slow", "withdraw", "revoke", "stop", "clock", "restart"),
    ),
    (30, 6, 7, 4, 8, 6, 6, 8, 10, 8, 5, 1, 1, 4, 5),
)
_OF_SITES: Final = frozenset({"drop", "slow", "withdraw", "revoke", "clock"})
_POINTS: Final[dict[Action, tuple[Point, ...]]] = {
    "confirm_lost": ("publish",),
    "not_taken": ("publish",),
    "vanish": ("publish",),
    "late": ("delivery",),
    "twice": ("delivery",),
}
_SECONDS: Final[dict[Action, tuple[float, float]]] = {
    "kill": (0.05, 40.0),
    "cut": (0.1, 60.0),
    "broker_down": (0.1, 20.0),
    "late": (0.05, 30.0),
    "slow": (1.0, 60.0),
    "clock": (1.0, 600.0),
    "restart": (0.05, 20.0),
}
