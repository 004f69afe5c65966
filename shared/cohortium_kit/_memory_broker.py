"""The server side of the embedded bus: exchanges, routing, dead letters and expiry with RabbitMQ's rules."""

import asyncio
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

import structlog

from cohortium_kit._dead import dead_headers
from cohortium_kit._memory_queue import Held, MemoryQueue, MemoryStream, key_matches
from cohortium_kit.bus import REASON_DELIVERY_LIMIT, REASON_EXPIRED, Outgoing, Start
from cohortium_kit.clock import Clock, SystemClock
from cohortium_kit.errors import BusError, ConfigurationError, QueueMissing, Refused, Unroutable
from cohortium_messages.topology import DEAD, Binding, ExchangeKind, Queue, QueueKind, Topology

log = structlog.get_logger(__name__)


class Connection(Protocol):
    """What the broker tells a connected bus."""

    def lose(self) -> None:
        """The connection is gone: give back what handlers hold, and expect no answers from them."""
        ...

    def regain(self) -> None:
        """The broker is back: subscribe again."""
        ...


@dataclass(slots=True)
class _Space:
    """One namespace: its exchanges, its bindings in order of declaration, its queues."""

    exchanges: dict[str, ExchangeKind] = field(default_factory=dict)
    bindings: dict[Binding, list[str]] = field(default_factory=dict)
    queues: dict[str, MemoryQueue] = field(default_factory=dict)

    def route(self, exchange: str, key: str) -> list[MemoryQueue]:
        kind = self.exchanges.get(exchange)
        if kind is None:
            return []
        names: dict[str, None] = {}
        for binding, queues in self.bindings.items():
            if binding.exchange == exchange and _fits(kind, binding.key, key):
                names.update(dict.fromkeys(queues))
        return [self.queues[name] for name in names]


def _fits(kind: ExchangeKind, pattern: str, key: str) -> bool:
    return pattern == key if kind is ExchangeKind.DIRECT else key_matches(pattern, key)


class MemoryBroker:
    """The server. Needs a running event loop only while a bus of it is open."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._spaces: dict[str, _Space] = {}
        self._buses: set[Connection] = set()
        self._expiry: asyncio.Task[None] | None = None
        self._up = True

    @property
    def up(self) -> bool:
        return self._up

    def stop(self) -> None:
        """The broker goes away, as by `kill -9`: publishes fail, what was in handlers' hands returns to its queue."""
        self._up = False
        for bus in list(self._buses):
            bus.lose()

    def start(self) -> None:
        """The broker is back with its queues; consumers are subscribed again."""
        self._up = True
        for bus in list(self._buses):
            bus.regain()

    def _space(self, namespace: str) -> _Space:
        return self._spaces.setdefault(namespace, _Space())

    def queue(self, namespace: str, name: str) -> MemoryQueue:
        """The queue, cleared of what expired; raises `QueueMissing`."""
        queue = self._space(namespace).queues.get(name)
        if queue is None:
            raise QueueMissing(f"no queue {namespace}.{name}: declare the topology first")
        self._expire(namespace, queue)
        return queue

    def declare(self, namespace: str, topology: Topology) -> None:
        """Make it exist. Raises `ConfigurationError` where something of that name has other rules; a queue with other
        bounds keeps them."""
        space = self._space(namespace)
        for exchange in topology.exchanges:
            if space.exchanges.setdefault(exchange.name, exchange.kind) is not exchange.kind:
                raise _redeclared(f"{namespace}.{exchange.name}")
        for rules in topology.queues:
            existing = space.queues.get(rules.name)
            if existing is None:
                stream = rules.kind is QueueKind.STREAM
                space.queues[rules.name] = MemoryStream(rules) if stream else MemoryQueue(rules)
            elif _apart_from_bounds(existing.rules) != _apart_from_bounds(rules):
                raise _redeclared(f"{namespace}.{rules.name}")
            for binding in rules.bindings:
                queues = space.bindings.setdefault(binding, [])
                if rules.name not in queues:
                    queues.append(rules.name)

    def delete(self, namespace: str, topology: Topology) -> None:
        """Delete queues and exchanges with what is in them."""
        space = self._space(namespace)
        gone = {queue.name for queue in topology.queues}
        for name in gone:
            space.queues.pop(name, None)
        for queues in space.bindings.values():
            queues[:] = [name for name in queues if name not in gone]
        for exchange in topology.exchanges:
            space.exchanges.pop(exchange.name, None)

    def publish(self, namespace: str, outgoing: Outgoing, user_id: str | None) -> None:
        """Route one message; returning is the confirm. A full queue refuses, the other ones keep their copy."""
        space = self._space(namespace)
        queues = space.route(outgoing.exchange, outgoing.routing_key)
        if not queues:
            where = f"{namespace}.{outgoing.exchange} with key {outgoing.routing_key}"
            raise Unroutable(f"no queue is bound to {where}: declare the receiver's topology")
        refused = [queue.rules.name for queue in queues if not self._offer(namespace, queue, outgoing, user_id)]
        if refused:
            raise Refused(f"queue {namespace}.{refused[0]} is full: publish again later")

    def _offer(self, namespace: str, queue: MemoryQueue, outgoing: Outgoing, user_id: str | None) -> bool:
        self._expire(namespace, queue)
        if queue.is_full_for(outgoing):
            return False
        held = queue.put(outgoing, user_id, self._clock.monotonic())
        self.pump(namespace, queue)
        if held.expires_at is not None:
            self._watch_expiry()
        return True

    def place_of(self, queue: MemoryQueue, start: Start | None) -> int:
        """Where a consumer begins that wants to begin there."""
        if not isinstance(queue, MemoryStream):
            return 0
        if isinstance(start, datetime):
            return queue.place_of(None, self._clock.monotonic() - (self._clock.now() - start).total_seconds())
        return queue.place_of(start, None)

    def pump(self, namespace: str, queue: MemoryQueue) -> None:
        """Hand over what can be handed over now."""
        self._expire(namespace, queue)
        while self._up and (turn := queue.next_turn()) is not None:
            taker, held = turn
            taker.holding.append(held)
            taker.hand_over(held)

    def give_back(self, namespace: str, queue: MemoryQueue, held: Held) -> None:
        """Put a message back, or park it if it was handed over too often. The caller pumps afterwards."""
        if queue.over_limit(held):
            self._park(namespace, queue, held, REASON_DELIVERY_LIMIT)
        else:
            queue.put_back(held)
            if held.expires_at is not None:
                self._watch_expiry()

    def _park(self, namespace: str, queue: MemoryQueue, held: Held, reason: str) -> None:
        """Dead-letter by the broker itself, as `x-dead-letter-exchange` does."""
        rules, outgoing = queue.rules, held.outgoing
        if rules.dead_letter_key is None:
            log.warning("message_dropped", queue=rules.name, reason=reason, message_id=outgoing.message_id)
            return
        origin = dead_headers(reason, exchange=outgoing.exchange, routing_key=outgoing.routing_key, queue=rules.name)
        letter = replace(
            outgoing,
            exchange=DEAD.name,
            routing_key=rules.dead_letter_key,
            headers={**outgoing.headers, **origin},
            ttl_ms=None,
        )
        try:
            self.publish(namespace, letter, held.user_id)
        except BusError:
            log.error("dead_letter_lost", queue=rules.name, reason=reason, message_id=outgoing.message_id)

    def _expire(self, namespace: str, queue: MemoryQueue) -> None:
        for held in queue.pop_expired(self._clock.monotonic()):
            if queue.rules.dead_letter_key is not None:
                self._park(namespace, queue, held, REASON_EXPIRED)

    def _watch_expiry(self) -> None:
        if self._expiry is None and self._buses:
            self._expiry = asyncio.get_running_loop().create_task(self._expire_in_time())

    async def _expire_in_time(self) -> None:
        """Sleep to the next end of life and clear it away, until nothing waits that can end."""
        while (soonest := self._soonest_end()) is not None:
            await self._clock.sleep(soonest - self._clock.monotonic())
            for namespace, space in self._spaces.items():
                for queue in list(space.queues.values()):
                    self._expire(namespace, queue)
        self._expiry = None

    def _soonest_end(self) -> float | None:
        heads = (q.ready[0].expires_at for s in self._spaces.values() for q in s.queues.values() if q.ready)
        return min((end for end in heads if end is not None), default=None)

    def admit(self, bus: Connection) -> None:
        self._buses.add(bus)

    def forget(self, bus: Connection) -> None:
        self._buses.discard(bus)
        if not self._buses and self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None


def _apart_from_bounds(rules: Queue) -> tuple[object, ...]:
    return rules.kind, rules.dead_letter_key, rules.single_active_consumer, rules.refuses


def _redeclared(name: str) -> ConfigurationError:
    return ConfigurationError(f"{name} exists with other rules: delete it, or give the new one another name")
