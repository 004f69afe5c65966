"""What every service counts and times, in a registry of its own, for Prometheus.

Label values come from closed sets that our code names: message types, queues, transactions, reason codes. Never a site,
a study or a run: those are in the logs and in the audit log, whose readers are known, and a set that grows with use
would fill the operator's time-series database. Buckets are seconds.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.process_collector import ProcessCollector

from cohortium_messages.registry import MESSAGE_TYPES

S = TypeVar("S")

QUICK_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
SLOW_S = (0.05, 0.25, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0)
OTHER = "other"


@dataclass(slots=True)
class Outcome:
    """What becomes of one message: `handled`, `repeated`, `parked`, `forgotten`, `postponed`, `failed` or
    `held`. A message is forgotten that would be parked if its sender had not sent too many of them."""

    name: str = "failed"
    reason: str = ""


class Metrics:
    """The instruments of the kit, and the registry to which a service adds its own.

    One per service, not per process: the simulator runs several services in one process, and each has its own.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._services: dict[Any, Any] = {}
        self._instruments: dict[str, Any] = {}
        ProcessCollector(registry=self.registry)
        self.build = self.gauge("cohortium_build", "1, with service and version.", "service", "version")
        self.consumed = self.counter(
            "cohortium_messages_consumed", "Messages answered, by what became of them.", "consumer", "type", "outcome"
        )
        self.parked = self.counter(
            "cohortium_messages_parked", "Messages sent to the dead letters, by reason.", "consumer", "reason"
        )
        self.redeliveries = self.counter(
            "cohortium_messages_redelivered", "Messages that the broker handed over again.", "consumer"
        )
        self.handler_seconds = self.histogram(
            "cohortium_message_handler_seconds",
            "From a message's turn to its commit; waiting for the database included.",
            QUICK_S,
            "consumer",
            "type",
        )
        self.wait_seconds = self.histogram(
            "cohortium_message_wait_seconds",
            "From a service's signing of a message to its turn here: outbox, broker and queue.",
            SLOW_S,
            "consumer",
        )
        self.published = self.counter(
            "cohortium_messages_published", "Messages of the outbox that the broker confirmed.", "exchange", "type"
        )
        self.publish_refusals = self.counter(
            "cohortium_publish_refusals", "Messages of the outbox that the broker did not accept.", "exchange", "error"
        )
        self.relay_outages = self.counter(
            "cohortium_relay_outages", "Attempts to send that met no broker or no database.", "error"
        )
        self.transaction_seconds = self.histogram(
            "cohortium_db_transaction_seconds", "Read-write transactions that committed.", QUICK_S, "transaction"
        )
        self.transactions_repeated = self.counter(
            "cohortium_db_transactions_repeated", "Transactions run again after meeting another one.", "transaction"
        )

    def of(self, kind: Callable[["Metrics"], S]) -> S:
        """A service's own instruments: a class that makes them from this registry, made when first asked for."""
        made = self._services.get(kind)
        if made is None:
            made = self._services[kind] = kind(self)
        return cast("S", made)

    def counter(self, name: str, told: str, *labels: str) -> Counter:
        """A counter in this registry; Prometheus sees it as `<name>_total`. Asking again gives the same one."""
        return self._once(name, lambda: Counter(name, told, labels, registry=self.registry))

    def gauge(self, name: str, told: str, *labels: str) -> Gauge:
        return self._once(name, lambda: Gauge(name, told, labels, registry=self.registry))

    def histogram(self, name: str, told: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return self._once(name, lambda: Histogram(name, told, labels, buckets=buckets, registry=self.registry))

    def _once(self, name: str, make: Callable[[], S]) -> S:
        if name not in self._instruments:
            self._instruments[name] = make()
        return cast("S", self._instruments[name])

    @contextlib.contextmanager
    def answering(self, consumer: str, claimed_type: str, *, redelivered: bool) -> Iterator[Outcome]:
        """Count one delivery; the block says in the outcome what became of it."""
        outcome = Outcome()
        if redelivered:
            self.redeliveries.labels(consumer).inc()
        try:
            yield outcome
        finally:
            self.consumed.labels(consumer, known_type(claimed_type), outcome.name).inc()
            if outcome.name == "parked":
                self.parked.labels(consumer, reason_label(outcome.reason)).inc()

    @contextlib.contextmanager
    def handling(self, consumer: str, kind: str) -> Iterator[None]:
        """Time the turn of one message."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.handler_seconds.labels(consumer, known_type(kind)).observe(time.perf_counter() - began)


def known_type(name: str) -> str:
    """A type as a label. What an unsigned message calls itself may be anything, so only known names pass."""
    return name if name in MESSAGE_TYPES else OTHER


def reason_label(reason: str) -> str:
    """A dead-letter reason without the place of its fault: `bad_schema:data.sites.3` is `bad_schema`."""
    return reason.partition(":")[0][:64]
