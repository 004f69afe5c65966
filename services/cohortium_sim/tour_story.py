"""What every step of the governance tour stands on: the hospitals, the study, and how a step says what came of it."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from cohortium_cli.output import done, say
from cohortium_connector.settings import ConnectorSettings
from cohortium_kit.errors import CohortiumError
from cohortium_messages.status import RunStatus
from cohortium_messages.study import Study
from cohortium_sim.gates import GatedSimulation
from cohortium_sim.plan import SiteTable
from cohortium_sim.simulate import FINAL
from cohortium_sim.tour_papers import HospitalPeople, Person

T = TypeVar("T")
STAY: Final = ("north", "south", "east")
BEFORE_UPLOAD: Final = "harbour"
AFTER_UPLOAD: Final = "lake"
BEFORE_UNMASK: Final = "hill"
AFTER_UNMASK: Final = "west"
LEAVE: Final = (BEFORE_UPLOAD, AFTER_UPLOAD, BEFORE_UNMASK, AFTER_UNMASK)
"""The hospitals that leave, by the moment of a round at which they do."""
HOSPITALS: Final = (*STAY, *LEAVE)
STEP_TIMEOUT_S: Final = 900.0
STUDY: Final = """
apiVersion: cohortium/study/1
name: heart-tour
purpose: Predict coronary disease from age and cholesterol
dataset:
  features: [{name: age, type: float, range: [18, 110]}, {name: chol, type: float, range: [50, 700]}]
  label: {name: ill, type: binary}
  split: {test: 0.3, seed: 7}
recipe: {trainer: torch.logistic}
federation:
  rounds: 5
  min_sites: 3
  collusion: 1
  evaluate_every: 5
  deadlines: {ready_s: 120, upload_s: 120, echo_s: 60, unmask_s: 60, expire_s: 600}
"""


class TourFailed(CohortiumError):
    """A step did not do what it says."""


class Hospitals(GatedSimulation):
    """A simulation whose hospitals approve by hand, and whose patients are asked."""

    def _source(self, site: SiteTable) -> dict[str, Any]:
        consent = {"kind": "fhir", "path": str(site.path.with_suffix(".ndjson"))}
        return {**super()._source(site), "person_column": "mrn", "consent": consent}

    def _policy(self) -> dict[str, Any]:
        # With so few hospitals a single one that leaves makes two cohorts differ by one; these have no real patients.
        return {"approvals": "manual", "refuse_cohort_differing_by_one": False}


class Story:
    """Steps that say what they do and what came of it, in one federation."""

    def __init__(self, simulation: Hospitals, out: Path) -> None:
        self.sim, self.out = simulation, out
        self.study: Study = simulation.plan.study
        self.hospitals = tuple(one.name for one in simulation.plan.sites)
        self.people: dict[str, HospitalPeople] = {}
        self.officers = [
            Person(name, "officer", key)
            for name, key in zip(("Olga Officer", "Otto Officer"), simulation.files.officers, strict=False)
        ]
        self._steps = 0

    def step(self, title: str) -> None:
        self._steps += 1
        say(f"\n{self._steps}. {title}")

    @property
    def operator(self) -> Any:
        return self.sim.world.operator

    def settings(self, name: str) -> ConnectorSettings:
        return ConnectorSettings.load(self.folder(name) / "connector.yaml")

    def folder(self, name: str) -> Path:
        """Where a hospital's connector has everything."""
        return self.sim.files.directory / "sites" / self.site_id(name)

    def site_id(self, name: str) -> str:
        return str(self.sim.sites[name].site_id)

    async def until(self, ask: Callable[[], Awaitable[T | None]], what: str) -> T:
        """The first answer that is not nothing."""
        deadline = self.sim.clock.monotonic() + STEP_TIMEOUT_S
        while True:
            self.sim.world.check()
            found = await ask()
            if found:
                return found
            if self.sim.clock.monotonic() > deadline:
                raise TourFailed(f"{what} did not come within {STEP_TIMEOUT_S:g} s")
            await self.sim.clock.sleep(0.05)

    def need(self, holds: object, what: str) -> None:
        if not holds:
            raise TourFailed(f"not so: {what}")
        done(what)

    async def running(self, run_id: str, what: str) -> RunStatus:
        """How the run stands; raises `TourFailed` if it has ended, so that `what` will not come."""
        status: RunStatus = await self.operator.run(run_id)
        if status.state in FINAL:
            raise TourFailed(f"the run is {status.state} {status.reason} before {what}")
        return status

    async def in_round(self, run_id: str, number: int) -> None:
        """Wait until the sites are asked for their updates of this round, or of a later one."""

        async def there() -> bool:
            window = (await self.running(run_id, f"round {number}")).window
            opened = window is not None and window.phase in ("OPEN", "ROSTER_FIXED")
            return opened and window is not None and window.purpose == "update" and window.round >= number

        await self.until(there, f"round {number}")

    async def ended(self, run_id: str) -> RunStatus:
        """How a run ended, once it has."""

        async def over() -> RunStatus | None:
            status: RunStatus = await self.operator.run(run_id)
            return status if status.state in FINAL else None

        return await self.until(over, f"the end of run {run_id}")

    async def case(self, name: str, kind: str, *states: str) -> dict[str, Any]:
        """The withdrawal of this hospital, or of patients of it, once it stands at one of these states."""

        async def look() -> dict[str, Any] | None:
            for case in await self.operator.withdrawals():
                if (case["site_id"], case["type"]) == (self.site_id(name), kind):
                    return case if case["state"] in states else None
            return None

        return await self.until(look, f"the withdrawal of {name} at {', '.join(states)}")
