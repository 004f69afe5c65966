"""The operator's HTTP interface: submit a study, watch runs, stop one. Translates; decides nothing."""

import asyncio
from functools import partial
from typing import Annotated, Protocol, TypeVar

from fastapi import FastAPI, Path, Query, Request

from cohortium_kit.http import HttpProblem, create_app
from cohortium_kit.paging import Limit, page_of
from cohortium_messages.ids import UUID_PATTERN, RunId, SiteId, StudyId
from cohortium_messages.paging import USUAL_ON_A_PAGE, Page
from cohortium_messages.status import RunLineage, RunStatus, RunSummary
from cohortium_messages.study import Study
from cohortium_messages.study_file import StudyFileError, parse_study
from cohortium_platform.people.guard import Guard, Reach, ReachIn, outside
from cohortium_privacy.study_plans import plan_findings
from cohortium_scheduler.status import narrowed

MAX_STUDY_BYTES = 256 << 10


class Runs(Protocol):
    """What the interface needs of the service."""

    async def submit(self, study: Study) -> RunSummary: ...
    async def list(self, reach: Reach, after: RunId | None, limit: int) -> list[RunSummary]: ...
    async def taking_part(self, run_id: RunId, sites: frozenset[SiteId]) -> frozenset[SiteId]: ...
    async def status(self, run_id: RunId) -> RunStatus | None: ...
    async def lineage(self, run_id: RunId, after: int | None, limit: int) -> RunLineage | None: ...
    async def stop(self, run_id: RunId) -> RunSummary | None: ...


T = TypeVar("T")
RunPath = Annotated[str, Path(pattern=UUID_PATTERN)]


def create(runs: Runs, *, guard: Guard) -> FastAPI:
    """The application."""
    app = create_app("Cohortium scheduler", "1", guard)

    @app.post("/studies", status_code=201, openapi_extra=_STUDY_BODY)
    async def submit(request: Request) -> RunSummary:
        """Submit a study file (YAML). The same study version again gives the run that it has already."""
        body = await _bounded(request)
        try:
            parse = partial(parse_study, body.decode(), also=plan_findings)
            study = await asyncio.to_thread(parse)  # a privacy plan takes a second
        except UnicodeDecodeError:
            raise HttpProblem(422, "STUDY_NOT_UTF8", "the study file is not UTF-8 text") from None
        except StudyFileError as error:
            raise HttpProblem(422, "STUDY_REFUSED", str(error)) from None
        return await runs.submit(study)

    @app.get("/runs")
    async def listed(
        reach: ReachIn, after: Annotated[str | None, Query(pattern=UUID_PATTERN)] = None, limit: Limit = USUAL_ON_A_PAGE
    ) -> Page[RunSummary]:
        """All runs, the newest first; for a study's people those of their study, for a hospital's people those that it
        takes part in."""
        found = await runs.list(reach, None if after is None else RunId(after), limit + 1)
        return page_of(found, limit, lambda run: run, lambda run: run.run_id)

    @app.get("/runs/{run_id}")
    async def status(run_id: RunPath, reach: ReachIn) -> RunStatus:
        """One run with its newest 1,000 rounds, its sites and the open window. A hospital's people see of the single
        sites only their own."""
        found = _found(await runs.status(RunId(run_id)), run_id)
        own = await _own(run_id, found.study_id, reach)
        return found if own is None else narrowed(found, own)

    @app.get("/runs/{run_id}/lineage")
    async def lineage(
        run_id: RunPath,
        reach: ReachIn,
        after: Annotated[int | None, Query(ge=0, le=(1 << 31) - 1)] = None,
        limit: Limit = USUAL_ON_A_PAGE,
    ) -> RunLineage:
        """The model versions of a run, the oldest first: of which sites' sum each came, and the withdrawals that it is
        flagged with. `after`: a version."""
        found = _found(await runs.lineage(RunId(run_id), after, limit), run_id)
        await _own(run_id, found.study_id, reach)
        return found

    @app.post("/runs/{run_id}/stop")
    async def stop(run_id: RunPath, reach: ReachIn) -> RunSummary:
        """End a run now. A run that has ended stays as it is."""
        if not reach.everywhere:
            found = _found(await runs.status(RunId(run_id)), run_id)
            if not reach.covers(study=found.study_id):
                raise outside(f"run {run_id}")
        return _found(await runs.stop(RunId(run_id)), run_id)

    async def _own(run_id: str, study: StudyId, reach: Reach) -> frozenset[SiteId] | None:
        """The caller's hospitals in a run, for who sees it only because of them; None for who sees all of it."""
        if reach.covers(study=study):
            return None
        own = await runs.taking_part(RunId(run_id), reach.sites)
        if not own:
            raise outside(f"run {run_id}")
        return own

    return app


_STUDY_BODY = {
    "requestBody": {"required": True, "content": {"application/yaml": {"schema": {"type": "string"}}}},
}


async def _bounded(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_STUDY_BYTES:
            raise HttpProblem(413, "STUDY_TOO_LARGE", f"a study file has at most {MAX_STUDY_BYTES} bytes")
    return bytes(body)


def _found(value: T | None, run_id: str) -> T:
    if value is None:
        raise HttpProblem(404, "RUN_NOT_FOUND", f"there is no run {run_id}; `cohortium runs` lists them")
    return value
