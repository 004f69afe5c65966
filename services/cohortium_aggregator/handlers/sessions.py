"""Strict sessions: what is checked and sent when one is opened, and what a site says that leaves one."""

import re
from typing import Final

from cohortium_aggregator.context import Context
from cohortium_aggregator.domain.strict_states import Assembling, SiteStopped, Stepping, Stop
from cohortium_aggregator.handlers.course import move, to_member
from cohortium_aggregator.handlers.senders import check_site
from cohortium_aggregator.store import rounds, runs, windows
from cohortium_aggregator.store.windows import Session
from cohortium_kit.consumer import Received
from cohortium_kit.db import Tx
from cohortium_kit.errors import Poison
from cohortium_messages.secure_sum import SessionKey, SessionLeft, StrictSpec, WindowParams
from cohortium_messages.study import LightgbmRecipe, Study
from cohortium_protocol.strict.frames import SessionSecret, seal_session_key
from cohortium_protocol.strict.steps import START
from cohortium_protocol.trees.binning import Binning, needs_refinement

FINAL_CODES: Final = ("DATA_", "MODEL_", "UNKNOWN_COLLECTIVE", "OUT_OF_BOUNDS", "BINS_REFUSED")
"""A site's codes that begin so stay true in another session: what has changed is not what was agreed to, or LightGBM
there asks for what no rule covers, has gradients beyond their bound, or cuts other bins."""

_NO_LETTER: Final = re.compile(r"[^A-Z_]")


def check_kind(params: WindowParams, study: Study) -> None:
    """`Poison` unless exactly the training windows of LightGBM are strict sessions, of the study's own length."""
    is_session = params.purpose == "training"
    if is_session != (params.kind == "strict") or is_session != (params.strict is not None):
        raise Poison("not_a_session", "training takes a strict session, and nothing else does")
    if params.strict is None:
        return
    if not isinstance(study.recipe, LightgbmRecipe) or params.strict.rounds != study.boosting_rounds:
        raise Poison("study_differs", "the session is not of the study's boosting rounds")


async def obstacle(tx: Tx, session: Session) -> str:
    """Why a session of a study with trees cannot go on, as a code; empty if it can, and for other studies."""
    newest = await runs.newest_version(tx, session.run_id)
    if session.params.purpose == "refinement":
        return "" if newest is not None and newest.version == 0 else "SUPERSEDED"
    spec = session.params.strict
    if spec is None:
        return ""
    if newest is None or not isinstance(newest.preprocessing, Binning) or needs_refinement(newest.preprocessing):
        return "BASE_MODEL_UNKNOWN"
    for window_id in await windows.live_windows(tx, run_id=session.run_id):
        other = await windows.state_of(tx, window_id)
        if other in (Stepping, Assembling):
            return "SUPERSEDED"
    return "" if await _stands(tx, session, spec) else "SUPERSEDED"


async def _stands(tx: Tx, session: Session, spec: StrictSpec) -> bool:
    """Whether the rounds that the session is to go on from are those that we have."""
    if spec.from_model is not None:
        version = await runs.find_version(tx, session.run_id, spec.from_model.version)
        return version is not None and version.ref == spec.from_model and version.trees == spec.trees_done
    if spec.trees_done == 0:
        return bool(spec.chain == START)
    return bool(await rounds.chain_after(tx, session.run_id, spec.trees_done) == spec.chain)


async def begin(ctx: Context, tx: Tx, session: Session, spec: StrictSpec) -> int:
    """A fresh key for the session's results, told to every site; rounds after those that it goes on from are forgotten.
    Returns the bytes that go to sites."""
    secret = SessionSecret.generate()
    await rounds.insert_key(tx, session.window_id, secret.secret)
    await rounds.drop_rounds_after(tx, session.run_id, spec.trees_done)
    view, sent = session.view, 0
    for index in view.indices:
        sealed = seal_session_key(secret, view.window_id, view.roster_hash, index, view.entry(index).seal_pk)
        message = SessionKey(window_id=session.window_id, roster_hash=view.roster_hash, sealed=sealed)
        sent += await to_member(ctx, tx, session, index, message, 0)
    return sent


class SessionHandlers:
    """What sites say of a strict session besides its steps."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    async def on_session_left(self, tx: Tx, received: Received[SessionLeft]) -> None:
        """A site cannot go on, so nobody can: the session is over. A session that is over stays as it is."""
        message = received.message
        site = check_site(received)
        window = await windows.find_window(tx, self._ctx.sessions, message.window_id)
        if window is None:
            raise Poison("unknown_window", message.window_id.hex())
        index = window.session.view.index_of(site)
        outcome: Stop = "FAILED" if message.code.startswith(FINAL_CODES) else "PAUSED"
        await move(self._ctx, tx, window, SiteStopped(index, outcome, _NO_LETTER.sub("_", message.code)))
