"""A scenario, played from the ground to its outcome."""

import random
import time
from dataclasses import dataclass

from cohortium_cli.operator import OperatorError
from cohortium_kit.errors import CohortiumError
from cohortium_sim.storm.apis import apis_when_asked
from cohortium_sim.storm.federation import Federation
from cohortium_sim.storm.flocks import locks_of_the_living
from cohortium_sim.storm.ground import Ground, rare_polls, system_time
from cohortium_sim.storm.loop import Stuck, buried, virtual_loop
from cohortium_sim.storm.observer import Observer, watching
from cohortium_sim.storm.operations import Scenario
from cohortium_sim.storm.parts import LivingClock
from cohortium_sim.storm.quiet import errors_to
from cohortium_sim.storm.sqlite import sqlite_of_lives


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a scenario. `violations` is empty if nothing happened that must not."""

    scenario: Scenario
    state: str
    violations: tuple[str, ...]
    digest: str
    virtual_s: float
    seconds: float
    opened: int
    counted: int
    """Sites of which at least one update is in an opened sum."""
    lines: tuple[str, ...]

    @property
    def failed(self) -> bool:
        return bool(self.violations)


def play(scenario: Scenario, ground: Ground) -> Outcome:
    """Play a scenario. Two calls give the same history."""
    with buried():
        return _played(scenario, ground)


def _played(scenario: Scenario, ground: Ground) -> Outcome:
    ground.restore()
    random.seed(scenario.seed)  # back-off in the services is drawn from the module's own generator
    observer, begun = Observer(), time.perf_counter()
    state, virtual_s = "BROKEN", 0.0
    federation = Federation(scenario, ground, observer)
    with (
        errors_to(lambda _: None),  # what dead parts say when the loop ends them
        virtual_loop(federation.reached) as loop,
        sqlite_of_lives(federation.store),
        system_time(LivingClock(federation.parts, federation.clock)),
        locks_of_the_living(),
        watching(observer),
        apis_when_asked(),
        rare_polls(ground.pace),
        errors_to(observer.violation),
    ):
        try:
            state = loop.run_until_complete(federation.play())
        except Stuck as stuck:
            observer.violation(f"everything waits for ever: {stuck}")
        except (CohortiumError, OperatorError) as error:
            observer.violation(f"the simulation met {error!r}")
        virtual_s = loop.time()
        for one in loop.unhandled:
            observer.violation(f"unhandled in a task: {one.get('message')} {one.get('exception')!r}")
    return Outcome(
        scenario=scenario,
        state=state,
        violations=tuple(observer.violations),
        digest=observer.digest,
        virtual_s=virtual_s,
        seconds=time.perf_counter() - begun,
        opened=len(observer.opened),
        counted=len(observer.counted),
        lines=tuple(observer.lines),
    )
