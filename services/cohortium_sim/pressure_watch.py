"""What a RabbitMQ of its own says while a federation sends to it: its memory, and what waits in its queues."""

import asyncio
import base64
import json
import re
import urllib.request
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from cohortium_kit.testing.servers import PrivateRabbit, free_port
from cohortium_messages.topology import CHUNK_PARTITIONS, chunk_queue, dead_letters
from cohortium_sim.meter import resident_bytes
from cohortium_sim.simulate import Simulation

LOOK_S = 0.2
MOST_MISSED = 20
"""Looks in a row that the broker may not answer."""
MEASURE = re.compile(
    r"rabbitmq_detailed_queue_messages(?P<name>|_bytes|_ready_bytes)"
    r'\{.*queue="(?P<queue>[^"]*)".*\} (?P<value>[0-9.e+]+)'
)
REFUSED = b'"event": "chunk_not_taken"'


@dataclass(slots=True)
class Seen:
    """What was seen at the broker during one round. Bytes; `refused`: frames, by hospital."""

    case: str
    seconds: float = 0.0
    broker_before: int = 0
    broker_peak: int = 0
    chunks_peak: int = 0
    """Of the fullest chunk queue, without what the aggregator has and has not acknowledged."""
    queues_peak: int = 0
    """Of all queues together."""
    refused: dict[str, int] = field(default_factory=dict)
    parked: int = 0
    """Frames among the dead letters."""
    in_sum: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a queue holds: messages, bytes that no consumer has yet (these are bounded), and with those that one has."""

    messages: int = 0
    ready: int = 0
    held: int = 0


class Broker:
    """A RabbitMQ of this run alone, and what it says of itself."""

    def __init__(self, folder: Path) -> None:
        self._management, self._measures = free_port(), free_port()
        self.server = PrivateRabbit(
            folder,
            settings=(
                f"management.tcp.port = {self._management}",
                "management.tcp.ip = 127.0.0.1",
                f"prometheus.tcp.port = {self._measures}",
                "prometheus.tcp.ip = 127.0.0.1",
                "collect_statistics_interval = 500",
            ),
            plugins=("rabbitmq_management", "rabbitmq_prometheus"),
        )

    def bound(self, namespace: str, limit: int) -> None:
        """Let each chunk queue hold only so many bytes. Of a policy and a queue's own bound the lower one counts."""
        policy = {
            "pattern": f"^{namespace}\\.chunks\\.[0-9]+$",
            "definition": {"max-length-bytes": limit},
            "apply-to": "queues",
        }
        login = base64.b64encode(b"guest:guest").decode("ascii")
        address = f"http://127.0.0.1:{self._management}/api/policies/%2F/pressure"
        headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
        _ask(urllib.request.Request(address, json.dumps(policy).encode(), headers, method="PUT"))

    def waiting(self, namespace: str) -> dict[str, Waiting]:
        """What waits by queue, without the namespace, half a second ago at most: management looks every five."""
        families = "family=queue_coarse_metrics&family=queue_metrics"
        address = f"http://127.0.0.1:{self._measures}/metrics/detailed?{families}"
        return waiting_of(_ask(urllib.request.Request(address)).decode(), namespace)


def waiting_of(measures: str, namespace: str) -> dict[str, Waiting]:
    """What waits by queue, from RabbitMQ's measures as Prometheus reads them."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for line in measures.splitlines():
        measure = MEASURE.fullmatch(line)
        if measure is not None:
            found[measure["queue"].removeprefix(f"{namespace}.")][measure["name"]] = int(float(measure["value"]))
    return {
        queue: Waiting(counts.get("", 0), counts.get("_ready_bytes", 0), counts.get("_bytes", 0))
        for queue, counts in found.items()
    }


def _ask(request: urllib.request.Request) -> bytes:
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - our own server, over the loopback
        said: bytes = answer.read()
    return said


class Watch:
    """Looks at the broker all the time, and keeps the highest of what it sees for the round that is on."""

    def __init__(self, broker: Broker, simulation: Simulation) -> None:
        self._broker = broker
        self._namespace = simulation.namespace
        self._logs = simulation.files.directory / "logs"
        self.seen = Seen("")
        self._refused_before: dict[str, int] = {}

    def begin(self, case: str) -> Seen:
        """From here on it is another round."""
        self.seen = Seen(case, broker_before=self._resident())
        self._refused_before = self._refusals()
        return self.seen

    def end(self, in_sum: tuple[str, ...], seconds: float) -> None:
        """The round is over."""
        before = self._refused_before
        self.seen.refused = {name: count - before.get(name, 0) for name, count in self._refusals().items()}
        self.seen.in_sum, self.seen.seconds = in_sum, seconds

    async def run(self) -> None:
        """Until it is cancelled."""
        missed = 0
        while True:
            try:
                waiting = await asyncio.to_thread(self._broker.waiting, self._namespace)
            except OSError:  # a broker under pressure may not answer at once; one that is gone ends this
                missed += 1
                if missed == MOST_MISSED:
                    raise
                await asyncio.sleep(LOOK_S)
                continue
            missed = 0
            seen = self.seen
            seen.broker_peak = max(seen.broker_peak, self._resident())
            chunks = [waiting.get(chunk_queue(number), Waiting()).ready for number in range(CHUNK_PARTITIONS)]
            seen.chunks_peak = max(seen.chunks_peak, *chunks)
            seen.queues_peak = max(seen.queues_peak, sum(queue.held for queue in waiting.values()))
            seen.parked = max(seen.parked, waiting.get(dead_letters("chunks"), Waiting()).messages)
            await asyncio.sleep(LOOK_S)

    def _resident(self) -> int:
        return resident_bytes(self._broker.server.pid)

    def _refusals(self) -> dict[str, int]:
        """Frames that were not taken at once, by hospital, as its connector's log says."""
        logs = self._logs.glob("connector-*.log")
        return {path.stem.removeprefix("connector-"): path.read_bytes().count(REFUSED) for path in logs}
