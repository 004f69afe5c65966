"""Consent documents over HTTP. Roles and the operator's token open the door; what counts is who signed what comes in.

A file is named by its content, so posting it twice is posting it once: no idempotency key is needed.
"""

from datetime import datetime

from fastapi import APIRouter

from cohortium_consent import store
from cohortium_consent.handlers import Handlers
from cohortium_consent.store import consent_records
from cohortium_kit.clock import Clock
from cohortium_kit.db import Database
from cohortium_kit.http import HttpProblem
from cohortium_kit.paging import Limit, page_of
from cohortium_messages.consent import ConsentFile, Document, DocumentKind
from cohortium_messages.ids import Bytes32, SiteIdField, StudyIdField, Wire
from cohortium_messages.paging import USUAL_ON_A_PAGE, Page
from cohortium_messages.papers import StudyPapers
from cohortium_platform.people.guard import Reach, ReachIn, outside
from cohortium_protocol.consent.authorise import Dossier, Judged, name_of
from cohortium_protocol.consent.files import about, of_study
from cohortium_protocol.consent.intake import NotAccepted
from cohortium_protocol.consent.rules import sites_of, study_of


class Accepted(Wire):
    """Digests of the records and cards about which the file told something new."""

    changed: tuple[Bytes32, ...]


class DocumentView(Wire):
    """One document as it stands now. `moment`: since, from or until when, as the word says."""

    digest: Bytes32
    kind: DocumentKind
    name: str
    standing: str
    moment: datetime | None
    study_id: StudyIdField | None
    sites: tuple[SiteIdField, ...] | None


def papers_router(db: Database) -> APIRouter:
    """The documents of a study, all together."""
    router = APIRouter(prefix="/studies")

    @router.get("/{study_id}/papers")
    async def papers(study_id: StudyIdField) -> StudyPapers:
        """What the study's permissions rest on, as it was signed: documents, grants, withdrawals. `cohortium audit
        export` puts it into the audit bundle."""
        async with db.reading("study_papers") as tx:
            file = of_study(await consent_records.load(tx), study_id)
            grants, withdrawals = await store.grants_of(tx, study_id), await store.withdrawals_of(tx, study_id)
        return StudyPapers(study_id=study_id, file=file, grants=tuple(grants), withdrawals=tuple(withdrawals))

    return router


def documents_router(db: Database, clock: Clock, handlers: Handlers) -> APIRouter:
    """Routes under `/documents`."""
    router = APIRouter(prefix="/documents")

    @router.post("")
    async def add(file: ConsentFile, reach: ReachIn) -> Accepted:
        """Add documents, signatures and cards. All of a file is taken, or nothing."""
        for record in file.records:
            _check_reach(reach, record.document)
        try:
            changed = await db.run("add_documents", lambda tx: handlers.take(tx, file))
        except NotAccepted as refused:
            errors = [{"field": refused.field, "fault": str(refused)}]
            raise HttpProblem(422, refused.code, str(refused), errors=errors) from None
        return Accepted(changed=tuple(sorted(changed)))

    @router.get("")
    async def page(
        kind: DocumentKind | None = None,
        study: StudyIdField | None = None,
        site: SiteIdField | None = None,
        after: Bytes32 | None = None,
        limit: Limit = USUAL_ON_A_PAGE,
    ) -> Page[DocumentView]:
        """Documents and how they stand now, of a kind, a study, a hospital, or all, in the order of their digests."""
        async with db.reading("list_documents") as tx:
            dossier = await handlers.documents.dossier(tx, clock.now())
        views = [_view(digest, one, clock.now()) for digest, one in sorted(dossier.records.items())]
        wanted = [
            view
            for view in views
            if (kind is None or view.kind == kind)
            and (study is None or view.study_id == study)
            and (site is None or (view.sites is not None and site in view.sites))
            and (after is None or view.digest > after)
        ]
        return page_of(wanted, limit, lambda view: view, lambda view: view.digest.hex())

    @router.get("/{digest}")
    async def one(digest: Bytes32, reach: ReachIn) -> ConsentFile:
        """A document with every signature under it, and the cards of the people who signed."""
        async with db.reading("one_document") as tx:
            file = await consent_records.load(tx)
            dossier: Dossier = await handlers.documents.dossier(tx, clock.now())
        if digest not in dossier.records:
            raise HttpProblem(404, "document_unknown", "no document has this digest; GET /documents lists them")
        _check_reach(reach, dossier.records[digest].document)
        return about(file, frozenset({digest}))

    return router


def _check_reach(reach: Reach, document: Document) -> None:
    sites = sites_of(document) or frozenset()
    if not (reach.covers(study=study_of(document)) or any(reach.covers(site=site) for site in sites)):
        raise outside(f"the {document.kind} {name_of(document)}")


def _view(digest: bytes, judged: Judged, now: datetime) -> DocumentView:
    word, moment = judged.standing(now)
    sites = sites_of(judged.document)
    return DocumentView(
        digest=digest,
        kind=judged.document.kind,
        name=name_of(judged.document),
        standing=word,
        moment=moment,
        study_id=study_of(judged.document),
        sites=None if sites is None else tuple(sorted(sites)),
    )
