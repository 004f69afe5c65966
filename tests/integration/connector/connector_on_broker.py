"""The played federation on RabbitMQ: what the connector sends is what arrives in the platform's queues."""

import asyncio
import contextlib
import sys
from pathlib import Path
from typing import Any

import yaml
from connector_world import ROLES, World

from cohortium_connector.app import App
from cohortium_connector.identity import Joined, load_identity
from cohortium_connector.spool import Spool
from cohortium_kit.amqp import RabbitBus
from cohortium_kit.bus import Ack, Delivery, Disposition, Outgoing
from cohortium_messages.topology import (
    CHUNK_PARTITIONS,
    STEP_PARTITIONS,
    chunk_queue,
    inbox,
    platform_topology,
    site_topology,
    steps_queue,
)
from cohortium_protocol.signing import site_key_id


class BrokerWorld(World):
    """A platform with its own connection; the connector runs in this process or in one of its own."""

    def __init__(self, folder: Path, amqp_url: str, namespace: str) -> None:
        super().__init__(folder)
        self.amqp_url = self.sites_url = amqp_url
        self.namespace = namespace
        self.bus = RabbitBus(amqp_url, namespace, connection_name="test-platform")
        self.process: asyncio.subprocess.Process | None = None
        self.kill_after_chunks: int | None = None
        self._chunks_seen = 0

    async def listen(self) -> None:
        """Take everything off the platform's queues and write it down."""
        chunks = [chunk_queue(partition) for partition in range(CHUNK_PARTITIONS)]
        steps = [steps_queue(partition) for partition in range(STEP_PARTITIONS)]
        for queue in (*map(inbox, ROLES), *chunks, *steps):
            await self.bus.consume(queue, self._on_delivery, prefetch=16)

    async def _on_delivery(self, delivery: Delivery) -> Disposition:
        if delivery.queue.startswith("chunks."):
            self._chunks_seen += 1
            if self._chunks_seen == self.kill_after_chunks and self.process is not None:
                self.process.kill()
        self.note(
            Outgoing(
                exchange=delivery.exchange,
                routing_key=delivery.routing_key,
                body=delivery.body,
                message_id=delivery.message_id,
                type=delivery.type,
                headers=delivery.headers,
                content_type=delivery.content_type,
            )
        )
        return Ack()

    async def build(self, **changes: Any) -> App:
        self.app = await App.build(
            self.settings(amqp_url=self.sites_url, namespace=self.namespace, **changes),
            clock=self.clock,
            make_runner=self.make_runner,
        )
        self._learn_key(self.app.desk.identity.key.public)
        return self.app

    def _learn_key(self, public_key: bytes) -> None:
        self.site_pk = public_key
        self.keyring.add(site_key_id(self.site_id), public_key)

    # A process of its own

    def write_config(self, **changes: Any) -> Path:
        """The connector's settings file; its identity key is made here, so that the test knows it from the start."""
        settings = self.settings(amqp_url=self.amqp_url, namespace=self.namespace, **changes)
        spool = Spool(settings.spool_dir)
        spool.prepare()
        identity = load_identity(settings, spool, Joined(self.site_id, "Hospital"), self.clock)
        self._learn_key(identity.key.public)
        values = settings.model_dump(mode="json", exclude={"database_url", "db_schema"}, exclude_none=True)
        path = self.folder / "connector.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    async def start_process(self, config: Path) -> None:
        with (self.folder / "connector.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "cohortium_connector", "run", "--config", str(config)), stdout=log, stderr=log
            )

    async def kill_process(self) -> None:
        """kill -9."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()

    async def remove(self) -> None:
        if self.process is not None and self.process.returncode is None:
            await self.kill_process()
        await self.bus.delete(site_topology(self.site_id))
        await self.bus.delete(platform_topology())
        await self.bus.close()
