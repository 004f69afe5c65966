"""Windows with their state, and what came in for them: headers, chunks, answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final

import sqlalchemy as sa
from pydantic import ConfigDict, TypeAdapter

from cohortium_aggregator.domain.advance import due_at, open_session, open_window, terms_of
from cohortium_aggregator.domain.states import (
    CODES,
    Aborting,
    Collecting,
    Echoing,
    Ended,
    Opening,
    State,
    Terms,
    Unmasking,
)
from cohortium_aggregator.domain.strict_states import Assembling, Stepping
from cohortium_aggregator.store.tables import answer, sum_window, upload, upload_chunk
from cohortium_kit.db import Tx
from cohortium_messages.ids import RunId, SiteId, StudyId
from cohortium_messages.runs import SessionOpened
from cohortium_messages.secure_sum import Unmask, UploadHeader, WindowParams
from cohortium_protocol.plan import ChunkPlan
from cohortium_protocol.window import RosterView, view_roster

HEX: Final = ConfigDict(ser_json_bytes="hex", val_json_bytes="hex")
ADAPTERS: Final[Mapping[str, TypeAdapter[Any]]] = {
    CODES[kind]: TypeAdapter(tuple[kind], config=HEX)  # type: ignore[valid-type]
    for kind in (Collecting, Echoing, Unmasking, Opening, Aborting, Stepping, Assembling, Ended)
}
KNOWN_SESSIONS = 64


def _this(table: sa.Table, *, index: bool = False) -> list[sa.ColumnElement[bool]]:
    """One window's rows; `index`: those of one of its sites. The parameters are `_at`'s."""
    found = [table.c.window_id == sa.bindparam("of_window"), table.c.step == sa.bindparam("of_step")]
    return [*found, table.c.site_index == sa.bindparam("of_index")] if index else found


def _at(window_id: bytes, step: int, index: int | None = None) -> dict[str, Any]:
    place = {"of_window": window_id, "of_step": step}
    return place if index is None else {**place, "of_index": index}


def _set(table: sa.Table, names: Sequence[str], *, index: bool = False) -> sa.Update:
    where = _this(table, index=index)
    return sa.update(table).where(*where).values({name: sa.bindparam(name) for name in names})


def _total(table: sa.Table, size: sa.ColumnElement[Any]) -> sa.Select[Any]:
    return sa.select(sa.func.coalesce(sa.func.sum(size), 0)).where(*_this(table))


# Statements of every message, built once.
_STATE_COLUMNS = ("state", "state_json", "due_at", "bytes_down", "updated_at", "updated_by")
_SAVE_STATE = _set(sum_window, _STATE_COLUMNS)
_FIND_SESSION = sa.select(sum_window.c.session_json, sum_window.c.expires_at).where(*_this(sum_window))
_FIND_STATE = sa.select(sum_window.c.state, sum_window.c.state_json, sum_window.c.bytes_down).where(*_this(sum_window))
_DUE = sa.select(sum_window.c.window_id).where(sum_window.c.due_at <= sa.bindparam("now"))
_FIND_UPLOAD = sa.select(upload.c.header_hash, upload.c.complete).where(*_this(upload, index=True))
_FIND_HEADER = sa.select(upload.c.header_json).where(*_this(upload, index=True))
_MARK_UPLOAD = _set(upload, ("complete", "updated_at", "updated_by"), index=True)
_EDGES = sa.select(upload.c.site_index, upload.c.edge_commits).where(*_this(upload), upload.c.complete.is_(sa.true()))
_CHUNKS = sa.select(upload_chunk.c.chunk, upload_chunk.c.sha256).where(*_this(upload_chunk, index=True))
_COUNT_CHUNKS = sa.select(sa.func.count()).select_from(upload_chunk).where(*_this(upload_chunk, index=True))
_INSERT_CHUNK, _INSERT_UPLOAD, _INSERT_ANSWER = sa.insert(upload_chunk), sa.insert(upload), sa.insert(answer)
_BYTES_UP = (
    _total(upload_chunk, upload_chunk.c.frame_bytes),
    _total(upload, sa.func.length(upload.c.header_json)),
    _total(answer, sa.func.length(answer.c.unmask_json)),
)
_ANSWERED = sa.select(answer.c.site_index).where(*_this(answer, index=True))
_ANSWERS = sa.select(answer.c.site_index, answer.c.unmask_json).where(*_this(answer))
_WIPE = [sa.delete(table).where(*_this(table)) for table in (upload, upload_chunk, answer)]


@dataclass(frozen=True)
class Session:
    """What never changes about a window: its checked parameters and roster."""

    params: WindowParams
    view: RosterView
    manifest_version: int
    expires_at: datetime
    step: int = 0
    permitted_until: Mapping[int, datetime] = field(default_factory=dict)
    """By index, where consent said so: from then on the site may be in no sum that is not fixed yet."""

    def expired(self, now: datetime) -> tuple[int, ...]:
        """The sites whose permission has ended."""
        return tuple(sorted(index for index, end in self.permitted_until.items() if now >= end))

    @cached_property
    def plan(self) -> ChunkPlan:
        return ChunkPlan.of(self.params.vector)

    @cached_property
    def sites(self) -> tuple[SiteId, ...]:
        """By index − 1."""
        return tuple(entry.site_id for entry in self.view.entries)

    @cached_property
    def terms(self) -> Terms:
        return terms_of(self.view, self.params, self.expires_at, self.step)

    @property
    def window_id(self) -> bytes:
        window_id: bytes = self.params.window_id
        return window_id

    @property
    def run_id(self) -> RunId:
        return self.params.run_id

    @property
    def study_id(self) -> StudyId:
        return self.params.study_id

    def site(self, index: int) -> SiteId:
        return self.sites[index - 1]


@dataclass(frozen=True, slots=True)
class SumWindow:
    """A window and where it stands. `bytes_down`: control messages to its sites so far."""

    session: Session
    state: State
    bytes_down: int = 0


@dataclass(slots=True)
class Sessions:
    """Rosters that were checked already, so that one window's roster is not checked again for each message."""

    known: dict[bytes, Session] = field(default_factory=dict)

    def remember(self, session: Session) -> Session:
        while len(self.known) >= KNOWN_SESSIONS:
            del self.known[next(iter(self.known))]
        self.known[session.window_id] = session
        return session


def session_of(opened: SessionOpened, now: datetime) -> tuple[Session, Collecting | Stepping]:
    """A new window from the scheduler's message, every signature in it checked. Raises `RemoteFault`."""
    params = opened.open.params
    view = view_roster(opened.roster, params, opened.manifest)
    terms: Terms
    state: Collecting | Stepping
    if params.strict is None:
        terms, state = open_window(view, params, now)
    else:
        terms, state = open_session(view, params, params.strict, now)
    ends = _permitted_until(opened, view)
    return Session(params, view, opened.manifest.version, terms.expires_at, permitted_until=ends), state


def _permitted_until(opened: SessionOpened, view: RosterView) -> dict[int, datetime]:
    ends = {permit.site_id: permit.until for permit in opened.permits if permit.until is not None}
    return {
        index: ends[entry.site_id]
        for index, entry in zip(view.indices, view.entries, strict=True)
        if entry.site_id in ends
    }


async def insert_window(tx: Tx, opened: SessionOpened, window: SumWindow) -> None:
    session = window.session
    row = {
        "window_id": session.window_id,
        "step": session.step,
        "run_id": session.run_id,
        "study_id": session.study_id,
        "purpose": session.params.purpose,
        "session_json": opened.model_dump_json(),
        "expires_at": session.expires_at.timestamp(),
        **_state_row(tx, window),
    }
    await tx.execute(sa.insert(sum_window).values(row))


def _state_row(tx: Tx, window: SumWindow) -> dict[str, Any]:
    code = CODES[type(window.state)]
    due = due_at(window.session.terms, window.state)
    return {
        "state": code,
        "state_json": ADAPTERS[code].dump_json((window.state,)).decode(),
        "due_at": None if due is None else due.timestamp(),
        "bytes_down": window.bytes_down,
        "updated_at": tx.now,
        "updated_by": tx.name,
    }


async def save_state(tx: Tx, window: SumWindow) -> None:
    """The window's new state, and its traffic."""
    place = _at(window.session.window_id, window.session.step)
    await tx.execute(_SAVE_STATE, {**place, **_state_row(tx, window)})


async def find_session(tx: Tx, sessions: Sessions, window_id: bytes) -> Session | None:
    """What never changes about a window; most often without a look at the database."""
    if (known := sessions.known.get(window_id)) is not None:
        return known
    row = await tx.row(_FIND_SESSION, _at(window_id, 0))
    if row is None:
        return None
    opened = SessionOpened.model_validate_json(row.session_json)
    expires_at = datetime.fromtimestamp(row.expires_at, UTC)
    view = view_roster(opened.roster, opened.open.params, opened.manifest)
    ends = _permitted_until(opened, view)
    return sessions.remember(
        Session(opened.open.params, view, opened.manifest.version, expires_at, permitted_until=ends)
    )


async def find_window(tx: Tx, sessions: Sessions, window_id: bytes, step: int = 0) -> SumWindow | None:
    """The window as it stands, or None."""
    if step != 0 or (session := await find_session(tx, sessions, window_id)) is None:
        return None
    row = await tx.row(_FIND_STATE, _at(window_id, step))
    if row is None:
        return None
    (state,) = ADAPTERS[row.state].validate_json(row.state_json)
    return SumWindow(session, state, row.bytes_down)


async def state_of(tx: Tx, window_id: bytes) -> type[State] | None:
    """What kind of state a window is in."""
    code = await tx.scalar(_FIND_STATE, _at(window_id, 0))
    return next((kind for kind, name in CODES.items() if name == code), None)


async def windows_due(tx: Tx, now: datetime) -> list[bytes]:
    """Windows of which some moment has come."""
    return [bytes(row.window_id) for row in await tx.rows(_DUE, {"now": now.timestamp()})]


async def windows_in(tx: Tx, *kinds: type[State]) -> list[bytes]:
    """All windows in one of these states."""
    query = sa.select(sum_window.c.window_id).where(sum_window.c.state.in_([CODES[kind] for kind in kinds]))
    return [bytes(row.window_id) for row in await tx.rows(query.order_by(sum_window.c.updated_at))]


async def live_windows(
    tx: Tx, *, study_id: StudyId | None = None, run_id: RunId | None = None, among: Sequence[bytes] | None = None
) -> list[bytes]:
    """Windows that have not ended, of a study, of a run, or among these."""
    query = sa.select(sum_window.c.window_id).where(sum_window.c.state != CODES[Ended])
    if study_id is not None:
        query = query.where(sum_window.c.study_id == study_id)
    if run_id is not None:
        query = query.where(sum_window.c.run_id == run_id)
    if among is not None:
        query = query.where(sum_window.c.window_id.in_(among))
    return [bytes(row.window_id) for row in await tx.rows(query)]


async def wipe_inputs(tx: Tx, window_id: bytes, step: int) -> None:
    """Forget headers, chunks and answers of a window that has ended."""
    for wipe in _WIPE:
        await tx.execute(wipe, _at(window_id, step))


# Uploads


@dataclass(frozen=True, slots=True)
class Upload:
    """What is known of one site's upload."""

    header_hash: bytes
    complete: bool


async def find_upload(tx: Tx, session: Session, index: int) -> Upload | None:
    row = await tx.row(_FIND_UPLOAD, _at(session.window_id, session.step, index))
    return None if row is None else Upload(bytes(row.header_hash), bool(row.complete))


async def insert_header(tx: Tx, session: Session, header: UploadHeader, header_hash: bytes) -> None:
    row = {
        "window_id": session.window_id,
        "step": session.step,
        "site_index": header.index,
        "header_json": header.model_dump_json(),
        "header_hash": header_hash,
        "edge_commits": b"".join(header.edge_commits),
        "complete": False,
        "updated_at": tx.now,
        "updated_by": tx.name,
    }
    await tx.execute(_INSERT_UPLOAD, row)


async def find_header(tx: Tx, session: Session, index: int) -> UploadHeader | None:
    text = await tx.scalar(_FIND_HEADER, _at(session.window_id, session.step, index))
    return None if text is None else UploadHeader.model_validate_json(text)


async def headers_of(tx: Tx, session: Session, indices: Sequence[int]) -> dict[int, UploadHeader]:
    """Headers with all their boxes."""
    where = [*_this(upload), upload.c.site_index.in_(list(indices))]
    headers = sa.select(upload.c.site_index, upload.c.header_json).where(*where)
    rows = await tx.rows(headers, _at(session.window_id, session.step))
    return {row.site_index: UploadHeader.model_validate_json(row.header_json) for row in rows}


async def mark_complete(tx: Tx, session: Session, index: int) -> None:
    changed = {"complete": True, "updated_at": tx.now, "updated_by": tx.name}
    await tx.execute(_MARK_UPLOAD, {**_at(session.window_id, session.step, index), **changed})


async def complete_edges(tx: Tx, session: Session) -> dict[int, bytes]:
    """The edge commitments, one behind the other, of every complete upload."""
    rows = await tx.rows(_EDGES, _at(session.window_id, session.step))
    return {row.site_index: bytes(row.edge_commits) for row in rows}


async def chunk_digests(tx: Tx, session: Session, index: int) -> dict[int, bytes]:
    """By chunk, the SHA-256 of what is stored."""
    rows = await tx.rows(_CHUNKS, _at(session.window_id, session.step, index))
    return {row.chunk: bytes(row.sha256) for row in rows}


async def chunk_count(tx: Tx, session: Session, index: int) -> int:
    """How many chunks of one upload are stored."""
    return int(await tx.scalar(_COUNT_CHUNKS, _at(session.window_id, session.step, index)) or 0)


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A chunk that is on disk, flushed. `frame_bytes`: as it travelled."""

    chunk: int
    sha256: bytes
    frame_bytes: int


async def insert_chunks(tx: Tx, session: Session, index: int, chunks: Sequence[StoredChunk]) -> None:
    """Record chunks; none of them is recorded yet."""
    rows = [
        {
            "window_id": session.window_id,
            "step": session.step,
            "site_index": index,
            "chunk": chunk.chunk,
            "sha256": chunk.sha256,
            "frame_bytes": chunk.frame_bytes,
        }
        for chunk in chunks
    ]
    if rows:
        await tx.execute(_INSERT_CHUNK, rows)


async def bytes_up(tx: Tx, session: Session) -> int:
    """What sites sent for this window and was kept: frames, headers, answers. Repetitions are not counted."""
    place = _at(session.window_id, session.step)
    return sum([int(await tx.scalar(total, place) or 0) for total in _BYTES_UP])


# Answers


async def insert_answer(tx: Tx, session: Session, message: Unmask) -> bool:
    """Keep one site's sealed shares; False if there are some already."""
    if await tx.row(_ANSWERED, _at(session.window_id, session.step, message.index)) is not None:
        return False
    row = {
        "window_id": session.window_id,
        "step": session.step,
        "site_index": message.index,
        "unmask_json": message.model_dump_json(),
    }
    await tx.execute(_INSERT_ANSWER, row)
    return True


async def answers_of(tx: Tx, session: Session) -> dict[int, Unmask]:
    rows = await tx.rows(_ANSWERS, _at(session.window_id, session.step))
    return {row.site_index: Unmask.model_validate_json(row.unmask_json) for row in rows}


@dataclass(frozen=True, slots=True)
class LastSum:
    """The thresholds and the ring of a run's last released update."""

    n: int
    t: int
    c: int
    k_min: int
    ring_bits: int
    bytes_per_parameter: float

    def facts(self) -> dict[str, float]:
        return {
            "n": self.n,
            "t": self.t,
            "c": self.c,
            "k_min": self.k_min,
            "ring_bits": self.ring_bits,
            "bytes_per_parameter": self.bytes_per_parameter,
        }


async def last_sum(tx: Tx, sessions: Sessions, run_id: RunId) -> LastSum | None:
    """How the run's newest update was summed; None if it had none."""
    query = sa.select(sum_window.c.window_id).where(
        sum_window.c.run_id == run_id, sum_window.c.purpose == "update", sum_window.c.state == CODES[Ended]
    )
    window_id = await tx.scalar(query.order_by(sum_window.c.updated_at.desc()).limit(1))
    session = None if window_id is None else await find_session(tx, sessions, bytes(window_id))
    if session is None:
        return None
    view, vector = session.view, session.params.vector
    per_parameter = session.plan.vec_len / vector.dimension
    return LastSum(view.n, view.t, view.collusion, view.k_min, vector.ring_bits, per_parameter)
