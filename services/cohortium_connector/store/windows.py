"""Windows, what they need while they are open, and the survivor sets that were confirmed in them."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from pydantic import BaseModel, TypeAdapter

from cohortium_connector.domain.window_states import BOUND_PHASES, OPEN_PHASES, Phase, State
from cohortium_connector.store.parsed import parsed
from cohortium_connector.store.tables import confirmed_set, site_window, window_material
from cohortium_kit.db import Tx
from cohortium_messages.ids import RunId, SiteId, StudyId
from cohortium_messages.secure_sum import (
    AbortVote,
    Echo,
    EchoCert,
    Purpose,
    Ready,
    Receipt,
    Roster,
    SessionKey,
    Survivors,
    Unmask,
    UploadHeader,
    WindowParams,
)

_STATE: TypeAdapter[State] = TypeAdapter(State)


@dataclass(frozen=True, slots=True)
class WindowRecord:
    """One window of this site. `sequence` grows in the order in which windows were opened here."""

    sequence: int
    params: WindowParams
    params_hash: bytes
    state: State
    expires_at: datetime

    @property
    def window_id(self) -> bytes:
        return bytes(self.params.window_id)

    @property
    def study_id(self) -> StudyId:
        return self.params.study_id

    @property
    def run_id(self) -> RunId:
        return self.params.run_id


@dataclass(frozen=True, slots=True)
class Material:
    """Secrets and saved messages of an open window. What was never made is None."""

    keys: bytes | None = None
    own_box: bytes | None = None
    ready: Ready | None = None
    roster: Roster | None = None
    header: UploadHeader | None = None
    survivors: Survivors | None = None
    cert: EchoCert | None = None
    echo: Echo | None = None
    unmask: Unmask | None = None
    vote: AbortVote | None = None
    receipt: Receipt | None = None
    session_key: SessionKey | None = None

    def __repr__(self) -> str:
        return "Material(***)"


_DOCUMENTS: dict[str, type[BaseModel]] = {
    "ready": Ready,
    "roster": Roster,
    "header": UploadHeader,
    "survivors": Survivors,
    "cert": EchoCert,
    "echo": Echo,
    "unmask": Unmask,
    "vote": AbortVote,
    "receipt": Receipt,
    "session_key": SessionKey,
}
_WINDOW = (
    site_window.c.sequence,
    site_window.c.params_json,
    site_window.c.params_hash,
    site_window.c.state_json,
    site_window.c.expires_at,
)


def _among(phases: Iterable[Phase]) -> sa.ColumnElement[bool]:
    # Constants in the text of the statement: a list of parameters would be put into it anew at each use.
    return site_window.c.phase.in_([sa.literal_column(f"'{phase.value}'") for phase in sorted(phases)])


# Statements of every message and every look, built once.
_FIND = sa.select(*_WINDOW).where(site_window.c.window_id == sa.bindparam("window"))
_OPEN = sa.select(*_WINDOW).where(_among(OPEN_PHASES)).order_by(site_window.c.sequence)
_OPEN_OF_STUDY = _OPEN.where(site_window.c.study_id == sa.bindparam("study"))
_BOUND = (
    sa.select(site_window.c.sequence)
    .where(site_window.c.study_id == sa.bindparam("study"), _among(BOUND_PHASES))
    .limit(1)
)
_SAVE = (
    sa.update(site_window)
    .where(site_window.c.window_id == sa.bindparam("window"))
    .values({name: sa.bindparam(name) for name in ("phase", "state_json", "updated_at", "updated_by")})
)
_MATERIAL = sa.select(
    *(window_material.c[name] for name in ("keys", "own_box", *(f"{name}_json" for name in _DOCUMENTS)))
).where(window_material.c.window_id == sa.bindparam("window"))
_RECEIPT = sa.select(window_material.c.receipt_json).where(window_material.c.window_id == sa.bindparam("window"))
_WIPE = sa.delete(window_material).where(window_material.c.window_id == sa.bindparam("window"))
_ADD, _ADD_MATERIAL, _CONFIRM = sa.insert(site_window), sa.insert(window_material), sa.insert(confirmed_set)
_COMPARABLE = (
    sa.select(confirmed_set.c.members_json, confirmed_set.c.base_model_hash)
    .where(confirmed_set.c.study_id == sa.bindparam("study"), confirmed_set.c.purpose == sa.bindparam("purpose"))
    .order_by(confirmed_set.c.confirmed_at.desc())
)


@lru_cache(maxsize=32)
def _keep(*columns: str) -> sa.Update:
    """The statement that writes these columns of a window's material."""
    mine = sa.update(window_material).where(window_material.c.window_id == sa.bindparam("window"))
    return mine.values({name: sa.bindparam(name) for name in columns})


def _record(row: sa.Row[Any]) -> WindowRecord:
    return WindowRecord(
        row.sequence,
        parsed(WindowParams, row.params_json),
        row.params_hash,
        _STATE.validate_json(row.state_json),
        datetime.fromtimestamp(row.expires_at, UTC),
    )


async def add_window(
    tx: Tx, params: WindowParams, params_hash: bytes, state: State, expires_at: datetime, *, by: str
) -> None:
    """Write a window down for the first time. Its id is taken for ever (rule R7)."""
    row = {
        "window_id": params.window_id,
        "study_id": params.study_id,
        "study_digest": params.study_digest,
        "run_id": params.run_id,
        "purpose": params.purpose,
        "phase": state.phase.value,
        "state_json": _STATE.dump_json(state).decode(),
        "params_json": params.model_dump_json(),
        "params_hash": params_hash,
        "expires_at": expires_at.timestamp(),
        "updated_at": tx.now,
        "updated_by": by,
    }
    await tx.execute(_ADD, row)
    await tx.execute(_ADD_MATERIAL, {"window_id": params.window_id})


async def find_window(tx: Tx, window_id: bytes) -> WindowRecord | None:
    row = await tx.row(_FIND, {"window": window_id})
    return None if row is None else _record(row)


async def open_windows(tx: Tx, study_id: StudyId | None = None) -> tuple[WindowRecord, ...]:
    """Windows that have not ended, the oldest first; of one study, or of all."""
    rows = await tx.rows(_OPEN) if study_id is None else await tx.rows(_OPEN_OF_STUDY, {"study": study_id})
    return tuple(_record(row) for row in rows)


async def study_is_bound(tx: Tx, study_id: StudyId) -> bool:
    """Whether a roster is accepted in some window of the study that has not ended: the next window waits."""
    return await tx.scalar(_BOUND, {"study": study_id}) is not None


async def counts(tx: Tx) -> dict[Phase, int]:
    """How many windows of each phase there are."""
    query = sa.select(site_window.c.phase, sa.func.count().label("windows")).group_by(site_window.c.phase)
    return {Phase(row.phase): int(row.windows) for row in await tx.rows(query)}


async def save_state(tx: Tx, window_id: bytes, state: State, *, by: str) -> None:
    values = {"phase": state.phase.value, "state_json": _STATE.dump_json(state).decode()}
    await tx.execute(_SAVE, {"window": window_id, **values, "updated_at": tx.now, "updated_by": by})


async def put_off_expiry(tx: Tx, window_id: bytes, expires_at: datetime, *, by: str) -> None:
    """Something was heard of an open window: it is given up later."""
    changed = sa.update(site_window).where(site_window.c.window_id == window_id)
    await tx.execute(changed.values(expires_at=expires_at.timestamp(), updated_at=tx.now, updated_by=by))


async def material(tx: Tx, window_id: bytes) -> Material:
    """What is kept for an open window; empty after its end."""
    row = await tx.row(_MATERIAL, {"window": window_id})
    if row is None:
        return Material()
    found: dict[str, Any] = {}
    for name, model in _DOCUMENTS.items():
        text = getattr(row, f"{name}_json")
        found[name] = None if text is None else parsed(model, text)
    return Material(keys=row.keys, own_box=row.own_box, **found)


async def receipt(tx: Tx, window_id: bytes) -> Receipt | None:
    """The newest receipt of an open window's upload, alone: the other documents grow with the sites, and this is asked
    after every change at this one."""
    text = await tx.scalar(_RECEIPT, {"window": window_id})
    return None if text is None else parsed(Receipt, text)


async def keep_secrets(tx: Tx, window_id: bytes, *, keys: bytes | None = None, own_box: bytes | None = None) -> None:
    values = {name: value for name, value in (("keys", keys), ("own_box", own_box)) if value is not None}
    await tx.execute(_keep(*values), {"window": window_id, **values})


async def keep_documents(tx: Tx, window_id: bytes, *documents: BaseModel) -> None:
    """Keep these messages with the window, each in the place of its type."""
    places = {model: f"{name}_json" for name, model in _DOCUMENTS.items()}
    values = {places[type(document)]: document.model_dump_json() for document in documents}
    await tx.execute(_keep(*values), {"window": window_id, **values})


async def forget_receipt(tx: Tx, window_id: bytes) -> None:
    """The next receipt is the answer to a new question."""
    await tx.execute(_keep("receipt_json"), {"window": window_id, "receipt_json": None})


async def wipe_material(tx: Tx, window_id: bytes) -> None:
    """Rule R8: keys, boxes and saved answers are deleted when the window has ended."""
    await tx.execute(_WIPE, {"window": window_id})


async def confirm_set(tx: Tx, params: WindowParams, base_model_hash: bytes, members: Iterable[SiteId]) -> None:
    """Remember a survivor set that this site is about to confirm."""
    row = {
        "window_id": params.window_id,
        "study_id": params.study_id,
        "purpose": params.purpose,
        "base_model_hash": base_model_hash,
        "members_json": json.dumps(sorted(members)),
        "confirmed_at": tx.now,
    }
    await tx.execute(_CONFIRM, row)


async def forget_set(tx: Tx, window_id: bytes) -> None:
    """The window can never be opened with this site in it, so its set says nothing."""
    await tx.execute(sa.delete(confirmed_set).where(confirmed_set.c.window_id == window_id))


async def comparable_sets(
    tx: Tx, study_id: StudyId, purpose: Purpose, base_model_hash: bytes
) -> tuple[frozenset[SiteId], ...]:
    """Sets that rule R9 compares with: the study's latest for this purpose, and every one over the same base model."""
    rows = await tx.rows(_COMPARABLE, {"study": study_id, "purpose": purpose})
    texts = [row.members_json for place, row in enumerate(rows) if not place or row.base_model_hash == base_model_hash]
    return tuple(frozenset(SiteId(member) for member in json.loads(text)) for text in texts)
