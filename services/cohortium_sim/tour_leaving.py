"""Four hospitals leave, each at another moment of a round, while the aggregator is held at that moment; and what each
party then sees. `contracts/decisions/0020-withdrawal.md` says what has to follow."""

from typing import TypeVar

from cohortium_cli.output import say
from cohortium_connector.commands import LocalSite
from cohortium_messages.consent import Effect
from cohortium_messages.events import AggregateOpened, AuditEvent, ModelReleased, WindowEnded
from cohortium_messages.secure_sum import Echo, Unmask, UploadHeader
from cohortium_messages.withdrawals import SumSetAside
from cohortium_sim.gates import GatedWindow, Hold
from cohortium_sim.tour_story import AFTER_UNMASK, AFTER_UPLOAD, BEFORE_UNMASK, BEFORE_UPLOAD, Story

E = TypeVar("E", bound=AuditEvent)


class Leaving(Story):
    """Who leaves when."""

    async def hospitals_leave(self, run_id: str) -> None:
        """In rounds 1 to 4; on a slow machine, which may miss a hospital in a round, in later ones."""
        gate = self.sim.gate
        with (
            gate.hold(UploadHeader, self.site_id(AFTER_UPLOAD), from_round=2) as uploading,
            gate.hold(Echo, self.site_id(BEFORE_UNMASK), from_round=3) as confirming,
            gate.hold(Unmask, self.site_id(AFTER_UNMASK), from_round=4) as unmasking,
        ):
            await self._before_upload(run_id)
            await self._after_upload(run_id, uploading)
            await self._before_unmask(run_id, confirming)
            await self._after_unmask(run_id, unmasking)

    async def _before_upload(self, run_id: str) -> None:
        name = BEFORE_UPLOAD
        self.step(f"Before its upload: {name} leaves while it trains")
        window = await self._phase(name, "IDLE")
        await self._leave(name, "stop_future", f"round {window} was being trained there")
        await self._told(name)
        cohort = await self._cohort(run_id, window)
        self.need(name not in cohort, f"the round goes on without it: {', '.join(cohort)}")
        await self._officers_see(name)

    async def _after_upload(self, run_id: str, hold: Hold) -> None:
        name = AFTER_UPLOAD
        self.step(
            f"After its upload, before the survivors are fixed: {name} leaves while others' uploads are waited for"
        )
        window = await self._caught(run_id, name, hold)
        await self._phase(name, "UPLOADED")
        say(f"    round {window.round} sums over {self._names(window.sites)}; {name}'s masked update is stored")
        await self._leave(name, "stop_future", "its update waited at the aggregator")
        await self._told(name)
        hold.release()
        events = await self._outcome(window)
        opened = _only(events, AggregateOpened)
        without = opened is not None and self.site_id(name) not in opened.survivors
        self.need(without, f"the sum was made of the others alone, and {name}'s upload deleted unopened")
        await self._goes_on(run_id, window, name)

    async def _before_unmask(self, run_id: str, hold: Hold) -> None:
        name = BEFORE_UNMASK
        self.step(f"The survivors are fixed, nobody has given a share: {name}, one of them, leaves")
        window = await self._caught(run_id, name, hold)
        shares = self.sim.gate.answered(Unmask, window)
        say(f"    round {window.round} is to be summed over {self._names(window.sites)}; shares given: {len(shares)}")
        await self._leave(name, "stop_future", "its update is part of the sum that was agreed")
        await self._told(name)
        hold.release()
        events = await self._outcome(window)
        unopened = _only(events, AggregateOpened) is None and _only(events, ModelReleased) is None
        self.need(unopened, "that sum is never opened; the round is asked again")
        await self._goes_on(run_id, window, name)

    async def _after_unmask(self, run_id: str, hold: Hold) -> None:
        name = AFTER_UNMASK
        self.step(f"After the unmask: everybody has given the shares, and {name} leaves before there is a model")
        window = await self._caught(run_id, name, hold)
        with self.sim.opening_held(window):
            hold.release()

            async def all_shares() -> bool:
                return self.sim.gate.answered(Unmask, window) == set(window.sites)

            await self.until(all_shares, "everybody's shares")
            say(f"    round {window.round}: shares of {self._names(window.sites)}; nobody can take them back")
            await self._leave(name, "retrain", "its update is in a sum that can be opened")
            await self._told(name)
        events = await self._outcome(window)
        aside = _only(events, SumSetAside)
        self.need(aside is not None and aside.opened, "the sum is on record as opened, and thrown away: no model of it")
        self.need(_only(events, ModelReleased) is None, "the others give their updates again, to a sum without it")
        await self._goes_on(run_id, window, name)

    # What happens each time

    async def _caught(self, run_id: str, name: str, hold: Hold) -> GatedWindow:
        async def look() -> GatedWindow | None:
            await self.running(run_id, f"a round of {name}")
            return hold.caught

        return await self.until(look, f"a round of {name}")

    async def _phase(self, name: str, phase: str) -> int:
        """Wait until the hospital's own word for its training window is `phase`; returns the round."""

        async def look() -> int | None:
            async with LocalSite.open(self.settings(name)) as site:
                windows = (await site.status()).windows
            return next((one.round for one in windows if (one.purpose, one.phase) == ("update", phase)), None)

        return await self.until(look, f"{phase} at {name}")

    async def _leave(self, name: str, effect: Effect, had: str) -> None:
        async with LocalSite.open(self.settings(name)) as site:
            ended = await site.withdraw(self.study.name, effect)
            still_open = (await site.status()).windows
        kept = [file for part in ("uploads", "products") for file in self.folder(name).rglob(f"{part}/*")]
        self.need(ended == 1 and not still_open and not kept, f"{name}: one person was enough; {had}")
        say(f"    {name:<11} grant ended, training ended, upload and working set deleted; it asks for: {effect}")

    async def _told(self, name: str) -> None:
        async def known() -> bool:
            return self.site_id(name) in self.sim.gate.left

        await self.until(known, f"the end of {name}'s grant at the aggregator")
        say("    aggregator  knows that the grant ended")

    async def _outcome(self, window: GatedWindow) -> list[AuditEvent]:
        """What the aggregator told the log of this window, once that is all; each said in words."""

        async def over() -> list[AuditEvent] | None:
            events = self.sim.gate.events(window)
            return events if _only(events, WindowEnded) is not None else None

        events = await self.until(over, f"the end of round {window.round}'s window")
        for event in events:
            told = self._in_words(event)
            if told:
                say(f"    the log     {told}")
        return events

    def _in_words(self, event: AuditEvent) -> str:
        match event:
            case AggregateOpened(survivors=survivors, dropped=dropped):
                left_out = f"; left out: {self._names(dropped)}" if dropped else ""
                return f"sum opened over {self._names(survivors)}{left_out}"
            case SumSetAside(sites=sites, opened=opened):
                return f"sum set aside because of {self._names(sites)}, {'after' if opened else 'before'} it was opened"
            case ModelReleased(model=model):
                return f"model version {model.version}"
            case WindowEnded(state=state, reason=reason):
                return f"window ended: {state} {reason}".rstrip()
        return ""

    async def _goes_on(self, run_id: str, window: GatedWindow, name: str) -> None:
        cohort = await self._cohort(run_id, window.round)
        tries = len(self.sim.gate.windows(window.round))
        again = f", at attempt {tries}" if tries > 1 else ""
        self.need(name not in cohort, f"round {window.round} is done by {', '.join(cohort)}{again}")
        await self._officers_see(name)

    async def _cohort(self, run_id: str, number: int) -> tuple[str, ...]:
        """Who is in the model of this round, once there is one."""

        async def look() -> tuple[str, ...] | None:
            status = await self.operator.run(run_id)
            return next((one.cohort for one in status.rounds_done if one.number == number), None)

        return await self.until(look, f"the model of round {number}")

    async def _officers_see(self, name: str) -> None:
        case = await self.case(name, "institution", "EFFECTIVE")
        versions = ", ".join(str(one["model"]["version"]) for one in case["models"])
        say(f"    officers    a case: opened sums with {name}: {case['sums']}; models that learnt from it: {versions}")

    def _names(self, sites: tuple[str, ...]) -> str:
        names = {str(one.site_id): name for name, one in self.sim.sites.items()}
        return ", ".join(names[site] for site in sites)


def _only(events: list[AuditEvent], kind: type[E]) -> E | None:
    return next((one for one in events if isinstance(one, kind)), None)
