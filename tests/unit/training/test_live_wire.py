"""The live line: one question, one answer, an end that both sides see, and nothing that does not belong there."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable

import pytest

from cohortium_connector.training.live_wire import (
    AGREE,
    HEAD,
    MAX_PAYLOAD_BYTES,
    RELAY,
    STOP,
    SUM,
    BridgeDead,
    ChildBridge,
    LiveBridge,
    LiveFault,
    Request,
    relay_parts,
    relay_reply,
)


def child(
    line: socket.socket, work: Callable[[ChildBridge], object], timeout_s: float = 10.0
) -> asyncio.Future[object]:
    """`work` in a thread, as the training process would do it."""

    def run() -> object:
        bridge = ChildBridge(line, timeout_s=timeout_s)
        try:
            return work(bridge)
        finally:
            bridge.close()

    return asyncio.get_running_loop().run_in_executor(None, run)


async def test_questions_are_answered_in_their_order() -> None:
    bridge, line = LiveBridge.pair()
    big = bytes(range(256)) * 40_000  # more than any socket buffer holds
    work = child(line, lambda asker: [asker.ask(kind, payload) for kind, payload in ((SUM, big), (AGREE, b"T"))])
    for kind, payload, answer in ((SUM, big, big[::-1]), (AGREE, b"T", bytes(32))):
        assert await bridge.recv() == Request(kind, payload)
        await bridge.reply(kind, answer)
    assert await bridge.recv() is None
    assert await work == [(SUM, big[::-1]), (AGREE, bytes(32))]
    bridge.close()
    bridge.close()


async def test_a_stop_is_an_answer_to_any_question() -> None:
    bridge, line = LiveBridge.pair()
    work = child(line, lambda asker: asker.ask(RELAY, b"x"))
    await bridge.recv()
    with pytest.raises(LiveFault, match="no code"):
        await bridge.stop("not a code")
    await bridge.stop("SITE_SILENT")
    assert await work == (STOP, b"SITE_SILENT")
    bridge.close()


async def test_a_closed_line_ends_the_asker() -> None:
    bridge, line = LiveBridge.pair()
    work = child(line, lambda asker: asker.ask(SUM, bytes(8)))
    await bridge.recv()
    bridge.close()
    with pytest.raises(BridgeDead, match="closed"):
        await work


async def test_a_line_closed_before_its_first_question_ends_the_asker() -> None:
    bridge, line = LiveBridge.pair()
    bridge.close()
    with pytest.raises(BridgeDead, match="closed"):
        await child(line, lambda asker: asker.ask(SUM, bytes(8)))


async def test_an_answer_to_a_job_that_is_over_is_not_an_error() -> None:
    bridge, line = LiveBridge.pair()
    line.sendall(HEAD.pack(SUM, 0))
    assert await bridge.recv() == Request(SUM, b"")
    line.close()
    for _ in range(3):
        await bridge.reply(SUM, bytes(1 << 16))
    assert await bridge.recv() is None
    bridge.close()


async def test_waiting_is_bounded() -> None:
    bridge, line = LiveBridge.pair()
    began = time.monotonic()
    with pytest.raises(BridgeDead, match=r"no answer in 0\.3 s"):
        await child(line, lambda asker: asker.ask(SUM, bytes(8)), timeout_s=0.3)
    assert time.monotonic() - began < 5
    bridge.close()


async def test_a_question_that_nobody_reads_is_bounded_too() -> None:
    bridge, line = LiveBridge.pair()
    with pytest.raises(BridgeDead, match="no answer"):
        await child(line, lambda asker: asker.ask(SUM, bytes(8 << 20)), timeout_s=0.3)
    bridge.close()


@pytest.mark.parametrize(
    "frame",
    [HEAD.pack(STOP, 0), HEAD.pack(0, 0), HEAD.pack(4, 32), HEAD.pack(SUM, MAX_PAYLOAD_BYTES + 1)],
    ids=["stop", "zero", "four", "too long"],
)
async def test_a_question_that_is_none_is_refused_before_it_is_read(frame: bytes) -> None:
    bridge, line = LiveBridge.pair()
    line.sendall(frame)
    with pytest.raises(LiveFault):
        await bridge.recv()
    line.close()
    bridge.close()


@pytest.mark.parametrize("cut", range(1, HEAD.size + 4))
async def test_half_a_question_is_the_end(cut: int) -> None:
    bridge, line = LiveBridge.pair()
    line.sendall((HEAD.pack(SUM, 8) + bytes(8))[:cut])
    line.close()
    assert await bridge.recv() is None
    bridge.close()


async def test_nothing_too_long_is_asked() -> None:
    bridge, line = LiveBridge.pair()
    with pytest.raises(LiveFault, match="longer than"):
        await child(line, lambda asker: asker.ask(SUM, bytes(MAX_PAYLOAD_BYTES + 1)))
    assert await bridge.recv() is None
    bridge.close()


async def test_an_interrupt_ends_a_wait() -> None:
    bridge, line = LiveBridge.pair()
    seen = threading.Event()

    def wait() -> None:
        ChildBridge(line, timeout_s=30, interrupted=seen.is_set).ask(SUM, bytes(8))

    work = asyncio.create_task(asyncio.to_thread(_swallowing, wait))
    await bridge.recv()
    seen.set()
    assert await asyncio.wait_for(work, 60) == "KeyboardInterrupt"
    line.close()
    bridge.close()


def _swallowing(work: Callable[[], None]) -> str:
    """An interrupt must not leave the thread as one."""
    try:
        work()
    except KeyboardInterrupt as error:
        return type(error).__name__
    return ""


def test_relayed_parts_are_all_there_or_refused() -> None:
    parts = (b"one", b"", b"three" * 100)
    reply = relay_reply(parts)
    assert relay_parts(reply, 3) == parts
    for wrong, sites in ((reply, 2), (reply, 4), (reply[:-1], 3), (reply + b"\0", 3), (reply[:2], 1), (b"", 1)):
        with pytest.raises(LiveFault):
            relay_parts(wrong, sites)
