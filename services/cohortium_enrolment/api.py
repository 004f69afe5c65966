"""Enrolment's HTTP side, for operators: sites, invitations, revocation, manifests, the trust document."""

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Final
from uuid import UUID, uuid4

from fastapi import APIRouter, FastAPI, Header, Query
from pydantic import Field

from cohortium_enrolment import store
from cohortium_enrolment.domain.sites import Active, Invited, ManifestRefused, Revoked, Site
from cohortium_enrolment.handlers import AnotherInvitation, Handlers, InvitationOver, NameTaken, site_state
from cohortium_enrolment.preflights import reports_of
from cohortium_kit.bus import Bus
from cohortium_kit.clock import Clock
from cohortium_kit.db import Database
from cohortium_kit.errors import BusError
from cohortium_kit.http import HttpProblem, add_ping, create_app
from cohortium_kit.paging import Limit, page_of
from cohortium_messages.governance import (
    MAX_MEMBERS,
    Invitation,
    Manifest,
    Member,
    Reason,
    ShortName,
    TrustDocument,
)
from cohortium_messages.ids import Bytes32, SiteId, SiteIdField, StudyIdField, Wire
from cohortium_messages.paging import USUAL_ON_A_PAGE, Page
from cohortium_messages.preflight import PreflightReport
from cohortium_messages.topology import inbox, site_topology
from cohortium_platform.people.guard import Caller, CallerIn, Guard, ReachIn
from cohortium_protocol.documents import FIRST, default_collusion, manifest_hash
from cohortium_protocol.encoding import site_bytes

SITE_OF_KEY: Final = b"cohortium/enrolment/idempotency-key/1\n"
IdempotencyKey = Annotated[
    str | None, Header(alias="Idempotency-Key", min_length=8, max_length=255, pattern=r"^[!-~]+$")
]
"""Of an invitation: a text that the client makes up, such as a UUID, and sends again with the same request."""


class NewSite(Wire):
    """Who is to be invited."""

    name: ShortName


class Revocation(Wire):
    """Why a site's standing ends, as a code."""

    reason: Reason = "SITE_REVOKED"


class SiteView(Wire):
    """A site as an operator sees it. Times are there as far as the site has come."""

    site_id: SiteIdField
    name: str
    state: str
    identity_pk: Bytes32 | None = None
    expires_at: datetime | None = None
    since: datetime | None = None
    reason: str | None = None
    preflight: PreflightReport | None = None
    """What its newest trial found, as the hospital says itself."""
    preflight_at: datetime | None = None


class ManifestDraft(Wire):
    """What an unsigned manifest is made from: the study version and its members."""

    study_id: StudyIdField
    study_digest: Bytes32
    site_ids: Annotated[tuple[SiteIdField, ...], Field(min_length=3, max_length=MAX_MEMBERS)]
    collusion: Annotated[int, Field(ge=0, le=198)] | None = None
    k_min_floor: Annotated[int, Field(ge=0, le=200)] = 0


class ManifestAnswer(Wire):
    """A manifest on record, and its hash."""

    manifest: Manifest
    manifest_hash: Bytes32


def create_api(
    *, handlers: Handlers, db: Database, bus: Bus, clock: Clock, trust: TrustDocument, guard: Guard
) -> FastAPI:
    """The application. The trust document is public."""
    app = create_app("Cohortium enrolment", "1", guard)
    add_ping(app, "database", db.ping)
    add_ping(app, "broker", lambda: bus.check_queue(inbox("enrolment")))
    app.include_router(_site_routes(handlers, db, bus, clock))
    app.include_router(_manifest_routes(handlers, db))

    @app.get("/trust")
    async def show_trust() -> TrustDocument:
        """The trust document, signed by the officers: public."""
        return trust

    return app


def _site_routes(handlers: Handlers, db: Database, bus: Bus, clock: Clock) -> APIRouter:
    router = APIRouter()

    @router.post("/sites", status_code=201)
    async def invite(request: NewSite, caller: CallerIn, idempotency_key: IdempotencyKey = None) -> Invitation:
        """Invite a site: declare its queues, and answer with what the hospital needs. The token is shown once; but who
        sends the same `Idempotency-Key` again, because no answer came, gets the same invitation while it is open."""
        site_id = SiteId(str(uuid4())) if idempotency_key is None else site_of_key(idempotency_key, caller)
        try:
            async with db.reading("check_name") as tx:
                if await store.site(tx, site_id) is None:
                    await handlers.check_name(tx, request.name)
            await bus.declare(site_topology(site_id))
            return await db.run("invite", lambda tx: handlers.invite(tx, site_id, request.name))
        except NameTaken:
            raise field_problem(409, "name_taken", "name", f"an active site is called {request.name!r}") from None
        except AnotherInvitation:
            raise HttpProblem(
                422, "idempotency_key_reused", "this Idempotency-Key was sent with another name; send a fresh one"
            ) from None
        except InvitationOver:
            raise HttpProblem(
                409, "invitation_over", "the invitation was used, replaced or has ended; send a fresh Idempotency-Key"
            ) from None
        except BusError as error:
            raise HttpProblem(503, "broker_unavailable", f"the site's queues could not be declared: {error}") from error

    @router.get("/sites")
    async def list_sites(
        reach: ReachIn, after: SiteIdField | None = None, limit: Limit = USUAL_ON_A_PAGE
    ) -> Page[SiteView]:
        """Every site that was ever invited, the oldest first; a hospital's people see their own."""
        within = None if reach.everywhere else reach.sites
        async with db.reading("list_sites") as tx:
            sites = await store.sites_page(tx, limit + 1, only=within, after=after)
            reports = await reports_of(tx, [site.site_id for site in sites])
        now = clock.now()

        def view(site: Site) -> SiteView:
            shown = site_view(site, now)
            made, at = reports.get(site.site_id, (None, None))
            return shown.model_copy(update={"preflight": made, "preflight_at": at})

        return page_of(sites, limit, view, lambda shown: shown.site_id)

    @router.post("/sites/{site_id}/revoke")
    async def revoke(site_id: SiteIdField, request: Revocation | None = None) -> SiteView:
        """End a site's standing at once: every service refuses its key. It cannot be undone; invite it again."""
        reason = (request or Revocation()).reason
        revoked = await db.run("revoke", lambda tx: handlers.revoke(tx, site_id, reason))
        if revoked is None:
            raise HttpProblem(404, "site_unknown", f"there is no site {site_id}; GET /sites lists them")
        return site_view(revoked, clock.now())

    return router


def _manifest_routes(handlers: Handlers, db: Database) -> APIRouter:
    router = APIRouter()

    @router.post("/manifests/draft")
    async def draft(request: ManifestDraft) -> Manifest:
        """The next manifest of a study, unsigned, as the officers have to sign it."""
        async with db.reading("draft_manifest") as tx:
            latest = await store.latest_manifest(tx, request.study_id)
            known = await store.sites_with_ids(tx, request.site_ids)
        return draft_manifest(request, latest, [known.get(site_id) for site_id in request.site_ids])

    @router.post("/manifests", status_code=201)
    async def publish(manifest: Manifest) -> ManifestAnswer:
        """Record a manifest that enough officers signed, and send it to the services and to its members."""
        try:
            recorded = await db.run("publish_manifest", lambda tx: handlers.publish_manifest(tx, manifest))
        except ManifestRefused as refused:
            raise field_problem(422, "manifest_refused", refused.field, str(refused)) from refused
        return ManifestAnswer(manifest=recorded, manifest_hash=manifest_hash(recorded))

    @router.get("/manifests/{study_id}")
    async def show_manifest(
        study_id: StudyIdField, version: Annotated[int | None, Query(ge=1, le=(1 << 31) - 1)] = None
    ) -> ManifestAnswer:
        """The study's newest manifest, or the version asked for."""
        async with db.reading("show_manifest") as tx:
            found = await (
                store.latest_manifest(tx, study_id)
                if version is None
                else store.manifest_version(tx, study_id, version)
            )
        if found is None:
            raise HttpProblem(404, "manifest_unknown", f"study {study_id} has no such manifest; have one signed")
        return ManifestAnswer(manifest=found, manifest_hash=manifest_hash(found))

    return router


def site_of_key(key: str, caller: Caller) -> SiteId:
    """The id of the site that this person invites with this `Idempotency-Key`: always the same, and nobody else's."""
    said = f"{caller.person or ''}\n{key}"
    return SiteId(str(UUID(bytes=hashlib.sha256(SITE_OF_KEY + said.encode()).digest()[:16], version=4)))


def field_problem(status: int, code: str, field: str, text: str) -> HttpProblem:
    """An error about one field of the request."""
    return HttpProblem(status, code, f"{field}: {text}", errors=[{"field": field, "text": text}])


def site_view(site: Site, now: datetime) -> SiteView:
    """What an operator may know of a site: everything but the token."""
    view = SiteView(site_id=site.site_id, name=site.name, state=site_state(site, now))
    match site:
        case Invited(expires_at=end):
            return view.model_copy(update={"expires_at": end})
        case Active(identity_pk=key, since=since):
            return view.model_copy(update={"identity_pk": key, "since": since})
        case Revoked(identity_pk=revoked_key, reason=reason, at=at):
            return view.model_copy(update={"identity_pk": revoked_key, "reason": reason, "since": at})
        case _:
            return view


def draft_manifest(request: ManifestDraft, latest: Manifest | None, sites: Sequence[Site | None]) -> Manifest:
    """The unsigned manifest; raises `HttpProblem` naming the first site that cannot be a member."""
    members = []
    for place, (site_id, site) in enumerate(zip(request.site_ids, sites, strict=True)):
        if not isinstance(site, Active):
            text = f"site {site_id} is not active; invite it, and wait until it has registered"
            raise field_problem(422, "site_not_active", f"site_ids.{place}", text)
        members.append(Member(site_id=site.site_id, name=site.name, identity_pk=site.identity_pk))
    if len(set(request.site_ids)) != len(members):
        raise field_problem(422, "site_twice", "site_ids", "a site is named twice")
    return Manifest(
        study_id=request.study_id,
        version=1 if latest is None else latest.version + 1,
        prev_hash=FIRST if latest is None else manifest_hash(latest),
        study_digest=request.study_digest,
        members=tuple(sorted(members, key=lambda member: site_bytes(member.site_id))),
        collusion=default_collusion(len(members)) if request.collusion is None else request.collusion,
        k_min_floor=request.k_min_floor,
    )
