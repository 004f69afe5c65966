"""The two messages that a strict session adds to a window: its roster, under rules of its own, and its key."""

from cohortium_connector.desk import BrokenProtocol, Desk
from cohortium_connector.domain.policy import cohort_objection
from cohortium_connector.domain.window_states import FINAL, Idle, InSession
from cohortium_connector.store import cohorts, products, studies, windows
from cohortium_connector.store.windows import Material, WindowRecord
from cohortium_kit.consumer import Received
from cohortium_kit.db import Tx
from cohortium_messages.ids import SiteId
from cohortium_messages.secure_sum import SessionKey
from cohortium_protocol.errors import SessionKeyRefused
from cohortium_protocol.keys import WindowKeys
from cohortium_protocol.strict.frames import SessionSecret, open_session_key
from cohortium_protocol.window import RosterView


class SessionHandlers:
    """What a site hears of a strict session on its control queue. Results come on a queue of their own."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def on_session_key(self, tx: Tx, received: Received[SessionKey]) -> None:
        """The key of the session's results. The first one counts: there is one roster, so there is one key."""
        message, key_id = received.message, received.key_id
        window = await windows.find_window(tx, message.window_id)
        if window is None:
            raise BrokenProtocol("WINDOW_UNKNOWN", key_id, message.window_id)
        if window.state.phase in FINAL:
            return
        material = await windows.material(tx, window.window_id)
        if window.params.kind != "strict" or isinstance(window.state, Idle) or material.keys is None:
            raise BrokenProtocol("SESSION_KEY_UNASKED", key_id, window.window_id, window.study_id)
        if material.session_key is not None:
            return
        if isinstance(window.state, InSession):
            opened_key(window, material, message)
        await windows.keep_documents(tx, window.window_id, message)


def opened_key(window: WindowRecord, material: Material, message: SessionKey) -> SessionSecret:
    """The secret of a session's results; raises `SessionKeyRefused` if it was sealed for another site or session."""
    if not isinstance(window.state, InSession) or material.keys is None:
        raise LookupError(f"window {window.window_id.hex()} is in no session")
    place, keys = window.state.place, WindowKeys.from_bytes(material.keys)
    if message.roster_hash != place.roster_hash:
        raise SessionKeyRefused("the key is for another roster")
    return open_session_key(message.sealed, window.window_id, place.roster_hash, place.index, keys.seal)


async def objection_to_cohort(tx: Tx, desk: Desk, window: WindowRecord, view: RosterView) -> str | None:
    """Why this site makes no sums with this roster: the run's first cohort, its own rows since then, rule R9."""
    offer = await studies.find_offer(tx, window.params.study_digest)
    product = await products.product_of_window(tx, window.window_id)
    if offer is None or product is None or product.data_digest is None:
        raise LookupError(f"window {window.window_id.hex()} has no prepared data")
    first = await cohorts.cohort_of_run(tx, window.run_id)
    if first is not None and first.data_digest != product.data_digest:
        return "DATA_CHANGED"
    earlier = await windows.comparable_sets(tx, window.study_id, window.params.purpose, product.base_model_hash)
    return cohort_objection(
        members_of(view), first.members if first is not None else None, earlier, offer.study, desk.policy
    )


async def bind_cohort(tx: Tx, desk: Desk, window: WindowRecord, view: RosterView, *, by: str) -> None:
    """Remember whom this site makes sums with. From here on masks of this roster may be used: a copy of the spool from
    before must never use them again, so it counts as a promise (rule R8)."""
    product = await products.product_of_window(tx, window.window_id)
    if product is None or product.data_digest is None:
        raise LookupError(f"window {window.window_id.hex()} has no prepared data")
    members = members_of(view)
    await cohorts.remember_cohort(tx, window.run_id, members, product.data_digest, by=by)
    await windows.confirm_set(tx, window.params, product.base_model_hash, members)
    await desk.promise(tx, by=by)


def members_of(view: RosterView) -> frozenset[SiteId]:
    return frozenset(entry.site_id for entry in view.entries)
