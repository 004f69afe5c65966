"""A broker that refuses a login and is in no hurry to hang up: who gives up the dial cuts the line, and nobody waits.

The broker here is two frames in a thread: no real one keeps its end of TLS open for so long.
"""

import asyncio
import contextlib
import gc
import os
import socket
import ssl
import sys
import threading
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pamqp.commands
import pamqp.frame
import pytest

from cohortium_cli.pki import key_pem, make_authority, make_server, pem
from cohortium_kit.amqp import RabbitBus
from cohortium_kit.errors import BrokerUnavailable

PATIENCE_S = 20.0
"""Less than the 30 s after which asyncio by itself gives up waiting for the other end of TLS."""


class RefusingBroker:
    """Takes one connection, refuses its login, and says nothing more."""

    def __init__(self, folder: Path) -> None:
        authority, authority_key = make_authority("test.example", datetime.now(UTC))
        certificate, key = make_server(authority, authority_key, ["localhost"], datetime.now(UTC))
        for name, text in {
            "ca.crt": pem(authority),
            "broker.crt": pem(certificate),
            "broker.key": key_pem(key),
        }.items():
            (folder / name).write_text(text)
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(folder / "broker.crt", folder / "broker.key")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(PATIENCE_S)
        self.url = f"amqps://site:word@localhost:{self._listener.getsockname()[1]}/?cafile={folder / 'ca.crt'}"
        self.refused = threading.Event()
        self.line_is_cut = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        accepted, _ = self._listener.accept()
        accepted.settimeout(PATIENCE_S)
        with (
            self._context.wrap_socket(accepted, server_side=True) as line,
            socket.socket(fileno=os.dup(line.fileno())) as raw,
        ):
            line.sendall(pamqp.frame.marshal(pamqp.commands.Connection.Start(mechanisms="PLAIN", locales="en_US"), 0))
            heard = b""
            while b"PLAIN" not in heard:
                heard += line.recv(1 << 16)
            line.sendall(pamqp.frame.marshal(pamqp.commands.Connection.Close(403, "ACCESS_REFUSED", 10, 11), 0))
            self.refused.set()
            raw.settimeout(PATIENCE_S)
            with contextlib.suppress(TimeoutError):
                with contextlib.suppress(ConnectionResetError):  # as good as an end
                    while raw.recv(1 << 16):  # the client's end of TLS, which is not the end of the line
                        pass
                self.line_is_cut.set()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RefusingBroker]:
    made = RefusingBroker(tmp_path)
    yield made
    made.close()


async def test_a_bus_closed_in_a_refused_dial_leaves_no_line_and_nobody_waiting(broker: RefusingBroker) -> None:
    bus = RabbitBus(broker.url, "t", connection_name="t")
    connecting = asyncio.create_task(bus.connect())
    assert await asyncio.to_thread(broker.refused.wait, PATIENCE_S)
    await asyncio.wait_for(bus.close(), PATIENCE_S)
    assert await asyncio.to_thread(broker.line_is_cut.wait, PATIENCE_S)
    with pytest.raises(BrokerUnavailable, match="closed"):
        await asyncio.wait_for(connecting, PATIENCE_S)


def test_what_a_given_up_dial_leaves_is_collected_in_a_thread_without_a_loop_in_silence(
    broker: RefusingBroker,
) -> None:
    """The collector comes by wherever it likes; a connection that wanted closing there would warn of itself."""
    loop = asyncio.new_event_loop()  # aio-pika asks whether the loop of the dial still stands

    async def give_up() -> None:
        bus = RabbitBus(broker.url, "t", connection_name="t")
        connecting = asyncio.create_task(bus.connect())
        assert await asyncio.to_thread(broker.refused.wait, PATIENCE_S)
        await asyncio.wait_for(bus.close(), PATIENCE_S)
        with pytest.raises(BrokerUnavailable, match="closed"):
            await asyncio.wait_for(connecting, PATIENCE_S)

    heard: list[str] = []
    hook = sys.unraisablehook
    gc.disable()
    try:
        loop.run_until_complete(give_up())
        sys.unraisablehook = lambda said: heard.append(f"{said.object!r}: {said.exc_value}")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            collector = threading.Thread(target=gc.collect)
            collector.start()
            collector.join()
    finally:
        gc.enable()
        sys.unraisablehook = hook
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    assert heard == []
