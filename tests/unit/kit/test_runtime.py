"""The main loop: orderly ends, exit codes, signals."""

import asyncio
import contextlib
import gc
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cohortium_kit.clock import SystemClock
from cohortium_kit.db import Database
from cohortium_kit.errors import ConfigurationError
from cohortium_kit.memory import MemoryBroker, MemoryBus
from cohortium_kit.migrate import migrate
from cohortium_kit.outbox import Relay
from cohortium_kit.runtime import ServiceApp, main, run_until_stopped
from cohortium_messages.topology import platform_topology


async def test_parts_end_when_stop_is_set() -> None:
    stop, ended = asyncio.Event(), []

    async def part(stop: asyncio.Event) -> None:
        await stop.wait()
        ended.append(1)

    running = asyncio.create_task(run_until_stopped(part, part, stop=stop))
    await asyncio.sleep(0)
    stop.set()
    await running
    assert ended == [1, 1]


async def test_failing_part_stops_the_others_in_order_and_is_raised() -> None:
    stop, ended = asyncio.Event(), []

    async def good(stop: asyncio.Event) -> None:
        await stop.wait()
        ended.append(1)

    async def bad(stop: asyncio.Event) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await run_until_stopped(good, bad, stop=stop)
    assert ended == [1]


async def test_part_that_does_not_end_is_cancelled_after_the_grace() -> None:
    stop = asyncio.Event()
    stop.set()

    async def deaf(stop: asyncio.Event) -> None:
        await asyncio.Event().wait()

    await asyncio.wait_for(run_until_stopped(deaf, stop=stop, grace_s=0.05), 5)


async def test_cancelling_the_loop_cancels_its_parts() -> None:
    cancelled = []

    async def part(stop: asyncio.Event) -> None:
        try:
            await stop.wait()
        finally:
            cancelled.append(1)

    running = asyncio.create_task(run_until_stopped(part, stop=asyncio.Event()))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert cancelled == [1]


async def test_part_that_swallows_its_cancellation_still_ends() -> None:
    stop = asyncio.Event()

    async def deaf_once(stop: asyncio.Event) -> None:
        while not stop.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    running = asyncio.create_task(run_until_stopped(deaf_once, stop=stop))
    await asyncio.sleep(0)
    running.cancel()
    _, late = await asyncio.wait({running}, timeout=5)
    assert not late


async def test_app_closes_bus_and_database_at_its_end(tmp_path: Path, namespace: str) -> None:
    bus = MemoryBus(MemoryBroker(), namespace)
    db = Database(f"sqlite:///{tmp_path}/s.db", schema="s")
    await migrate(db)
    app = ServiceApp(bus, db, Relay(db, bus, SystemClock()))
    stop, seen = asyncio.Event(), []

    async def part(stop: asyncio.Event) -> None:
        seen.append(bus.connected)
        stop.set()

    app.part(part)
    await asyncio.wait_for(app.run(stop), 60)
    assert seen == [True]
    assert not bus.connected


async def test_app_waits_for_a_broker_that_is_away_and_then_declares(tmp_path: Path, namespace: str) -> None:
    broker = MemoryBroker()
    broker.stop()
    bus = MemoryBus(broker, namespace)
    db = Database(f"sqlite:///{tmp_path}/s.db", schema="s")
    await migrate(db)
    stop, depths = asyncio.Event(), []
    app = ServiceApp(bus, db, Relay(db, bus, SystemClock()), platform_topology())

    async def part(stop: asyncio.Event) -> None:
        depths.append(await bus.queue_depth("audit.inbox"))
        stop.set()

    app.part(part)
    running = asyncio.create_task(app.run(stop))
    await asyncio.sleep(0.1)
    broker.start()
    await asyncio.wait_for(running, 60)
    assert depths == [0]


async def test_app_told_to_stop_while_it_waits_for_the_broker_stops(tmp_path: Path, namespace: str) -> None:
    broker = MemoryBroker()
    broker.stop()
    bus = MemoryBus(broker, namespace)
    db = Database(f"sqlite:///{tmp_path}/s.db", schema="s")
    await migrate(db)
    stop = asyncio.Event()
    running = asyncio.create_task(ServiceApp(bus, db, Relay(db, bus, SystemClock())).run(stop))
    await asyncio.sleep(0.05)
    stop.set()
    await asyncio.wait_for(running, 60)


def test_exit_codes_tell_clean_failed_and_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    async def clean(stop: asyncio.Event) -> None:
        return

    async def failed(stop: asyncio.Event) -> None:
        raise ZeroDivisionError

    async def misconfigured(stop: asyncio.Event) -> None:
        raise ConfigurationError("set amqp_url")

    assert [main(clean), main(failed), main(misconfigured)] == [0, 1, 2]
    assert "set amqp_url" in capsys.readouterr().err


def test_the_collector_leaves_alone_what_is_there_once_a_service_has_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cohortium_kit.runtime.SETTLED_S", 0.01)
    kept = [[number] for number in range(20_000)]
    frozen = []

    async def service(_: asyncio.Event) -> None:
        frozen.append(gc.get_freeze_count())
        await asyncio.sleep(0.1)
        frozen.append(gc.get_freeze_count())

    assert main(service) == 0
    before, after = frozen
    assert after - before >= len(kept)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_service_cleanly(number: signal.Signals) -> None:
    code = """
        import asyncio, sys
        from cohortium_kit.runtime import main
        async def service(stop):
            print("ready", flush=True)
            await stop.wait()
            print("drained", flush=True)
        sys.exit(main(service))
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(number)
        assert child.stdout.read() == "drained\n"
    assert child.returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="a Linux call")
def test_child_ends_with_its_killed_parent() -> None:
    code = """
        import os, subprocess, sys, time
        child = "import os,signal,time; from cohortium_kit.runtime import set_parent_death_signal as s; "
        child += "s(signal.SIGKILL); print(os.getpid(), flush=True); time.sleep(60)"
        subprocess.Popen([sys.executable, "-c", child])
        time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert int(parent.stdout.readline()) > 0
        parent.kill()
        # End of file comes when the last holder of the pipe, the grandchild, has ended.
        assert parent.stdout.read() == ""
