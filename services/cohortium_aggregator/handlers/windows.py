"""Messages of sites about one sum: headers, questions, echoes, shares, votes."""

import asyncio
from typing import Protocol, TypeVar

from cohortium_aggregator.context import Context
from cohortium_aggregator.domain.states import (
    Aborting,
    Collecting,
    EchoArrived,
    Echoing,
    Ended,
    Opening,
    SharesArrived,
    Unmasking,
    UploadSeen,
    VoteArrived,
)
from cohortium_aggregator.handlers.course import move, send_receipt, show_end, survivors_of, try_complete
from cohortium_aggregator.handlers.senders import check_site
from cohortium_aggregator.store import windows
from cohortium_aggregator.store.windows import SumWindow
from cohortium_kit.consumer import Received
from cohortium_kit.db import Tx
from cohortium_kit.errors import Poison
from cohortium_messages.registry import Message
from cohortium_messages.secure_sum import AbortVote, Echo, ReceiptAsked, Unmask, UploadHeader
from cohortium_protocol.opening import check_abort_vote, check_echo, check_header, check_unmask


class OfWindow(Protocol):
    """What every message of a site about a window says."""

    @property
    def window_id(self) -> bytes: ...
    @property
    def step(self) -> int: ...
    @property
    def index(self) -> int: ...


M = TypeVar("M", bound=Message)


class WindowHandlers:
    """Checks what sites say against the window's roster, then lets the domain decide."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    async def _window(self, tx: Tx, received: Received[M], message: OfWindow) -> SumWindow:
        """The window, if the sender is the roster member that the message names; `Poison` otherwise."""
        site = check_site(received)
        window = await windows.find_window(tx, self._ctx.sessions, message.window_id, message.step)
        if window is None:
            raise Poison("unknown_window", f"{message.window_id.hex()} step {message.step}")
        if window.session.view.index_of(site) != message.index:
            raise Poison("wrong_index", f"{site} is not index {message.index}")
        return window

    async def on_header(self, tx: Tx, received: Received[UploadHeader]) -> None:
        """Keep the header, once. One that differs from the one before would break the rule of one vector per mask."""
        header = received.message
        window = await self._window(tx, received, header)
        session = window.session
        known = await windows.find_upload(tx, session, header.index)
        if not isinstance(window.state, Collecting):
            await show_end(self._ctx, tx, window, header.index)
            return
        header_hash = await asyncio.to_thread(check_header, session.view, header, session.step, session.plan.vec_len)
        if known is not None:
            if known.header_hash != header_hash:
                raise Poison("header_changed", f"index {header.index}")
            await send_receipt(self._ctx, tx, session, header.index)
            return
        await windows.insert_header(tx, session, header, header_hash)
        await try_complete(self._ctx, tx, window, header.index)

    async def on_receipt_asked(self, tx: Tx, received: Received[ReceiptAsked]) -> None:
        window = await self._window(tx, received, received.message)
        index = received.message.index
        if isinstance(window.state, Collecting):
            await send_receipt(self._ctx, tx, window.session, index)
            return
        if not isinstance(window.state, Ended):
            await send_receipt(self._ctx, tx, window.session, index)
        await show_end(self._ctx, tx, window, index)

    async def on_echo(self, tx: Tx, received: Received[Echo]) -> None:
        echo = received.message
        window = await self._window(tx, received, echo)
        if isinstance(window.state, Echoing):
            check_echo(window.session.view, window.state.survivors, echo)
            await move(self._ctx, tx, window, EchoArrived(echo.index, echo.survivors_hash, echo.sig))

    async def on_unmask(self, tx: Tx, received: Received[Unmask]) -> None:
        """Keep a site's sealed shares, once, if they open and are what rule R5 asks for."""
        message = received.message
        window = await self._window(tx, received, message)
        if not isinstance(window.state, Unmasking | Opening):
            return
        survivors = survivors_of(window)
        await asyncio.to_thread(check_unmask, window.session.view, survivors, message, self._ctx.seal_key)
        if await windows.insert_answer(tx, window.session, message):
            await move(self._ctx, tx, window, SharesArrived(message.index, message.survivors_hash))

    async def on_abort_vote(self, tx: Tx, received: Received[AbortVote]) -> None:
        vote = received.message
        window = await self._window(tx, received, vote)
        match window.state:
            case Aborting():
                check_abort_vote(window.session.view, window.session.step, vote)
                await move(self._ctx, tx, window, VoteArrived(vote.index, vote.sig))
            case Ended():
                await move(self._ctx, tx, window, UploadSeen(vote.index))
            case _:
                return
