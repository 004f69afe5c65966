"""The audit service's HTTP side: logs, checkpoints, proofs, entries, and the bundle that is checked offline."""

import asyncio
import tempfile
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, FastAPI, Query, Response
from fastapi.responses import FileResponse, PlainTextResponse
from pydantic import Field
from starlette.background import BackgroundTask

from cohortium_audit.bundle import PROVEN, BundleParts, write_bundle
from cohortium_audit.domain import PLATFORM, LogName, LogState
from cohortium_audit.handlers import Handlers, consistency_at, inclusion_at, root_at
from cohortium_audit.platform_log import platform_proofs
from cohortium_audit.quorums import Quorums
from cohortium_audit.reviews import review_routes
from cohortium_audit.store import logs, members
from cohortium_audit.store.witnesses import Witness, announcements, witnesses
from cohortium_audit.witnessing import Witnessing
from cohortium_kit.bus import Bus
from cohortium_kit.clock import Clock
from cohortium_kit.db import Database, Tx
from cohortium_kit.envelopes import Sender
from cohortium_kit.http import HttpProblem, add_ping, create_app
from cohortium_kit.paging import Limit, page_of
from cohortium_messages.events import BundleExported
from cohortium_messages.governance import TrustDocument
from cohortium_messages.ids import STUDY_PATTERN, Bytes32, SiteIdField, StudyId, StudyIdField, Wire
from cohortium_messages.paging import USUAL_ON_A_PAGE, Page
from cohortium_messages.topology import inbox
from cohortium_platform.people.guard import Caller, CallerIn, Guard, Reach, ReachIn, outside
from cohortium_platform.recording import put_on_record
from cohortium_protocol.logproof import LogProof
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


class WitnessView(Wire):
    """One hospital: the largest checkpoint that it cosigned, and its witness key in hexadecimal (empty before that).
    `announcement`: the log's entry, as it was hashed, in which the hospital named this key under its own signature."""

    site_id: SiteIdField
    size: int
    witness_key: str
    announcement: str = ""


def create_api(
    *,
    handlers: Handlers,
    witnessing: Witnessing,
    db: Database,
    bus: Bus,
    clock: Clock,
    trust: TrustDocument,
    guard: Guard,
    sender: Sender,
) -> FastAPI:
    """The application. No route changes an entry."""
    app = create_app("Cohortium audit", "1", guard)
    add_ping(app, "database", db.ping)
    add_ping(app, "broker", lambda: bus.check_queue(inbox("audit")))
    quorums = Quorums(handlers, witnessing, db, clock)
    app.include_router(_log_routes(handlers, quorums, db, trust))
    app.include_router(_proof_routes(db))
    app.include_router(_event_routes(handlers, quorums, db))
    app.include_router(review_routes(handlers, db, sender))
    app.include_router(_bundle_routes(handlers, quorums, db, trust, sender))
    return app


def _log_routes(handlers: Handlers, quorums: Quorums, db: Database, trust: TrustDocument) -> APIRouter:
    router = APIRouter()

    @router.get("/logs")
    async def list_logs(reach: ReachIn, after: LogField | None = None, limit: Limit = USUAL_ON_A_PAGE) -> Page[LogView]:
        """Every log within reach, by name, with the key its checkpoints are checked with."""
        within = None if reach.everywhere else reach.studies
        async with db.reading("list_logs") as tx:
            found = await logs.states_page(tx, limit + 1, only=within, after=after or "")

        def view(state: LogState) -> LogView:
            return LogView(
                log=state.log,
                origin=handlers.origin(state.log),
                size=state.size,
                checkpointed=state.checkpointed,
                verifier_key=str(VerifierKey(handlers.origin(state.log), trust.services.audit)),
            )

        return page_of(found, limit, view, lambda shown: shown.log)

    @router.get("/logs/{log}/checkpoint")
    async def show_checkpoint(log: LogField, *, witnessed: bool = False) -> Response:
        """A signed checkpoint of the log as it stands now; `witnessed`: the newest one that a quorum of the study's
        hospitals cosigned, with their lines."""
        name = LogName(log)
        signed = await db.run("checkpoint", lambda tx: handlers.checkpoint(tx, name))
        if signed is None:
            raise _log_unknown(log)
        if not witnessed:
            return PlainTextResponse(signed.note)
        cosigned = await quorums.newest(name)
        if cosigned is None:
            raise _not_witnessed(log)
        return PlainTextResponse(cosigned.note)

    @router.get("/logs/{log}/witnesses")
    async def show_witnesses(
        log: LogField, after: SiteIdField | None = None, limit: Limit = USUAL_ON_A_PAGE
    ) -> Page[WitnessView]:
        """How far each hospital has cosigned the log, in the order of their ids."""
        async with db.reading("show_witnesses") as tx:
            await _existing(tx, log)
            known, named = await witnesses(tx, LogName(log)), await announcements(tx, LogName(log))
        found = [one for site, one in sorted(known.items()) if after is None or site > after]

        def view(one: Witness) -> WitnessView:
            announced = named.get((one.site_id, one.witness_key), b"").decode()
            return WitnessView(
                site_id=one.site_id, size=one.size, witness_key=one.witness_key.hex(), announcement=announced
            )

        return page_of(found, limit, view, lambda shown: shown.site_id)

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
    router = APIRouter()

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


def _event_routes(handlers: Handlers, quorums: Quorums, db: Database) -> APIRouter:
    router = APIRouter()

    async def _found(event_id: str, key_id: str | None, reach: Reach) -> logs.Leaf:
        """The one event of this id."""
        async with db.reading("show_event") as tx:
            found = [leaf for leaf in await logs.leaves_of_event(tx, event_id) if key_id in (None, leaf.key_id)]
        if not found:
            raise HttpProblem(404, "event_unknown", f"event {event_id} is in no log; it may still be on its way")
        if len(found) > 1:
            signers = ", ".join(leaf.key_id for leaf in found)
            raise HttpProblem(
                409, "event_ambiguous", f"event {event_id} is of several emitters: add key_id= of {signers}"
            )
        if not reach.covers(study=StudyId(found[0].log)):
            raise outside(f"the log {found[0].log}")
        return found[0]

    async def _proven(event_id: str, key_id: str | None, reach: Reach) -> tuple[logs.Leaf, logs.SignedCheckpoint]:
        """The event, and a checkpoint of now that holds it, with its cosignatures."""
        leaf = await _found(event_id, key_id, reach)
        signed = await db.run("checkpoint", lambda tx: handlers.checkpoint(tx, leaf.log))
        assert signed is not None  # noqa: S101 - the log holds at least this event
        async with db.reading("show_event") as tx:
            (cosigned,) = await quorums.witnessing.cosigned(tx, leaf.log, [signed])
        return leaf, cosigned

    async def _witnessed(
        event_id: str, key_id: str | None, reach: Reach, wait_s: float
    ) -> tuple[logs.Leaf, logs.SignedCheckpoint]:
        """The event, and the newest checkpoint with a quorum of cosignatures, if that holds it."""
        leaf = await _found(event_id, key_id, reach)
        await quorums.fresh(leaf.log)
        await quorums.wait(leaf.log, leaf.index + 1, wait_s)
        cosigned = await quorums.newest(leaf.log)
        if cosigned is None or cosigned.size <= leaf.index:
            raise _not_witnessed(leaf.log)
        return leaf, cosigned

    @router.get("/events/{event_id}/proof")
    async def show_event(event_id: str, reach: ReachIn, key_id: str | None = None) -> EventProof:
        """All that proves one event, in a checkpoint of now. `key_id` is needed where two emitters used one id."""
        leaf, signed = await _proven(event_id, key_id, reach)
        async with db.reading("show_event") as tx:
            proof = await _inclusion(tx, await _existing(tx, leaf.log), leaf.index, signed.size)
        return EventProof(entry=leaf.data.decode(), proof=proof, checkpoint=signed.note)

    @router.get("/events/{event_id}/tlog-proof", response_class=PlainTextResponse)
    async def show_tlog_proof(
        event_id: str,
        reach: ReachIn,
        key_id: str | None = None,
        *,
        witnessed: bool = False,
        wait_s: Annotated[float, Query(ge=0, le=60)] = 0.0,
    ) -> PlainTextResponse:
        """The same as one text, C2SP tlog-proof, with the entry as its extra data: it stands by itself. `witnessed`: in
        the newest checkpoint that a quorum of hospitals cosigned; they are asked, and waited for `wait_s` at most."""
        asked = _witnessed(event_id, key_id, reach, wait_s) if witnessed else _proven(event_id, key_id, reach)
        leaf, signed = await asked
        async with db.reading("show_tlog_proof") as tx:
            hashes = await inclusion_at(tx, await _existing(tx, leaf.log), leaf.index, signed.size)
        return PlainTextResponse(LogProof(leaf.data, leaf.index, tuple(hashes), signed.note).text())

    return router


def _bundle_routes(
    handlers: Handlers, quorums: Quorums, db: Database, trust: TrustDocument, sender: Sender
) -> APIRouter:
    router, witnessing = APIRouter(), quorums.witnessing

    async def _put_on_record(tx: Tx, last: logs.SignedCheckpoint, study: StudyId, caller: Caller) -> None:
        event = BundleExported(study_id=study, size=last.size, root=last.root, person=caller.person)
        await put_on_record(tx, sender, event, study=None)

    @router.get("/studies/{study_id}/bundle")
    async def bundle(
        study_id: StudyIdField, caller: CallerIn, wait_s: Annotated[float, Query(ge=0, le=60)] = 0.0
    ) -> FileResponse:
        """The study's log with all that is needed to check it offline, as a ZIP archive; signs a checkpoint first.

        `wait_s`: so long at most a quorum of the hospitals' cosignatures is waited for.
        """
        log = LogName(study_id)
        fresh = await quorums.fresh(log)
        if fresh is None:
            raise _log_unknown(study_id)
        await quorums.wait(log, fresh.size, wait_s)
        platform = await db.run("platform_proofs", lambda tx: platform_proofs(tx, handlers, StudyId(study_id)))
        async with db.reading("bundle") as tx:
            parts = BundleParts(
                log=log,
                origin=handlers.origin(log),
                trust=trust,
                manifests=await members.manifests(tx, StudyId(study_id)),
                checkpoints=await witnessing.cosigned(tx, log, await logs.checkpoints(tx, log, fresh.size)),
                proven=await logs.indices_of_types(tx, log, PROVEN, fresh.size),
                platform=platform,
            )
        with tempfile.NamedTemporaryFile(prefix="cohortium-audit-", suffix=".zip", delete=False) as kept:
            file = Path(kept.name)
        try:
            await write_bundle(db, parts, file)
            await db.run("bundle_exported", lambda tx: _put_on_record(tx, parts.checkpoints[-1], study_id, caller))
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


def _not_witnessed(log: str) -> HttpProblem:
    text = f"no checkpoint of {log} has a quorum of cosignatures yet; see GET /logs/{log}/witnesses"
    return HttpProblem(404, "not_witnessed", text)


def _outside(text: str) -> HttpProblem:
    return HttpProblem(422, "outside_the_log", text)
