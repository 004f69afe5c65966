"""Windows with their state, and what came in for them: headers, chunks, answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final

import sqlalchemy as sa
from pydantic import ConfigDict, TypeAdapter

from cohortium_aggregator.domain.advance import due_at, open_session, open_window
from cohortium_aggregator.domain.states import (
    CODES,
    Aborting,
    Collecting,
    Echoing,
    Ended,
    Opening,
    State,
    Terms,
    Timers,
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


@dataclass(frozen=True)
class Session:
    """What never changes about a window: its checked parameters and roster."""

    params: WindowParams
    view: RosterView
    manifest_version: int
    expires_at: datetime
    step: int = 0

    @cached_property
    def plan(self) -> ChunkPlan:
        return ChunkPlan.of(self.params.vector)

    @cached_property
    def sites(self) -> tuple[SiteId, ...]:
        """By index − 1."""
        return tuple(entry.site_id for entry in self.view.entries)

    @cached_property
    def terms(self) -> Terms:
        deadlines = self.params.deadlines
        timers = Timers(deadlines.upload_s, deadlines.echo_s, deadlines.unmask_s)
        return Terms(self.view, self.step, timers, self.expires_at)

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
        terms, state = open_window(view, params.deadlines, now)
    else:
        terms, state = open_session(view, params.deadlines, params.strict, now)
    return Session(params, view, opened.manifest.version, terms.expires_at), state


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
    where = _this(sum_window, window.session.window_id, window.session.step)
    await tx.execute(sa.update(sum_window).where(*where).values(_state_row(tx, window)))


def _this(table: sa.Table, window_id: bytes, step: int, index: int | None = None) -> list[sa.ColumnElement[bool]]:
    found = [table.c.window_id == window_id, table.c.step == step]
    return found if index is None else [*found, table.c.site_index == index]


async def find_session(tx: Tx, sessions: Sessions, window_id: bytes) -> Session | None:
    """What never changes about a window; most often without a look at the database."""
    if (known := sessions.known.get(window_id)) is not None:
        return known
    query = sa.select(sum_window.c.session_json, sum_window.c.expires_at)
    row = await tx.row(query.where(*_this(sum_window, window_id, 0)))
    if row is None:
        return None
    opened = SessionOpened.model_validate_json(row.session_json)
    expires_at = datetime.fromtimestamp(row.expires_at, UTC)
    view = view_roster(opened.roster, opened.open.params, opened.manifest)
    return sessions.remember(Session(opened.open.params, view, opened.manifest.version, expires_at))


async def find_window(tx: Tx, sessions: Sessions, window_id: bytes, step: int = 0) -> SumWindow | None:
    """The window as it stands, or None."""
    if step != 0 or (session := await find_session(tx, sessions, window_id)) is None:
        return None
    columns = (sum_window.c.state, sum_window.c.state_json, sum_window.c.bytes_down)
    row = await tx.row(sa.select(*columns).where(*_this(sum_window, window_id, step)))
    if row is None:
        return None
    (state,) = ADAPTERS[row.state].validate_json(row.state_json)
    return SumWindow(session, state, row.bytes_down)


async def state_of(tx: Tx, window_id: bytes) -> type[State] | None:
    """What kind of state a window is in."""
    code = await tx.scalar(sa.select(sum_window.c.state).where(*_this(sum_window, window_id, 0)))
    return next((kind for kind, name in CODES.items() if name == code), None)


async def windows_due(tx: Tx, now: datetime) -> list[bytes]:
    """Windows of which some moment has come."""
    query = sa.select(sum_window.c.window_id).where(sum_window.c.due_at <= now.timestamp())
    return [bytes(row.window_id) for row in await tx.rows(query)]


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
    for table in (upload, upload_chunk, answer):
        await tx.execute(sa.delete(table).where(*_this(table, window_id, step)))


# Uploads


@dataclass(frozen=True, slots=True)
class Upload:
    """What is known of one site's upload."""

    header_hash: bytes
    complete: bool


async def find_upload(tx: Tx, session: Session, index: int) -> Upload | None:
    query = sa.select(upload.c.header_hash, upload.c.complete)
    row = await tx.row(query.where(*_this(upload, session.window_id, session.step, index)))
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
    await tx.execute(sa.insert(upload).values(row))


async def find_header(tx: Tx, session: Session, index: int) -> UploadHeader | None:
    query = sa.select(upload.c.header_json).where(*_this(upload, session.window_id, session.step, index))
    text = await tx.scalar(query)
    return None if text is None else UploadHeader.model_validate_json(text)


async def headers_of(tx: Tx, session: Session, indices: Sequence[int]) -> dict[int, UploadHeader]:
    """Headers with all their boxes."""
    where = [*_this(upload, session.window_id, session.step), upload.c.site_index.in_(list(indices))]
    rows = await tx.rows(sa.select(upload.c.site_index, upload.c.header_json).where(*where))
    return {row.site_index: UploadHeader.model_validate_json(row.header_json) for row in rows}


async def mark_complete(tx: Tx, session: Session, index: int) -> None:
    where = _this(upload, session.window_id, session.step, index)
    changed = {"complete": True, "updated_at": tx.now, "updated_by": tx.name}
    await tx.execute(sa.update(upload).where(*where).values(changed))


async def complete_edges(tx: Tx, session: Session) -> dict[int, bytes]:
    """The edge commitments, one behind the other, of every complete upload."""
    where = [*_this(upload, session.window_id, session.step), upload.c.complete.is_(sa.true())]
    rows = await tx.rows(sa.select(upload.c.site_index, upload.c.edge_commits).where(*where))
    return {row.site_index: bytes(row.edge_commits) for row in rows}


async def chunk_digests(tx: Tx, session: Session, index: int) -> dict[int, bytes]:
    """By chunk, the SHA-256 of what is stored."""
    query = sa.select(upload_chunk.c.chunk, upload_chunk.c.sha256)
    rows = await tx.rows(query.where(*_this(upload_chunk, session.window_id, session.step, index)))
    return {row.chunk: bytes(row.sha256) for row in rows}


async def chunk_count(tx: Tx, session: Session, index: int) -> int:
    """How many chunks of one upload are stored."""
    query = sa.select(sa.func.count()).select_from(upload_chunk)
    return int(await tx.scalar(query.where(*_this(upload_chunk, session.window_id, session.step, index))) or 0)


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
        await tx.execute(sa.insert(upload_chunk), rows)


async def bytes_up(tx: Tx, session: Session) -> int:
    """What sites sent for this window and was kept: frames, headers, answers. Repetitions are not counted."""
    total = 0
    for table, size in (
        (upload_chunk, upload_chunk.c.frame_bytes),
        (upload, sa.func.length(upload.c.header_json)),
        (answer, sa.func.length(answer.c.unmask_json)),
    ):
        where = _this(table, session.window_id, session.step)
        total += int(await tx.scalar(sa.select(sa.func.coalesce(sa.func.sum(size), 0)).where(*where)) or 0)
    return total


# Answers


async def insert_answer(tx: Tx, session: Session, message: Unmask) -> bool:
    """Keep one site's sealed shares; False if there are some already."""
    where = _this(answer, session.window_id, session.step, message.index)
    if await tx.row(sa.select(answer.c.site_index).where(*where)) is not None:
        return False
    row = {
        "window_id": session.window_id,
        "step": session.step,
        "site_index": message.index,
        "unmask_json": message.model_dump_json(),
    }
    await tx.execute(sa.insert(answer).values(row))
    return True


async def answers_of(tx: Tx, session: Session) -> dict[int, Unmask]:
    rows = await tx.rows(
        sa.select(answer.c.site_index, answer.c.unmask_json).where(*_this(answer, session.window_id, session.step))
    )
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
