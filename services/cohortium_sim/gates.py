"""Holds messages back in front of the aggregator, so that what happens at a moment of a round can be brought about and
looked at, instead of being hoped for.

    with simulation.gate.hold(UploadHeader, leaver, from_round=2) as hold:
        ...  # until hold.caught: the leaver's upload is stored, the others' are not
    ...      # all that waited goes on

To every other part this is an aggregator that is busy: the broker has handed the messages over and waits for the
answers. Nothing is lost, changed or put into another order than the broker may choose by itself.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from cohortium_aggregator.files import DataDir
from cohortium_kit.bus import Ack, Bus, Delivery, Disposition, Handler, Outgoing, Start, Subscription
from cohortium_messages.envelope import CONTENT_TYPE
from cohortium_messages.events import AuditEvent
from cohortium_messages.governance import GrantEnded
from cohortium_messages.registry import MESSAGE_TYPES, Message
from cohortium_messages.runs import SessionOpened
from cohortium_messages.topology import EVENTS
from cohortium_sim.plan import Plan
from cohortium_sim.simulate import Simulation
from cohortium_sim.worlds import load_settings

AGGREGATOR = "aggregator"


@dataclass(frozen=True, slots=True)
class GatedWindow:
    """A window whose roster the aggregator was told. `sites`: ids, in the order of the roster."""

    window_id: bytes
    purpose: str
    round: int
    sites: tuple[str, ...]


@dataclass(slots=True)
class Hold:
    """One type of message of the first training window from a round on that `leaver` is in: what other sites than
    `leaver` send waits. `caught`: that window, once a first message waits."""

    kind: type[Message]
    leaver: str
    from_round: int
    caught: GatedWindow | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def release(self) -> None:
        """What waited goes on, and nothing waits any more. Twice is once."""
        self.over.set()

    def catches(self, kind: str, sender: str, window: GatedWindow) -> bool:
        """Whether this message waits. The first one that does names the window."""
        if self.over.is_set() or kind != self.kind.type_name or sender == self.leaver:
            return False
        if self.caught is None and self._is_it(window):
            self.caught = window
        return self.caught == window

    def _is_it(self, window: GatedWindow) -> bool:
        return window.purpose == "update" and window.round >= self.from_round and self.leaver in window.sites


class Gate:
    """What goes in and out at the aggregator, and what of it waits."""

    def __init__(self) -> None:
        self._holds: list[Hold] = []
        self._windows: dict[str, GatedWindow] = {}
        self._answered: dict[tuple[str, str], set[str]] = {}
        self._events: list[AuditEvent] = []
        self.left: set[str] = set()
        """Sites of whose grant's end the aggregator knows."""

    @contextlib.contextmanager
    def hold(self, kind: type[Message], leaver: str, *, from_round: int) -> Iterator[Hold]:
        """Hold messages back until the block ends, or `release`."""
        made = Hold(kind, leaver, from_round)
        self._holds.append(made)
        try:
            yield made
        finally:
            made.release()

    def answered(self, kind: type[Message], window: GatedWindow) -> frozenset[str]:
        """The sites whose message of this type the aggregator has on record for a window."""
        return frozenset(self._answered.get((kind.type_name, window.window_id.hex()), ()))

    def windows(self, round_: int) -> tuple[GatedWindow, ...]:
        """The training windows of a round that came to a roster, the earliest first."""
        return tuple(one for one in self._windows.values() if (one.purpose, one.round) == ("update", round_))

    def events(self, window: GatedWindow) -> list[AuditEvent]:
        """What the aggregator told the log of a window."""
        return [one for one in self._events if getattr(one, "window_id", None) == window.window_id]

    async def deliver(self, delivery: Delivery, handler: Handler) -> Disposition:
        """Hand a message over, at once or once it waits no more."""
        if delivery.content_type != CONTENT_TYPE:
            return await handler(delivery)
        data = json.loads(delivery.body)["data"]
        if delivery.type == SessionOpened.type_name:
            window = _window(data)
            self._windows[window.window_id.hex()] = window
        sender = _site(delivery.routing_key)
        known = self._windows.get(str(data.get("window_id")))
        if known is not None:
            for hold in self._holds:
                if hold.catches(delivery.type, sender, known):
                    await hold.over.wait()
        disposition = await handler(delivery)
        if disposition == Ack():
            self._note(delivery.type, sender, data)
        return disposition

    def _note(self, kind: str, sender: str, data: dict[str, Any]) -> None:
        if kind == GrantEnded.type_name:
            self.left.add(data["site_id"])
        elif sender:
            self._answered.setdefault((kind, str(data.get("window_id"))), set()).add(sender)

    def sent(self, outgoing: Outgoing) -> None:
        """A message left the aggregator."""
        if outgoing.exchange == EVENTS.name:
            made = MESSAGE_TYPES[outgoing.type].model_validate(json.loads(outgoing.body)["data"])
            if isinstance(made, AuditEvent):
                self._events.append(made)


class GatedBus:
    """The aggregator's bus; all but deliveries and what is published is the bus's own."""

    def __init__(self, bus: Bus, gate: Gate) -> None:
        self._bus = bus
        self._gate = gate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def consume(self, queue: str, handler: Handler, *, prefetch: int, start: Start | None = None) -> Subscription:
        async def gated(delivery: Delivery) -> Disposition:
            return await self._gate.deliver(delivery, handler)

        return await self._bus.consume(queue, gated, prefetch=prefetch, start=start)

    async def publish(self, outgoing: Outgoing, *, timeout_s: float = 10.0) -> None:
        await self._bus.publish(outgoing, timeout_s=timeout_s)
        self._gate.sent(outgoing)


class GatedSimulation(Simulation):
    """A simulation in one process, with a gate in front of its aggregator."""

    def __init__(self, plan: Plan, work: Path) -> None:
        self.gate = Gate()
        super().__init__(plan, work)

    def _buses(self, make: Callable[[str], Bus]) -> Callable[[str], Bus]:
        def gated(name: str) -> Bus:
            bus = make(name)
            return cast("Bus", GatedBus(bus, self.gate)) if name == AGGREGATOR else bus

        return gated

    @contextlib.contextmanager
    def opening_held(self, window: GatedWindow) -> Iterator[None]:
        """Until the block ends this window's sum is not opened: to the aggregator, another one of its kind is at it.

        Raises `RuntimeError` if it is being opened already.
        """
        settings = load_settings(AGGREGATOR, self.files.configs[AGGREGATOR])
        with DataDir(settings.data_dir).claimed(f"open-{window.window_id.hex()}") as ours:
            if not ours:
                raise RuntimeError(f"the sum of window {window.window_id.hex()} is being opened already")
            yield


def _window(data: dict[str, Any]) -> GatedWindow:
    params = data["open"]["params"]
    sites = tuple(entry["site_id"] for entry in data["roster"]["entries"])
    return GatedWindow(bytes.fromhex(params["window_id"]), params["purpose"], params["round"], sites)


def _site(routing_key: str) -> str:
    """The site that sent with this key; nothing for a service."""
    first, _, rest = routing_key.partition(".")
    return rest.partition(".")[0] if first == "site" else ""
