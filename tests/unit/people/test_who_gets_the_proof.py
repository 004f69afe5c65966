"""Whoever may read a study's log gets with one pass a bundle that `cohortium verify` finds proved, and nobody else.

A governed study on a real consent and a real audit service: permits are consent's own, over documents that people
signed.
"""

import asyncio
import io
import json
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cohortium_audit.app import App as Audit
from cohortium_cli.app import app as command_line
from cohortium_cli.operator import SERVICES, Operator, OperatorError
from cohortium_kit.http import serve
from cohortium_messages import events as ev
from cohortium_messages.governance import (
    AuthoriseAsked,
    Authorised,
    GrantGiven,
    Manifest,
    ManifestPublished,
    Permit,
    SiteGrant,
    SiteRegistered,
)
from cohortium_messages.ids import SiteId, StudyId
from cohortium_messages.people import Assignment, Role
from cohortium_protocol.consent.signing import record_digest
from cohortium_verify.verification import verify_bundle
from consent_stage import Plane
from governance_stage import DIGEST, STUDY, Hospital, Stage, hear, hospital, sent_of
from people_stage import PASSWORD, House, bearer, open_house
from study_story import RUN, Line, cosign_latest, recording, study_lines, tell, witness_lines

FIRST_MODEL = 24
"""So many lines a study has up to its first model."""
ROLES = (
    Assignment(role=Role.OPERATOR),
    Assignment(role=Role.OFFICER),
    Assignment(role=Role.AUDITOR),
    Assignment(role=Role.INTEGRATOR),
    Assignment(role=Role.STUDY_LEAD, study_id=STUDY),
    Assignment(role=Role.REVIEWER, study_id=STUDY),
)


@dataclass(slots=True)
class Governed(Stage):
    """A federation in which each grant rests on an approval."""

    bases: dict[SiteId, bytes] = field(default_factory=dict)

    def grant(self, site: Hospital, **changes: Any) -> SiteGrant:
        return Stage.grant(self, site, **{"basis": self.bases.get(site.site_id), **changes})


@dataclass(frozen=True, slots=True)
class Federation:
    """Both services, after a study, and what it was played with."""

    stage: Governed
    house: House
    audit: Audit

    async def bundle(self, token: str, study: str = STUDY) -> bytes:
        """What `cohortium audit export` fetches with this token."""
        apps = {"audit": self.audit.http, "consent": self.house.app.http}
        async with Operator.within(apps, token) as operator:
            return await operator.audit_bundle(study, wait_s=0.0)

    def pass_of(self, *roles: Assignment) -> str:
        return bearer(self.stage, "audit", *roles)["Authorization"].removeprefix("Bearer ")


@asynccontextmanager
async def federation(folder: Path) -> AsyncIterator[Federation]:
    stage = Governed.at(folder)
    house = await open_house(stage)
    async with recording(stage) as audit:
        await consent_to_it(stage, house)
        begun = study_lines(stage)[:FIRST_MODEL] + witness_lines(stage)
        await tell(stage, audit, await governed(stage, house, begun), checkpoint_every=len(begun))
        await cosign_latest(stage, audit)
        yield Federation(stage, house, audit)
    await house.app.db.close()


async def consent_to_it(stage: Governed, house: House) -> None:
    """Membership, documents and grants, as consent hears of them."""
    plane = Plane(
        now=stage.clock.now(),
        study=STUDY,
        study_digest=DIGEST,
        officers=tuple(stage.files.officers),
        site_keys={site.site_id: site.key for site in stage.hospitals},
    )
    for site in stage.hospitals:
        stage.bases[site.site_id] = record_digest(plane.parts(site.site_id)["basis"])
        message = SiteRegistered(site_id=site.site_id, name=site.name, identity_pk=site.key.public)
        await hear(house.app, "consent", stage.from_service("enrolment", "consent", message))
    await hear(house.app, "consent", published(stage, stage.manifest()))
    async with house.machine() as machine:
        file = plane.file(*stage.bases)
        assert (await machine.post("/documents", json=file.model_dump(mode="json"))).status_code == 200
    for site in stage.hospitals:
        given = GrantGiven(grant=stage.grant(site, begin=stage.started))
        await hear(house.app, "consent", stage.from_site(site, "consent", given))


def published(stage: Stage, manifest: Manifest) -> Any:
    return stage.from_service("enrolment", "consent", ManifestPublished(manifest=manifest))


async def governed(stage: Stage, house: House, lines: list[Line]) -> list[Line]:
    """The lines, each window with the permits that consent gives for it."""
    return [
        replace(line, message=line.message.model_copy(update={"permits": await permits(stage, house, line.message)}))
        if isinstance(line.message, ev.WindowAuthorised)
        else line
        for line in lines
    ]


async def permits(stage: Stage, house: House, window: ev.WindowAuthorised) -> tuple[Permit, ...]:
    asked = AuthoriseAsked(
        question_id=window.window_id,
        run_id=RUN,
        study_id=STUDY,
        study_digest=DIGEST,
        round=window.round,
        sites=tuple(site.site_id for site in stage.hospitals),
        governance="required",
    )
    await hear(house.app, "consent", stage.from_service("scheduler", "consent", asked))
    given = (await sent_of(house.app, Authorised))[-1][1].permits
    assert all(permit.permit_digest for permit in given)
    return given


def contents(archive: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as bundle:
        return {name: bundle.read(name) for name in bundle.namelist()}


def contents_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    """A service's interface on loopback: its address."""
    stop, ports = asyncio.Event(), asyncio.Queue[int]()
    serving = asyncio.create_task(serve(app, "127.0.0.1", 0, stop, on_port=ports.put_nowait))
    yield f"http://127.0.0.1:{await ports.get()}"
    stop.set()
    await serving


async def typed_in_a_hospital(here: Federation, tmp_path: Path) -> None:
    """Somebody there signs in with a password, over loopback: a pass, the export into `log`, the verifier."""
    async with served(here.house.app.http) as consent, served(here.audit.http) as audit:
        file = tmp_path / "mine.yaml"
        addresses = dict.fromkeys(SERVICES, consent) | {"audit": audit}
        file.write_text(yaml.safe_dump({"token_file": "pass"} | addresses))
        async with here.house.officer() as officer:
            site = {"role": "site_admin", "site_id": here.stage.hospitals[1].site_id}
            await here.house.person(officer, "admin-1", site)

        async def typed(*words: str) -> str:
            environment = {"COHORTIUM_OPERATOR": str(file), "COHORTIUM_PASSWORD": PASSWORD}
            done = await asyncio.to_thread(CliRunner(env=environment).invoke, command_line, words)
            assert done.exit_code == 0, done.output
            return done.stdout

        out = tmp_path / "log"
        await typed("people", "pass", "audit", "--as", "admin-1", "--out", str(tmp_path / "pass"))
        await typed("audit", "export", STUDY, "--out", str(out))
        keys = [word for one in here.stage.files.officers for word in ("--governance-key", one.public.hex())]
        said = json.loads(await typed("verify", str(out), *keys, "--json"))
        assert said["verified"] is True
        facts = {check["name"]: check["fact"] for check in said["checks"]}
        assert "4 permits judged anew" in facts["consent documents"]


async def test_everybody_who_may_read_the_log_gets_a_proof_with_one_pass(tmp_path: Path) -> None:
    async with federation(tmp_path) as here:
        site = here.stage.hospitals[0].site_id
        hospital_roles = (Role.SITE_ADMIN, Role.SITE_APPROVER)
        callers = (*ROLES, *(Assignment(role=role, site_id=site) for role in hospital_roles))
        tokens = {"machine": here.stage.files.operator_token}
        tokens |= {str(caller.role): here.pass_of(caller) for caller in callers}
        assert tokens.keys() == {str(role) for role in Role}, "every role there is"
        bundles = {name: contents(await here.bundle(token)) for name, token in tokens.items()}
        await typed_in_a_hospital(here, tmp_path)
        files = contents_of(tmp_path / "log")
        assert [name for name, bundle in bundles.items() if bundle != files] == []
        (tmp_path / "log" / "consent.json").unlink()
        report = verify_bundle(tmp_path / "log", [officer.public for officer in here.stage.files.officers])
        assert report.exit_code == 1, "without the papers this study's log proves nothing"


async def test_a_hospital_sees_studies_that_it_is_or_was_in_and_nothing_of_others(tmp_path: Path) -> None:
    stage = Stage.at(tmp_path)
    house = await open_house(stage)
    left, never = stage.hospitals[0], hospital(9)
    stage.hospitals[1] = replace(stage.hospitals[1], name=never.site_id)  # which makes nobody a member
    async with recording(stage) as audit:
        here = Federation(stage, house, audit)  # type: ignore[arg-type]
        for site in stage.hospitals:
            registered = SiteRegistered(site_id=site.site_id, name=site.name, identity_pk=site.key.public)
            await hear(house.app, "consent", stage.from_service("enrolment", "consent", registered))
        first = stage.manifest()
        for manifest in (first, stage.manifest(stage.hospitals[1:], previous=first)):
            await hear(house.app, "consent", published(stage, manifest))
            if manifest is not first:
                message = ManifestPublished(manifest=manifest)
                await hear(audit, "audit", stage.from_service("enrolment", "audit", message))
        await tell(stage, audit, study_lines(stage)[:3])
        mine, others = (
            {"Authorization": f"Bearer {here.pass_of(Assignment(role=Role.SITE_ADMIN, site_id=site.site_id))}"}
            for site in (left, never)
        )
        async with stage.client(audit) as log, stage.client(house.app) as consent:
            (line, *_) = (await log.get(f"/logs/{STUDY}/entries", headers=mine)).text.splitlines()
            event = json.loads(line)["event"]["id"]
            paths = [f"/logs/{STUDY}/{part}" for part in ("checkpoint", "witnesses", "entries")]
            paths += [f"/logs/{STUDY}/proof/inclusion?index=0", f"/logs/{STUDY}/proof/consistency?from=1"]
            paths += [f"/events/{event}/proof", f"/events/{event}/tlog-proof", f"/studies/{STUDY}/bundle"]
            asked = [(log, path) for path in paths] + [(consent, f"/studies/{STUDY}/papers")]
            for client, path in asked:
                assert (await client.get(path, headers=mine)).status_code == 200, path
                beyond = await client.get(path, headers=others)
                assert (beyond.status_code, beyond.json()["title"]) == (403, "out_of_reach"), path
            for path in ("/logs/-/entries", "/logs/another-study/entries", "/studies/another-study/bundle"):
                assert (await log.get(path, headers=mine)).status_code == 403, path
            assert (await log.post(f"/logs/{STUDY}/reviews", headers=mine, json={})).status_code == 403
            listed = [(await log.get("/logs", headers=who)).json()["items"] for who in (mine, others)]
            assert [[one["log"] for one in found] for found in listed] == [[STUDY], []]
            papers = f"/studies/{StudyId('another-study')}/papers"
            assert (await consent.get(papers, headers=mine)).status_code == 403
        with pytest.raises(OperatorError) as refused:
            await here.bundle(here.pass_of(Assignment(role=Role.SITE_APPROVER, site_id=never.site_id)))
        assert refused.value.code == "out_of_reach"
    await house.app.db.close()
