"""Sites and scheduler on a bus, beside an aggregator that runs. No test itself."""

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from aggregator_world import Window, World, integer_spec

from cohortium_kit.bus import Ack, Bus, Delivery, Disposition, Outgoing
from cohortium_kit.envelopes import Sender, open_envelope
from cohortium_kit.errors import Refused
from cohortium_messages.ids import SiteId
from cohortium_messages.registry import Message
from cohortium_messages.runs import SessionClosed
from cohortium_messages.secure_sum import EchoCert, ModelRef, Receipt, ReceiptAsked, Roster, Survivors
from cohortium_messages.topology import SERVICES, UPLINK, control_queue, inbox, site_topology, uplink_key
from cohortium_protocol.signing import EnvelopeSigner, Keyring, service_key_id, site_key_id

M = TypeVar("M", bound=Message)
PATIENCE_S = 100.0
"""What takes longer does not come: on a busy machine a process needs tens of seconds to start."""
ROWS = np.array([0, 0, 0, 10, 5, 4, 2], dtype=np.int64)


def write_config(world: World, path: Path) -> Path:
    """The settings file of an aggregator that runs as a process of its own."""
    values = world.settings.model_dump(mode="json", by_alias=True, exclude_none=True)
    path.write_text(yaml.safe_dump(values))
    return path


@dataclass
class Live:
    """A running aggregator, and sites that answer what they are sent."""

    world: World
    bus: Bus
    windows: list[Window] = field(default_factory=list)
    values: dict[bytes, dict[int, np.ndarray]] = field(default_factory=dict)
    heard: list[tuple[SiteId | None, Message]] = field(default_factory=list)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    running: asyncio.Task[None] | None = None
    config: Path | None = None
    process: asyncio.subprocess.Process | None = None
    lost_frames: bool = False

    async def start(self) -> None:
        """As a process of its own where there is a settings file, else in this one."""
        self.world.leave_seat()
        if self.config is not None:
            command = (sys.executable, "-m", "cohortium_aggregator", "run", "--config", str(self.config))
            self.process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
            return
        self.stop = asyncio.Event()
        self.running = asyncio.create_task(self.world.app.run(self.stop))

    async def kill(self) -> None:
        """SIGKILL: nothing is finished, nothing is said; then start again with what is on disk."""
        assert self.process is not None
        self.process.kill()
        await self.process.wait()
        await self.start()

    async def finish(self) -> None:
        """Told to stop, it stops in time and says that all went well."""
        if self.process is not None:
            self.process.terminate()
            assert await asyncio.wait_for(self.process.wait(), PATIENCE_S) == 0
        elif self.running is not None:
            self.stop.set()
            await asyncio.wait_for(self.running, PATIENCE_S)

    async def listen(self) -> None:
        ears = Keyring({service_key_id("aggregator"): self.world.keys["aggregator"].public})

        def hearing(site: SiteId | None) -> Callable[[Delivery], Any]:
            async def hear(delivery: Delivery) -> Disposition:
                _, message, _ = open_envelope(delivery, ears)
                self.heard.append((site, message))
                if site is not None:
                    await self.answer(site, message)
                return Ack()

            return hear

        for site in self.world.identities:
            await self.bus.declare(site_topology(site))
            await self.bus.consume(control_queue(site), hearing(site), prefetch=8)
        await self.bus.consume(inbox("scheduler"), hearing(None), prefetch=8)

    async def answer(self, site: SiteId, message: Message) -> None:
        window = next((one for one in self.windows if one.params.window_id == getattr(message, "window_id", b"")), None)
        if window is None:
            return
        index = window.view.index_of(site)
        match message:
            case Roster() if index in self.values[window.params.window_id]:
                await self.upload(window, index)
            case Survivors():
                await self.say(site, window.echo(index, message))
            case EchoCert() if window.sites[index].survivors is not None:
                await self.say(site, window.unmask(index, message))
            case Receipt(complete=False):
                missing = [
                    k for k in range(len(window.sites[index].chunks)) if not message.chunks_stored[k // 8] >> k % 8 & 1
                ]
                await self.send_frames(window, index, missing)
            case _:
                pass

    async def upload(self, window: Window, index: int) -> None:
        if window.sites[index].header is None:
            await asyncio.to_thread(window.mask, index, self.values[window.params.window_id][index])
        header = window.sites[index].header
        assert header is not None
        await self.say(window.sites[index].site_id, header)
        chunks = [k for k in range(len(window.sites[index].chunks)) if not (self.lost_frames and k % 2)]
        await self.send_frames(window, index, chunks)

    async def send_frames(self, window: Window, index: int, chunks: list[int]) -> None:
        for chunk in chunks:
            delivery = await asyncio.to_thread(window.frame_delivery, index, chunk)
            frame = Outgoing(
                delivery.exchange,
                delivery.routing_key,
                delivery.body,
                delivery.message_id,
                delivery.type,
                content_type=delivery.content_type,
                persistent=False,
            )
            await self.publish_at_last(frame)

    async def publish_at_last(self, frame: Outgoing) -> None:
        """As a connector does: what a full queue refuses is said again, however long that takes."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    return await self.bus.publish(frame)
                except Refused:
                    await asyncio.sleep(0.02)

    async def say(self, site: SiteId, message: Message) -> None:
        signer = EnvelopeSigner(site_key_id(site), self.world.identities[site])
        outgoing = Sender("/site", signer, self.world.clock).outgoing(
            UPLINK.name, uplink_key(site, "aggregator"), message
        )
        for _ in range(2):
            await self.bus.publish(outgoing)

    async def open(self, window: Window, values: dict[int, np.ndarray]) -> None:
        self.windows.append(window)
        self.values[window.params.window_id] = values
        signer = EnvelopeSigner(service_key_id("scheduler"), self.world.keys["scheduler"])
        outgoing = Sender("/scheduler", signer, self.world.clock).outgoing(SERVICES.name, "aggregator", window.opened)
        for _ in range(2):
            await self.bus.publish(outgoing)

    async def wait(self, kind: type[M], where: Callable[[M], bool], seconds: float = PATIENCE_S) -> M:
        until = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < until:
            for _, message in self.heard:
                if isinstance(message, kind) and where(message):
                    return message
            await asyncio.sleep(0.01)
        raise AssertionError(f"{kind.type_name} did not come; heard {[m.type_name for _, m in self.heard][-12:]}")

    async def closed(self, window: Window, seconds: float = PATIENCE_S) -> SessionClosed:
        return await self.wait(SessionClosed, lambda one: one.window_id == window.params.window_id, seconds)

    async def closed_asking(self, window: Window) -> SessionClosed:
        """As `closed`, while sites ask after every silence what has arrived of their uploads, as connectors do."""
        closing = asyncio.create_task(self.closed(window))
        while not closing.done():
            await asyncio.wait({closing}, timeout=1.0)
            for index, site in window.sites.items():
                if site.header is not None and not closing.done():
                    await self.say(site.site_id, ReceiptAsked(window_id=window.params.window_id, step=0, index=index))
        return closing.result()

    async def first_model(self) -> ModelRef:
        window = self.world.prepare(self.world.params("statistics", integer_spec(7)))
        await self.open(window, dict.fromkeys(window.view.indices, ROWS))
        closed = await self.closed(window)
        assert closed.model is not None
        return closed.model
