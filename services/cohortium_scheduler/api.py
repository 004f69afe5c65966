"""The operator's HTTP interface: submit a study, watch runs, stop one. Translates; decides nothing."""

import asyncio
from functools import partial
from typing import Annotated, Protocol, TypeVar

from fastapi import FastAPI, Path, Request

from cohortium_kit.http import HttpProblem, create_app
from cohortium_messages.ids import UUID_PATTERN, RunId
from cohortium_messages.status import RunLineage, RunStatus, RunSummary
from cohortium_messages.study import Study
from cohortium_messages.study_file import StudyFileError, parse_study
from cohortium_platform.people.guard import Guard, Reach, ReachIn, outside
from cohortium_privacy.study_plans import plan_findings

MAX_STUDY_BYTES = 256 << 10


class Runs(Protocol):
    """What the interface needs of the service."""

    async def submit(self, study: Study) -> RunSummary: ...
    async def list(self) -> list[RunSummary]: ...
    async def status(self, run_id: RunId) -> RunStatus | None: ...
    async def lineage(self, run_id: RunId) -> RunLineage | None: ...
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
    async def listed(reach: ReachIn) -> list[RunSummary]:
        """The newest 100 runs, newest first; of a study's people, those of their study."""
        return [run for run in await runs.list() if reach.covers(study=run.study_id)]

    @app.get("/runs/{run_id}")
    async def status(run_id: RunPath, reach: ReachIn) -> RunStatus:
        """One run with its rounds, sites and open window."""
        return _within(reach, _found(await runs.status(RunId(run_id)), run_id))

    @app.get("/runs/{run_id}/lineage")
    async def lineage(run_id: RunPath, reach: ReachIn) -> RunLineage:
        """Every model version of a run: of which sites' sum it came, and the withdrawals that it is flagged with."""
        found = _found(await runs.lineage(RunId(run_id)), run_id)
        if not reach.covers(study=found.study_id):
            raise outside(f"run {run_id}")
        return found

    @app.post("/runs/{run_id}/stop")
    async def stop(run_id: RunPath, reach: ReachIn) -> RunSummary:
        """End a run now. A run that has ended stays as it is."""
        if not reach.everywhere:
            _within(reach, _found(await runs.status(RunId(run_id)), run_id))
        return _found(await runs.stop(RunId(run_id)), run_id)

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


def _within(reach: Reach, run: RunStatus) -> RunStatus:
    if not reach.covers(study=run.study_id):
        raise outside(f"run {run.run_id}")
    return run
