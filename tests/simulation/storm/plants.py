"""Five mistakes that a hasty change could make, planted in the running code. Nothing of them is in the product."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cohortium_aggregator import intake
from cohortium_aggregator.domain import advance as server
from cohortium_aggregator.domain.states import Collecting, Echoing, ShowSurvivors, UploadArrived
from cohortium_aggregator.handlers import course
from cohortium_aggregator.handlers import windows as server_windows
from cohortium_connector import commands, desk, leaving, workshop
from cohortium_connector.domain import policy
from cohortium_connector.domain import window as site
from cohortium_connector.domain.commands import Closed, DiscardProduct, FreeProduct
from cohortium_connector.store import studies
from cohortium_connector.store.studies import Offer
from cohortium_consent import store as consent_store
from cohortium_consent.handlers import Handlers as ConsentHandlers
from cohortium_kit.consumer import Received
from cohortium_kit.db import Tx
from cohortium_messages.consent import Effect
from cohortium_messages.governance import GrantWithdrawn
from cohortium_protocol.keys import WindowKeys
from cohortium_protocol.survivors import survivor_set
from cohortium_sim.storm.loop import current_life

Plant = Callable[[pytest.MonkeyPatch], None]


def double_count(patch: pytest.MonkeyPatch) -> None:
    """A hospital keeps an update whose sum was opened for the next window."""
    advance = site.advance

    def keeps(state: Any, command: Any) -> Any:
        after, effects = advance(state, command)
        if isinstance(command, Closed) and command.outcome == "RELEASED":
            effects = tuple(FreeProduct() if isinstance(effect, DiscardProduct) else effect for effect in effects)
        return after, effects

    patch.setattr(desk, "advance", keeps)


def late_update(patch: pytest.MonkeyPatch) -> None:
    """The aggregator fixes the survivors as soon as there are enough, and lets later uploads in after that."""
    close, echoing = server._close, server._echoing

    def hasty(terms: Any, state: Any, now: Any, faults: Any) -> Any:
        if len(state.uploads) >= terms.least:
            survivors = survivor_set(terms.view, terms.step, dict(state.uploads))
            return Echoing(survivors, ask_at=now), (*faults, ShowSurvivors(terms.everyone))
        return close(terms, state, now, faults)

    def lenient(terms: Any, state: Any, command: Any, now: Any) -> Any:
        if not isinstance(command, UploadArrived):
            return echoing(terms, state, command, now)
        members = dict(zip(state.survivors.members, state.survivors.header_hashes, strict=True))
        survivors = survivor_set(terms.view, terms.step, {**members, command.index: command.header_hash})
        return replace(state, survivors=survivors, echoes={}), (ShowSurvivors(terms.everyone),)

    patch.setattr(server, "_close", hasty)
    patch.setattr(server, "_echoing", lenient)
    for module in (course, intake, server_windows):
        patch.setattr(module, "Collecting", (Collecting, Echoing))


def lost_reply(patch: pytest.MonkeyPatch) -> None:
    """The aggregator's word to the scheduler that a sum is over never gets into the outbox."""
    send = Tx.send

    async def forgets(self: Tx, outgoing: Any, ordering_key: str = "") -> None:
        if outgoing.type != "cohortium.session.closed.v1":
            await send(self, outgoing, ordering_key)

    patch.setattr(Tx, "send", forgets)


def withdrawn_site(patch: pytest.MonkeyPatch) -> None:
    """A hospital's withdrawal is written down, there and at the platform, and nothing follows from it."""
    usable = policy.usable_grant

    async def notes(tx: Tx, desk: desk.Desk, offer: Offer, *, by: str, effect: Effect = "stop_future") -> Any:
        ended = await studies.withdraw_grants(tx, offer.study_digest, by=by)
        if ended:
            await leaving._tell(tx, desk, offer, effect)
        return ended, []

    def overlooks(grants: Any, round_: int, now: Any) -> Any:
        return usable([replace(held, withdrawn=False) for held in grants], round_, now)

    async def files(_: Any, tx: Tx, received: Received[GrantWithdrawn]) -> None:
        await consent_store.save_withdrawal(tx, received.message, received.message.at)

    patch.setattr(commands, "leave_study", notes)
    patch.setattr(policy, "usable_grant", overlooks)
    patch.setattr(ConsentHandlers, "on_withdrawal", files)


def reused_mask(patch: pytest.MonkeyPatch) -> None:
    """A connector makes its mask key once, when it starts, to save time."""
    made: dict[Any, WindowKeys] = {}

    class Thrifty:
        @staticmethod
        def generate() -> WindowKeys:
            first = made.setdefault(current_life(), WindowKeys.generate())
            return WindowKeys(first.mask, WindowKeys.generate().seal)

    patch.setattr(workshop, "WindowKeys", Thrifty)
