"""All parts of one scenario: what happens to them, what people do, and when it is over."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from contextvars import Context, copy_context
from typing import Any, TypeVar

from cohortium_cli.operator import Operator, OperatorError
from cohortium_connector.commands import LocalSite, NoSuchOffer
from cohortium_kit.bus import Outgoing
from cohortium_kit.errors import CohortiumError
from cohortium_kit.memory import MemoryBroker
from cohortium_messages.governance import Manifest
from cohortium_messages.study import Study
from cohortium_protocol.documents import sign_manifest
from cohortium_protocol.signing import service_key_id, site_key_id
from cohortium_sim.storm import checks
from cohortium_sim.storm.ground import Ground
from cohortium_sim.storm.loop import Life, current_life
from cohortium_sim.storm.observer import Observer
from cohortium_sim.storm.operations import SERVICES, Operation, Scenario
from cohortium_sim.storm.parts import LATER_S, Part, PartClock
from cohortium_sim.storm.sqlite import Store
from cohortium_sim.storm.study import study_of

T = TypeVar("T")

LONGEST_S = 6000.0
"""Virtual seconds within which a run is over, whatever happened: every window at every attempt at its longest."""
SILENCE_S = 300.0
"""And so long nobody says nothing while a run is not over: more than any deadline, wait or training may last."""
SETTLE_S = 400.0
"""And so many more until nothing of it is left anywhere."""
LOOK_S = 2.0


class PartGone(CohortiumError):
    """A hospital that was dropped for good is asked something."""


class Federation:
    """All parts of one scenario, in one loop."""

    def __init__(self, scenario: Scenario, ground: Ground, observer: Observer) -> None:
        self.scenario = scenario
        self.ground = ground
        self.observer = observer
        self.chance = random.Random(scenario.seed)  # noqa: S311 - a reproducible history, no secret
        self.clock = PartClock(LATER_S)
        self.broker = MemoryBroker(self.clock)
        self.parts: dict[str, Part] = {}
        self.gone: set[str] = set()
        """Ids of sites that will never answer again."""
        self.revoked: set[str] = set()
        """Key ids of sites that the operator revoked."""
        self.store = Store(self.reached)
        self._outside: Context = copy_context()
        self._due = 0
        self._run_id = ""
        self._ahead: set[str] = set()
        """Key ids of parts whose clock was ahead of the audit service's at some time."""
        self._put_back_s = 0.0
        """So far clocks of services were put back: a deadline waits for so much longer."""

    async def reached(self, point: str) -> None:
        """A part's own code has come to a point."""
        life = current_life()
        if life is not None:
            part = self.parts[life.part]
            if part.life is life:
                await part.reach(point)  # type: ignore[arg-type]

    # What parts ask of their stage

    def note(self, text: str) -> None:
        self.observer.note(self.clock.monotonic(), text)

    def said(self, part: Part, outgoing: Outgoing) -> None:
        self.note(f"{part.name} > {outgoing.type} by {outgoing.exchange}")
        self.observer.said(outgoing, self.clock.monotonic())

    def ended(self, part: Part, life: Life, error: BaseException | None) -> None:
        self.store.lose(life)
        if error is not None or not part.stop.is_set():
            self.observer.violation(f"{part.name} ended by itself: {error!r}")
        self.note(f"{part.name} ended")

    def act(self, part: Part, operation: Operation) -> None:
        """Do it; whatever is to follow later follows outside of all parts."""
        match operation.action:
            case "kill":
                self._kill(part)
                self._later(operation.seconds, part.start)
            case "drop":
                self._drop(part)
            case "restart":
                self._spawn(self._restart(part, operation.seconds))
            case "cut" if part.line is not None:
                line = part.line
                line.cut()
                self._later(operation.seconds, line.mend)
            case "broker_down" if self.broker.up:
                self.broker.stop()
                self._later(operation.seconds, self.broker.start)
            case "slow":
                part.slow_s += operation.seconds
            case "clock":
                self._set_clock(part, operation.seconds)
            case "withdraw":
                self._spawn(self._withdraw(part))
            case "revoke":
                self._spawn(self._revoke(part))
            case "stop":
                self._spawn(self._stop_run())
            case _:
                return

    def _set_clock(self, part: Part, seconds: float) -> None:
        part.clock.step_s += seconds
        audit = self.parts["audit"].clock.step_s
        self._ahead |= {self._key_id(one) for one in self.parts.values() if one.clock.step_s > audit}
        if not part.is_site and seconds < 0:
            self._put_back_s -= seconds
            self.observer.put_back.add(self._key_id(part))

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        self._due += 1

        def do() -> None:
            self._due -= 1
            what()

        asyncio.get_running_loop().call_later(seconds, do, context=self._outside.copy())

    def _spawn(self, work: Any) -> None:
        self._due += 1

        async def do() -> None:
            try:
                await work
            finally:
                self._due -= 1

        asyncio.get_running_loop().create_task(do(), context=self._outside.copy())

    def _kill(self, part: Part) -> None:
        life = part.life
        if life is None or life.dead:
            return
        life.end()
        self.store.lose(life)
        part.disconnect()

    def _drop(self, part: Part) -> None:
        part.gone = True
        self.gone.add(self._site_id(part))
        self._kill(part)

    async def _restart(self, part: Part, seconds: float) -> None:
        """As a supervisor does it; a part that does not end in time is killed."""
        life = part.life
        if life is None or life.dead:
            return
        part.stop.set()
        for _ in range(60):
            if life.dead:
                break
            await asyncio.sleep(1.0)
        else:
            self._kill(part)
        await asyncio.sleep(seconds)
        if part.life is life and not part.gone:
            part.start()

    # What people do

    async def ask(self, part: Part, work: Callable[[Any], Awaitable[T]]) -> T:
        """Ask a part something, as often as it takes until it lives long enough to answer."""
        while True:
            life, app = part.life, part.app
            if part.gone:
                raise PartGone(f"{part.name} will not answer any more")
            if life is None or life.dead or app is None:
                await asyncio.sleep(0.5)
                continue
            task = life.spawn(_awaited(work(app)))
            while not task.done() and not life.dead:
                await asyncio.wait({task}, timeout=0.5)
            if task.done() and not task.cancelled():
                return task.result()

    def _operator(self, app: Any, role: str) -> Operator:
        return Operator.within({role: app.http}, self.ground.files.operator_token)

    async def submit(self) -> None:
        """The operator submits the study, and the officers sign the sites in."""
        study = study_of(self.scenario)
        text = study.model_dump_json()
        run = await self.ask(self.parts["scheduler"], lambda app: self._operator(app, "scheduler").submit(text))
        self._run_id = str(run.run_id)
        enrolment = self.parts["enrolment"]
        signed = self._signed(await self._drafted(study))
        with contextlib.suppress(OperatorError):  # published before the answer was lost
            await self.ask(enrolment, lambda app: self._operator(app, "enrolment").publish_manifest(signed))

    async def _drafted(self, study: Study) -> Manifest:
        """A membership of all sites but those that were revoked before it was signed."""
        for _ in self.scenario.site_names:
            known = frozenset(self.revoked)
            with contextlib.suppress(OperatorError):
                return await self._draft(study, known)
            if known == self.revoked:
                break
        return await self._draft(study, frozenset(self.revoked))

    async def _draft(self, study: Study, without: frozenset[str]) -> Manifest:
        ids = [self._site_id(part) for part in self.parts.values() if part.is_site]
        sites = [site for site in ids if site_key_id(site) not in without]
        collusion = study.federation.collusion
        return await self.ask(
            self.parts["enrolment"],
            lambda app: self._operator(app, "enrolment").draft_manifest(study.name, study.digest(), sites, collusion),
        )

    def _signed(self, manifest: Manifest) -> Manifest:
        for officer in self.ground.files.officers:
            manifest = sign_manifest(manifest, officer)
        return manifest

    async def _withdraw(self, part: Part) -> None:
        """A person at the hospital's own command line, beside the running connector."""
        site = self._site_id(part)

        async def leave(app: Any) -> None:
            try:
                await LocalSite(app.desk, app.db).withdraw("storm")
            except NoSuchOffer:
                return
            waiting = checks.ask(part.database, "SELECT message_id FROM outbox")
            self.observer.gone[site] = frozenset(str(row[0]) for row in waiting) | self.observer.spoken
            self.note(f"{part.name} withdrew")

        with contextlib.suppress(PartGone):
            await self.ask(part, leave)

    async def _revoke(self, part: Part) -> None:
        site = self._site_id(part)
        self.gone.add(site)
        self.revoked.add(site_key_id(site))
        await self.ask(self.parts["enrolment"], lambda app: self._operator(app, "enrolment").revoke(site))

    async def _stop_run(self) -> None:
        if self._run_id:
            run_id = self._run_id
            await self.ask(self.parts["scheduler"], lambda app: self._operator(app, "scheduler").stop(run_id))

    def _site_id(self, part: Part) -> str:
        return self.ground.site_ids[int(part.name.removeprefix("site-")) - 1]

    def _key_id(self, part: Part) -> str:
        return site_key_id(self._site_id(part)) if part.is_site else service_key_id(part.role)

    # The course of things

    async def play(self) -> str:
        """From the start of all parts to the last message; returns the run's final state."""
        for name in (*SERVICES, *self.scenario.site_names):
            role = name if name in SERVICES else "connector"
            operations = tuple(one for one in self.scenario.operations if one.part == name)
            self.parts[name] = Part(self, name, role, self._settings(name), operations)
        for part in self.parts.values():
            part.start()
        await self.submit()
        state = await self._final()
        await self._settled()
        self._last_look()
        return state

    def _settings(self, name: str) -> Any:
        settings = self.ground.settings(name)
        if name in SERVICES:
            return settings
        policy = settings.policy.model_copy(update={"refuse_cohort_differing_by_one": self.scenario.refuses_by_one})
        return settings.model_copy(update={"policy": policy})

    async def _final(self) -> str:
        scheduler = self.parts["scheduler"]
        while self.clock.monotonic() < LONGEST_S + self._put_back_s:
            await asyncio.sleep(LOOK_S)
            if self.observer.violations:
                return "BROKEN"
            found = checks.run_state(scheduler)
            if found is not None and found[0] in checks.FINAL and not self._due:
                self.note(f"the run is {found[0]} {found[1]}")
                return " ".join(found).strip()
            quiet_s = self.clock.monotonic() - self.observer.last_s
            if quiet_s > SILENCE_S + self._put_back_s and not self._due:
                self.observer.violation(f"nothing was said for {quiet_s:.0f} s, and the run is {found}")
        found = checks.run_state(scheduler)
        self.observer.violation(f"the run is not over after {self.clock.monotonic():.0f} s: {found}")
        return "UNENDED"

    async def _settled(self) -> None:
        """Wait until nothing is left of the run, and say what is left if that does not come."""
        if self.observer.violations:
            return
        until = self.clock.monotonic() + SETTLE_S + self._put_back_s
        left: list[str] = []
        while self.clock.monotonic() < until:
            await asyncio.sleep(2 * LOOK_S)
            left = checks.leftovers(self.broker, list(self.parts.values()), frozenset(self.gone))
            if not left and not self._due:
                return
        for one in left:
            self.observer.violation(f"left over: {one}")

    def _last_look(self) -> None:
        if self.observer.violations:
            return
        # What a revoked site said is refused from then on, events on their way too, and its key is named.
        seen = self.observer
        events = {event: kind for event, kind in seen.events.items() if seen.tellers[event] not in self.revoked}
        for fault in checks.log_faults(self.parts["audit"], events):
            seen.violation(fault)
        for letter in checks.dead_letters(self.broker, self.revoked):
            seen.violation(f"a dead letter, {letter}")
        ahead = {f"{key_id} of CLOCK_AHEAD" for key_id in self._ahead}
        for accused in seen.accused:
            who, what = accused.split()[0], accused.partition(" by ")[0]
            if who not in self.revoked and what not in ahead:
                seen.violation(f"an honest party is accused: {accused}")


async def _awaited(work: Awaitable[T]) -> T:
    return await work
