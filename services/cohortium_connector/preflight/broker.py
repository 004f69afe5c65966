"""The broker and the platform behind it: login, queues, rights, the line both ways, and the clock."""

import asyncio
import secrets
import statistics
import time
from dataclasses import dataclass, field

from cohortium_connector.identity import Identity
from cohortium_connector.preflight.findings import Fact, Finding, failed, ok, skipped, warning
from cohortium_connector.settings import ConnectorSettings
from cohortium_kit.bus import Ack, Bus, Delivery, Disposition
from cohortium_kit.clock import Clock
from cohortium_kit.envelopes import open_envelope
from cohortium_kit.errors import AccessRefused, BusError, ConfigurationError, Poison, QueueMissing
from cohortium_messages.preflight import PADDING, PreflightEcho, PreflightProbe
from cohortium_messages.rights import Standing, site_queues
from cohortium_messages.topology import UPLINK, results_queue, uplink_key

SMALL, LARGE = 4, 4
ECHO_S, LARGE_S = 10.0, 120.0
SLOW_MBIT_S = 2.0
CLOCK_WARNING_S, CLOCK_FAILURE_S = 5.0, 240.0
"""The protocol bears five minutes of difference; a clock that is seconds off drifts on."""


@dataclass(slots=True)
class Line:
    """What the echoes told. None: no echo came."""

    round_trip_ms: float | None = None
    up_mbit_s: float | None = None
    down_mbit_s: float | None = None
    clock_offset_s: float | None = None


@dataclass(slots=True)
class _Round:
    """One series of probes: when each echo came, by this machine's monotonic clock."""

    nonce: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    came: dict[int, tuple[float, PreflightEcho]] = field(default_factory=dict)
    news: asyncio.Event = field(default_factory=asyncio.Event)


async def look(bus: Bus, identity: Identity, settings: ConnectorSettings, *, registered: bool) -> list[Finding]:
    """Login, rights and queues, in this order; the bus is connected afterwards if all went well."""
    try:
        await bus.connect()
    except AccessRefused:
        return [failed("login", "LOGIN_REFUSED"), skipped("rights"), skipped("queues")]
    except ConfigurationError as error:
        return [ok("login"), failed("rights", "BROKER_TOO_OPEN", found=str(error)), skipped("queues")]
    except BusError as error:
        return [failed("login", "NO_CONNECTION", error=str(error)), skipped("rights"), skipped("queues")]
    strict = settings.broker_check == "strict"
    found = [ok("login"), ok("rights") if strict else skipped("rights", mode="trial")]
    standing = Standing.ACTIVE if registered else Standing.INVITED
    names = site_queues(identity.site_id, standing)
    for name in names:
        try:
            await bus.check_queue(name)
        except (QueueMissing, AccessRefused):
            return [*found, failed("queues", "QUEUE_MISSING", queue=name)]
        except BusError as error:
            return [*found, failed("queues", "NO_CONNECTION", queue=name, error=str(error))]
    return [*found, ok("queues", queues=len(names))]


async def measure(bus: Bus, identity: Identity, clock: Clock) -> Line:
    """Send probes to enrolment and time what comes back. Reads the queue of results, which nobody needs while the
    connector stands still: steps of sessions that it had before are void."""
    series = _Round()

    async def take(delivery: Delivery) -> Disposition:
        try:
            _, echo, key_id = open_envelope(delivery, identity.keyring)
        except Poison:
            return Ack()
        if isinstance(echo, PreflightEcho) and key_id == "service:enrolment" and echo.nonce == series.nonce:
            series.came.setdefault(echo.sequence, (time.monotonic(), echo))
            series.news.set()
        return Ack()

    subscription = await bus.consume(results_queue(identity.site_id), take, prefetch=32)
    try:
        line = await _small(bus, identity, clock, series)
        if line.round_trip_ms is not None:
            await _large(bus, identity, series, line)
        return line
    finally:
        await subscription.cancel()


async def _small(bus: Bus, identity: Identity, clock: Clock, series: _Round) -> Line:
    """Times there and back, one after the other; the quickest tells the clock best."""
    trips = []
    for sequence in range(SMALL):
        began, wall = time.monotonic(), clock.now()
        await _send(bus, identity, series, sequence, "")
        if not await _wait(series, sequence, ECHO_S):
            break
        came, echo = series.came[sequence]
        offset = (echo.received_at - wall).total_seconds() - (came - began) / 2
        trips.append((came - began, offset))
    if not trips:
        return Line()
    _, offset = min(trips)
    return Line(round_trip_ms=1000 * statistics.median(one for one, _ in trips), clock_offset_s=offset)


async def _large(bus: Bus, identity: Identity, series: _Round, line: Line) -> None:
    """Several at once: up until the last confirm, down from the first whole echo to the last."""
    padding = "0" * (2 * PADDING)
    numbers = range(SMALL, SMALL + LARGE)
    began = time.monotonic()
    try:
        async with asyncio.timeout(LARGE_S):
            await asyncio.gather(*[_send(bus, identity, series, number, padding, LARGE_S) for number in numbers])
    except (BusError, TimeoutError):
        return
    line.up_mbit_s = _mbit_s(LARGE * len(padding), time.monotonic() - began)
    for number in numbers:
        if not await _wait(series, number, LARGE_S):
            return
    times = sorted(series.came[number][0] for number in numbers)
    line.down_mbit_s = _mbit_s((LARGE - 1) * len(padding), times[-1] - times[0])


async def _send(
    bus: Bus, identity: Identity, series: _Round, sequence: int, padding: str, timeout_s: float = ECHO_S
) -> None:
    probe = PreflightProbe(site_id=identity.site_id, nonce=series.nonce, sequence=sequence, padding=padding)
    key = uplink_key(identity.site_id, "enrolment")
    await bus.publish(identity.sender.outgoing(UPLINK.name, key, probe, persistent=False), timeout_s=timeout_s)


async def _wait(series: _Round, sequence: int, limit_s: float) -> bool:
    try:
        async with asyncio.timeout(limit_s):
            while sequence not in series.came:
                series.news.clear()
                await series.news.wait()
    except TimeoutError:
        return False
    return True


def _mbit_s(size: int, seconds: float) -> float:
    return 8e-6 * size / max(seconds, 1e-3)


def line_findings(line: Line) -> list[Finding]:
    """The line and the clock, as checks."""
    if line.round_trip_ms is None or line.clock_offset_s is None:
        return [failed("line", "NO_ECHO"), skipped("clock")]
    rates = [rate for rate in (line.up_mbit_s, line.down_mbit_s) if rate is not None]
    facts: dict[str, Fact] = {"round_trip_ms": round(line.round_trip_ms, 1)}
    if line.up_mbit_s is not None:
        facts["up_mbit_s"] = round(line.up_mbit_s, 1)
    if line.down_mbit_s is not None:
        facts["down_mbit_s"] = round(line.down_mbit_s, 1)
    slow = len(rates) < 2 or min(rates) < SLOW_MBIT_S
    offset = line.clock_offset_s
    told: dict[str, Fact] = {"offset_s": round(offset, 3), "known_to_s": round(line.round_trip_ms / 2000, 3)}
    if abs(offset) > CLOCK_FAILURE_S:
        clock = failed("clock", "CLOCK_OFF", **told)
    elif abs(offset) > CLOCK_WARNING_S:
        clock = warning("clock", "CLOCK_OFF", **told)
    else:
        clock = ok("clock", **told)
    return [warning("line", "LINE_SLOW", **facts) if slow else ok("line", **facts), clock]
