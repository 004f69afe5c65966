"""The audit service's HTTP side: logs, checkpoints, proofs, entries, and the bundle that is checked offline."""

import asyncio
import tempfile
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Query, Response
from fastapi.responses import FileResponse, PlainTextResponse
from pydantic import Field
from starlette.background import BackgroundTask

from cohortium_audit.bundle import PROVEN, BundleParts, write_bundle
from cohortium_audit.domain import PLATFORM, LogName, LogState
from cohortium_audit.handlers import Handlers, consistency_at, inclusion_at, root_at
from cohortium_audit.store import logs, members
from cohortium_kit.bus import Bus
from cohortium_kit.db import Database, Tx
from cohortium_kit.http import HttpProblem, add_ping, create_app, operator_only
from cohortium_messages.governance import TrustDocument
from cohortium_messages.ids import STUDY_PATTERN, Bytes32, StudyId, StudyIdField, Wire
from cohortium_messages.topology import inbox
from cohortium_protocol.notes import VerifierKey
from cohortium_protocol.translog import leaf_hash

MOST_ENTRIES = 1000
LogField = Annotated[str, Field(pattern=f"{STUDY_PATTERN}|^{PLATFORM}$")]
LARGEST = (1 << 53) - 1
"""More than any log will hold, and a number that every JSON reader and database can hold."""
Place = Annotated[int, Query(ge=0, le=LARGEST)]
Size = Annotated[int, Query(ge=1, le=LARGEST)]


class LogView(Wire):
    """One log. `verifier_key` is what its checkpoints are checked with (C2SP vkey)."""

    log: str
    origin: str
    size: int
    checkpointed: int
    verifier_key: str


class Inclusion(Wire):
    """Proof that an entry is in a log of `size` leaves, whose root is `root`."""

    log: str
    index: int
    size: int
    leaf_hash: Bytes32
    hashes: tuple[Bytes32, ...]
    root: Bytes32


class Consistency(Wire):
    """Proof that the log of `from_size` leaves is a beginning of the log of `to_size` leaves."""

    log: str
    from_size: int
    to_size: int
    from_root: Bytes32
    to_root: Bytes32
    hashes: tuple[Bytes32, ...]


class EventProof(Wire):
    """All that proves one event: the entry as it was hashed, its proof, and the checkpoint that it leads to."""

    entry: str
    proof: Inclusion
    checkpoint: str


def create_api(
    *, handlers: Handlers, db: Database, bus: Bus, trust: TrustDocument, operator_token: str | None
) -> FastAPI:
    """The application. Every route is the operator's; none changes an entry."""
    app = create_app("Cohortium audit", "1", operator_token)
    add_ping(app, "database", db.ping)
    add_ping(app, "broker", lambda: bus.check_queue(inbox("audit")))
    app.include_router(_log_routes(handlers, db, trust))
    app.include_router(_proof_routes(db))
    app.include_router(_event_routes(handlers, db))
    app.include_router(_bundle_routes(handlers, db, trust))
    return app


def _log_routes(handlers: Handlers, db: Database, trust: TrustDocument) -> APIRouter:
    router = APIRouter(dependencies=[Depends(operator_only)])

    @router.get("/logs")
    async def list_logs() -> list[LogView]:
        """Every log, with the key its checkpoints are checked with."""
        async with db.reading("list_logs") as tx:
            found = await logs.states(tx)
        return [
            LogView(
                log=state.log,
                origin=handlers.origin(state.log),
                size=state.size,
                checkpointed=state.checkpointed,
                verifier_key=str(VerifierKey(handlers.origin(state.log), trust.services.audit)),
            )
            for state in found
        ]

    @router.get("/logs/{log}/checkpoint")
    async def show_checkpoint(log: LogField) -> Response:
        """A signed checkpoint of the log as it stands now."""
        signed = await db.run("checkpoint", lambda tx: handlers.checkpoint(tx, LogName(log)))
        if signed is None:
            raise _log_unknown(log)
        return PlainTextResponse(signed.note)

    @router.get("/logs/{log}/entries")
    async def show_entries(log: LogField, start: Place = 0, end: Place | None = None) -> Response:
        """Entries from `start` on, without `end`, one a line, exactly as they were hashed; at most 1,000 at a time."""
        last = start + MOST_ENTRIES if end is None else min(end, start + MOST_ENTRIES)
        async with db.reading("show_entries") as tx:
            await _existing(tx, log)
            found = await logs.entries(tx, LogName(log), start, last)
        return Response(b"".join(data + b"\n" for data in found), media_type="application/x-ndjson")

    return router


def _proof_routes(db: Database) -> APIRouter:
    router = APIRouter(dependencies=[Depends(operator_only)])

    @router.get("/logs/{log}/proof/inclusion")
    async def show_inclusion(log: LogField, index: Place, size: Size | None = None) -> Inclusion:
        """Proof that the entry at `index` is in the log of `size` entries (left out: all of them)."""
        async with db.reading("show_inclusion") as tx:
            state = await _existing(tx, log)
            return await _inclusion(tx, state, index, state.size if size is None else size)

    @router.get("/logs/{log}/proof/consistency")
    async def show_consistency(
        log: LogField,
        from_size: Annotated[int, Query(alias="from", ge=1, le=LARGEST)],
        to_size: Annotated[int | None, Query(alias="to", ge=1, le=LARGEST)] = None,
    ) -> Consistency:
        """Proof that the log of `from` entries is a beginning of the log of `to` entries (left out: all of them)."""
        async with db.reading("show_consistency") as tx:
            state = await _existing(tx, log)
            new = state.size if to_size is None else to_size
            if not from_size <= new <= state.size:
                raise _outside(f"from={from_size} and to={new} must be in order and at most {state.size}")
            hashes = await consistency_at(tx, state, from_size, new)
            roots = await root_at(tx, state, from_size), await root_at(tx, state, new)
        return Consistency(
            log=log,
            from_size=from_size,
            to_size=new,
            from_root=roots[0],
            to_root=roots[1],
            hashes=tuple(hashes),
        )

    return router


def _event_routes(handlers: Handlers, db: Database) -> APIRouter:
    router = APIRouter(dependencies=[Depends(operator_only)])

    @router.get("/events/{event_id}/proof")
    async def show_event(event_id: str, key_id: str | None = None) -> EventProof:
        """All that proves one event, in a checkpoint of now. `key_id` is needed where two emitters used one id."""
        async with db.reading("show_event") as tx:
            found = [leaf for leaf in await logs.leaves_of_event(tx, event_id) if key_id in (None, leaf.key_id)]
        if not found:
            raise HttpProblem(404, "event_unknown", f"event {event_id} is in no log; it may still be on its way")
        if len(found) > 1:
            signers = ", ".join(leaf.key_id for leaf in found)
            raise HttpProblem(
                409, "event_ambiguous", f"event {event_id} is of several emitters: add key_id= of {signers}"
            )
        signed = await db.run("checkpoint", lambda tx: handlers.checkpoint(tx, found[0].log))
        assert signed is not None  # noqa: S101 - the log holds at least this event
        async with db.reading("show_event") as tx:
            state = await _existing(tx, found[0].log)
            proof = await _inclusion(tx, state, found[0].index, signed.size)
        return EventProof(entry=found[0].data.decode(), proof=proof, checkpoint=signed.note)

    return router


def _bundle_routes(handlers: Handlers, db: Database, trust: TrustDocument) -> APIRouter:
    router = APIRouter(dependencies=[Depends(operator_only)])

    @router.get("/studies/{study_id}/bundle")
    async def bundle(study_id: StudyIdField) -> FileResponse:
        """The study's log with all that is needed to check it offline, as a ZIP archive; signs a checkpoint first."""
        log = LogName(study_id)
        fresh = await db.run("checkpoint", lambda tx: handlers.checkpoint(tx, log))
        if fresh is None:
            raise _log_unknown(study_id)
        async with db.reading("bundle") as tx:
            parts = BundleParts(
                log=log,
                origin=handlers.origin(log),
                trust=trust,
                manifests=await members.manifests(tx, StudyId(study_id)),
                checkpoints=await logs.checkpoints(tx, log, fresh.size),
                proven=await logs.indices_of_types(tx, log, PROVEN, fresh.size),
            )
        with tempfile.NamedTemporaryFile(prefix="cohortium-audit-", suffix=".zip", delete=False) as kept:
            file = Path(kept.name)
        try:
            await write_bundle(db, parts, file)
        except BaseException:
            await asyncio.to_thread(_delete, file)
            raise
        done = BackgroundTask(_delete, file)
        name = f"{study_id}-audit.zip"
        return FileResponse(file, media_type="application/zip", filename=name, background=done)

    return router


def _delete(file: Path) -> None:
    file.unlink(missing_ok=True)


async def _existing(tx: Tx, log: str) -> LogState:
    state = await logs.state(tx, LogName(log))
    if state is None:
        raise _log_unknown(log)
    return state


async def _inclusion(tx: Tx, state: LogState, index: int, size: int) -> Inclusion:
    if not index < size <= state.size:
        raise _outside(f"index={index} and size={size} must be in order and at most {state.size}")
    hashes = await inclusion_at(tx, state, index, size)
    entry = await logs.entries(tx, state.log, index, index + 1)
    return Inclusion(
        log=state.log,
        index=index,
        size=size,
        leaf_hash=leaf_hash(entry[0]),
        hashes=tuple(hashes),
        root=await root_at(tx, state, size),
    )


def _log_unknown(log: str) -> HttpProblem:
    return HttpProblem(404, "log_unknown", f"nothing is recorded for {log} yet; GET /logs lists the logs")


def _outside(text: str) -> HttpProblem:
    return HttpProblem(422, "outside_the_log", text)
