"""What RabbitMQ refuses without asking anybody, read from its own log: a forged sender, a message over the limit, too
many channels, a handshake that is not TLS 1.3.

RabbitMQ publishes its log to an exchange (`log.exchange`). The text is for people and differs between versions, so what
is not understood is left alone: the broker has refused it all the same. A line quotes words of whoever was refused; a
site is named only where its login stands before any such word.
"""

import asyncio
import re
from dataclasses import dataclass

import structlog

from cohortium_enrolment.border import Border
from cohortium_kit.bus import Ack, Bus, Delivery, Disposition
from cohortium_kit.clock import Clock, pause
from cohortium_kit.errors import BusError
from cohortium_messages.rights import BROKER_LOG
from cohortium_messages.topology import Binding, Queue, QueueKind, Topology

log = structlog.get_logger(__name__)

AGAIN_S = 10.0
REMEDY = "set log.exchange = true; RabbitMQ 4.3 makes that exchange at its second start: restart it once"
PREFETCH = 32
LOG_TOPOLOGY = Topology(
    (),
    (
        Queue(
            BROKER_LOG,
            QueueKind.CLASSIC,
            tuple(Binding("amq.rabbitmq.log", level) for level in ("error", "warning", "notice")),
            max_length=1000,
            message_ttl_ms=600_000,
        ),
    ),
)
"""Lines over the limit, or that nobody reads in ten minutes, are lost here; the broker's own log has them."""

_LOGIN = re.compile(
    r"^[^(\n]*\([0-9a-f.:\[\]]+ -> [0-9a-f.:\[\]]+, vhost: '[^'\n]*', "
    r"user: '([0-9a-f-]{36})'(?:, state: [a-z]+)?\), channel"
)
_CODES = {
    "SENDER_FORGED": re.compile(r"precondition_failed: user_id property set to '"),
    "MESSAGE_TOO_LARGE": re.compile(r"precondition_failed: message size \d+ is larger than"),
    "CHANNELS_TOO_MANY": re.compile(r"not_allowed: \"number of channels opened"),
}
_TLS = re.compile(
    r"^[^\n]*\] <[0-9.]+> (?:TLS server: In state [^\n]* generated SERVER ALERT"
    r"|[0-9a-f.:\[\]]+ is connecting to the '[a-z/]+' listener without using TLS)"  # RabbitMQ 4.3
)


@dataclass(frozen=True, slots=True)
class Line:
    """A refusal in the log: its code, and whose login it was, where that is sure."""

    code: str
    login: str | None


def read_line(text: str) -> Line | None:
    """What one entry of the log tells of a refusal; None if it tells nothing."""
    if _TLS.match(text):
        return Line("TLS_REFUSED", None)
    first, _, rest = text.partition("\n")
    if " error on connection " not in first.lower() and "Error on AMQP connection" not in first:
        return None
    # The reason is at the beginning of what follows; further on are words of the other side.
    reason = rest[:200]
    code = next((code for code, pattern in _CODES.items() if pattern.search(reason)), None)
    if code is None:
        return None
    found = _LOGIN.match(first)
    return Line(code, found[1] if found else None)


@dataclass(slots=True)
class LogReader:
    """Counts what the broker's log tells of refusals."""

    bus: Bus
    border: Border
    clock: Clock

    async def run(self, stop: asyncio.Event) -> None:
        """Read until `stop` is set. A broker without the log's exchange is asked again now and then."""
        while not stop.is_set():
            try:
                await self.bus.declare(LOG_TOPOLOGY)
                subscription = await self.bus.consume(BROKER_LOG, self.hear, prefetch=PREFETCH)
            except BusError as error:
                log.warning("broker_log_not_read", error=type(error).__name__, remedy=REMEDY)
                await pause(self.clock, AGAIN_S, stop)
                continue
            await stop.wait()
            await subscription.cancel()

    async def hear(self, delivery: Delivery) -> Disposition:
        """Take one entry. The text never goes to our own log: it may hold anything."""
        line = read_line(delivery.body.decode("utf-8", "replace")[:4000])
        if line is not None:
            await self.border.refused_by_broker(line.login, line.code)
        return Ack()
