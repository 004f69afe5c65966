"""Somebody has looked through a log, and says so with their name: the review that 45 CFR 164.312(b) asks for."""

import hashlib
from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import Field

from cohortium_audit.domain import PLATFORM, LogName
from cohortium_audit.handlers import Handlers, root_at
from cohortium_audit.store import logs
from cohortium_kit.db import Database, Tx
from cohortium_kit.envelopes import Sender
from cohortium_kit.http import HttpProblem
from cohortium_messages.consent import PersonId
from cohortium_messages.ids import STUDY_PATTERN, Bytes32, StudyId, Wire
from cohortium_messages.oversight import LogReviewed
from cohortium_platform.people.guard import CallerIn
from cohortium_platform.recording import put_on_record

ReviewedLog = Annotated[str, Field(pattern=f"{STUDY_PATTERN}|^{PLATFORM}$")]


class Review(Wire):
    """Up to which size the log was looked through, and what came of it."""

    size: Annotated[int, Field(ge=1, le=(1 << 53) - 1)]
    finding: Literal["NOTHING_FOUND", "FOLLOW_UP"]


class ReviewRecorded(Wire):
    """What is put on record; `event_id` is where `GET /events/{id}/proof` finds it, once the log has it."""

    log: str
    size: int
    root: Bytes32
    person: PersonId
    finding: Literal["NOTHING_FOUND", "FOLLOW_UP"]
    event_id: str


def review_routes(handlers: Handlers, db: Database, sender: Sender) -> APIRouter:
    """The one route."""
    router = APIRouter()

    @router.post("/logs/{log}/reviews", status_code=201)
    async def review(log: ReviewedLog, request: Review, caller: CallerIn) -> ReviewRecorded:
        """Put on record, in the platform's log, that the caller has reviewed a log up to this size. The same again is
        one event."""
        person = caller.person
        if person is None:
            raise HttpProblem(403, "not_a_person", "a review has a person's name; sign in")

        async def save(tx: Tx) -> ReviewRecorded:
            state = await logs.state(tx, LogName(log))
            if state is None or request.size > state.size:
                raise HttpProblem(422, "outside_the_log", f"size={request.size} is more than {log} has")
            root = await root_at(tx, state, request.size)
            event = LogReviewed(
                study_id=None if log == PLATFORM else StudyId(log),
                size=request.size,
                root=root,
                person=person,
                finding=request.finding,
            )
            about = f"{handlers.origin(LogName(log))}|{request.size}|{person}|{request.finding}"
            name = hashlib.sha256(about.encode()).hexdigest()
            await put_on_record(tx, sender, event, study=None, unique=name)
            return ReviewRecorded(
                log=log, size=request.size, root=root, person=person, finding=request.finding, event_id=name
            )

        return await db.run("review", save)

    return router
