"""The operator's side of the services' HTTP interfaces: what the command line and the simulator both speak."""

import asyncio
import io
import json
import zipfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self, TypeVar

import httpx
import yaml
from pydantic import Field, TypeAdapter, ValidationError

from cohortium_kit.errors import ConfigurationError
from cohortium_kit.settings import read_secret_file
from cohortium_messages.budgets import SiteBudget
from cohortium_messages.consent import ConsentFile
from cohortium_messages.governance import Invitation, Manifest, TrustDocument
from cohortium_messages.ids import Wire
from cohortium_messages.paging import MOST_ON_A_PAGE, Page
from cohortium_messages.papers import StudyPapers
from cohortium_messages.status import RunLineage, RunStatus, RunSummary, VersionLineage
from cohortium_protocol.errors import LogRefused
from cohortium_protocol.logproof import LogProof
from cohortium_protocol.notes import Checkpoint
from cohortium_protocol.receipts import ReceiptFile
from cohortium_verify.bundle import PAPERS

MOST_PAGES = 10_000
PLATFORM_LOG = "-"
ENTRIES_AT_ONCE = 1000
ON_ITS_WAY_S = 20
"""So long an event may take to the log."""
SERVICES = ("enrolment", "consent", "scheduler", "aggregator", "audit")
Url = Annotated[str, Field(pattern=r"^https?://[^\s/]+(:[0-9]+)?/?$")]
A = TypeVar("A")


class OperatorSettings(Wire):
    """Where the services' HTTP interfaces are, and the file with the operator's token. A YAML file."""

    token_file: Path
    enrolment: Url
    consent: Url
    scheduler: Url
    aggregator: Url
    audit: Url

    @classmethod
    def load(cls, path: Path) -> "OperatorSettings":
        """Read the file; raises `ConfigurationError` naming every wrong field and the way out."""
        values = _yaml_fields(path)
        try:
            settings = cls.model_validate(values)
        except ValidationError as error:
            faults = "".join(f"\n  {_fault(item['type'], item['loc'], item['msg'])}" for item in error.errors())
            raise ConfigurationError(f"the operator settings {path} have errors:{faults}") from None
        if settings.token_file.is_absolute():
            return settings
        return settings.model_copy(update={"token_file": path.parent / settings.token_file})


def _yaml_fields(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(
            f"the operator settings {path} do not exist; name them with --operator or COHORTIUM_OPERATOR, "
            "or make a federation with `cohortium init`"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"the operator settings {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise ConfigurationError(
            f"the operator settings {path} are not YAML{where}; write one `field: value` a line"
        ) from None
    if not isinstance(values, dict):
        raise ConfigurationError(f"the operator settings {path} are not a mapping; write one `field: value` a line")
    return values


def _fault(kind: str, place: tuple[int | str, ...], text: str) -> str:
    advice = {
        "missing": "missing; add it",
        "extra_forbidden": "unknown; remove it or correct its name",
        "string_pattern_mismatch": "not an address; write http://HOST:PORT, without a path",
    }
    return f"{'.'.join(map(str, place))}: {advice.get(kind, text)}"


class OperatorError(Exception):
    """A service refused or could not be reached. The text is for people; `code` is the problem's stable code."""

    def __init__(self, text: str, *, code: str = "") -> None:
        super().__init__(text)
        self.code = code


class Operator:
    """One operator's connection to the services. Use as an async context manager."""

    def __init__(self, clients: Mapping[str, httpx.AsyncClient]) -> None:
        self._clients = clients

    @classmethod
    def at(cls, settings: OperatorSettings, token: str, *, timeout_s: float = 30.0) -> "Operator":
        """Over HTTP, to running services."""
        headers = {"Authorization": f"Bearer {token}"}
        return cls(
            {
                name: httpx.AsyncClient(base_url=getattr(settings, name), headers=headers, timeout=timeout_s)
                for name in SERVICES
            }
        )

    @classmethod
    def open(cls, path: Path) -> "Operator":
        """To the services that a settings file names, with the token that it names. Raises `ConfigurationError`."""
        settings = OperatorSettings.load(path)
        return cls.at(settings, read_secret_file(settings.token_file))

    @classmethod
    def within(cls, apps: Mapping[str, Any], token: str) -> "Operator":
        """To services in this process, through their ASGI applications; no socket is opened."""
        headers = {"Authorization": f"Bearer {token}"}
        return cls(
            {
                name: httpx.AsyncClient(
                    transport=httpx.ASGITransport(app=app), base_url="http://in-process", headers=headers, timeout=60.0
                )
                for name, app in apps.items()
            }
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients.values():
            await client.aclose()

    async def _ask(self, service: str, method: str, path: str, **kwargs: Any) -> httpx.Response:
        try:
            answer = await self._request(service, method, path, **kwargs)
        except httpx.HTTPError as error:
            raise OperatorError(
                f"the {service} service does not answer at {self._clients[service].base_url} "
                f"({type(error).__name__}); is it running, and is the address in the operator settings right?",
                code="unreachable",
            ) from error
        if answer.is_error:
            raise problem_of(service, answer)
        return answer

    async def _request(self, service: str, method: str, path: str, **kwargs: Any) -> httpx.Response:
        """A reading question is asked again, once, where a kept connection was closed while it was on its way."""
        client = self._clients[service]
        try:
            return await client.request(method, path, **kwargs)
        except httpx.RemoteProtocolError:
            if method != "GET":
                raise
            return await client.request(method, path, **kwargs)

    async def _read(self, service: str, method: str, path: str, kind: type[A], **kwargs: Any) -> A:
        """The answer as this kind of thing; another program's answer is an `OperatorError`, as silence is."""
        answer = await self._ask(service, method, path, **kwargs)
        try:
            return TypeAdapter(kind).validate_json(answer.content)
        except ValidationError:
            raise OperatorError(
                f"what answers at {self._clients[service].base_url} is not the {service} service of this version; "
                "check its address in the operator settings, and its version",
                code="not_understood",
            ) from None

    async def _pages(self, service: str, path: str, kind: type[A], **params: str) -> list[A]:
        """Everything on the list at this path, page after page."""

        async def ask(place: Mapping[str, str]) -> Page[A]:
            return await self._read(service, "GET", path, Page[kind], params={**params, **place})  # type: ignore[valid-type]

        return await every_item(ask, f"{service}'s {path}")

    async def _archive(self, service: str, path: str) -> bytes:
        content = (await self._ask(service, "GET", path)).content
        if not zipfile.is_zipfile(io.BytesIO(content)):
            raise OperatorError(f"{service} answered with something that is no ZIP archive", code="not_understood")
        return content

    async def healthy(self, service: str) -> bool:
        """Whether the service says that it is ready."""
        try:
            await self._ask(service, "GET", "/readyz")
        except OperatorError:
            return False
        return True

    async def invite(self, name: str) -> Invitation:
        """A one-time invitation for a new site."""
        return await self._read("enrolment", "POST", "/sites", Invitation, json={"name": name})

    async def sites(self) -> list[dict[str, Any]]:
        """Every site that enrolment knows."""
        return await self._pages("enrolment", "/sites", dict[str, Any])

    async def revoke(self, site_id: str) -> None:
        await self._ask("enrolment", "POST", f"/sites/{site_id}/revoke")

    async def trust(self) -> TrustDocument:
        return await self._read("enrolment", "GET", "/trust", TrustDocument)

    async def draft_manifest(
        self, study_id: str, study_digest: bytes, site_ids: Sequence[str], collusion: int | None = None
    ) -> Manifest:
        """The next membership manifest of a study, unsigned, for the officers to sign."""
        wanted = {
            "study_id": study_id,
            "study_digest": study_digest.hex(),
            "site_ids": list(site_ids),
            "collusion": collusion,
        }
        return await self._read("enrolment", "POST", "/manifests/draft", Manifest, json=wanted)

    async def publish_manifest(self, manifest: Manifest) -> None:
        """Hand over a membership manifest that the officers have signed."""
        await self._ask("enrolment", "POST", "/manifests", json=manifest.model_dump(mode="json"))

    async def manifest(self, study_id: str) -> Manifest:
        """The study's newest membership manifest."""
        found = await self._read("enrolment", "GET", f"/manifests/{study_id}", dict[str, Any])
        return Manifest.model_validate(found["manifest"])

    async def add_documents(self, file: ConsentFile) -> list[str]:
        """Put signed consent documents on record; the digests of what was new."""
        found = await self._read(
            "consent", "POST", "/documents", dict[str, list[str]], json=file.model_dump(mode="json")
        )
        return found["changed"]

    async def document(self, digest: str) -> ConsentFile:
        """A consent document with every signature under it; `digest` may be the beginning of one."""
        if len(digest) < 64:
            known = [item["digest"] for item in await self.documents() if item["digest"].startswith(digest)]
            if len(known) != 1:
                raise OperatorError(f"{digest}: {len(known)} documents begin so; `consent list` shows their digests")
            digest = known[0]
        return await self._read("consent", "GET", f"/documents/{digest}", ConsentFile)

    async def documents(self) -> list[dict[str, Any]]:
        """Every consent document, and how it stands now."""
        return await self._pages("consent", "/documents", dict[str, Any])

    async def withdrawals(self, study: str | None = None) -> list[dict[str, Any]]:
        """Every withdrawal, and how it stands now; the oldest first."""
        params = {} if study is None else {"study": study}
        found = await self._pages("consent", "/withdrawals", dict[str, Any], **params)
        return sorted(found, key=lambda one: (one["received_at"], one["withdrawal"]))

    async def close_withdrawal(self, digest: str) -> dict[str, Any]:
        """Its receipt was handed over."""
        return await self._read("consent", "POST", f"/withdrawals/{digest}/close", dict[str, Any])

    async def receipt(self, withdrawal: Mapping[str, Any]) -> ReceiptFile:
        """The receipt of a withdrawal, with the proofs that the study's log holds it."""
        signed = await self._ask("consent", "GET", f"/withdrawals/{withdrawal['withdrawal']}/receipt")
        proofs = {name: await self._proof(event) for name, event in withdrawal["events"].items()}
        return ReceiptFile(statement=signed.text, trust=await self.trust(), **proofs)

    async def _proof(self, event_id: str) -> str:
        """The proof that a log holds consent's event, as C2SP tlog-proof."""
        path, params = f"/events/{event_id}/proof", {"key_id": "service:consent"}
        left, found = ON_ITS_WAY_S, dict[str, Any]()
        while not found:
            try:
                found = await self._read("audit", "GET", path, dict[str, Any], params=params)
            except OperatorError as error:
                if error.code != "event_unknown" or not left:
                    raise
                left -= 1
                await asyncio.sleep(1.0)
        proof = found["proof"]
        hashes = tuple(bytes.fromhex(value) for value in proof["hashes"])
        return LogProof(found["entry"].encode(), proof["index"], hashes, found["checkpoint"]).text()

    async def submit(self, study_text: str) -> RunSummary:
        """Submit a study file; the answer is its run."""
        headers = {"Content-Type": "application/yaml"}
        return await self._read(
            "scheduler", "POST", "/studies", RunSummary, content=study_text.encode(), headers=headers
        )

    async def runs(self) -> list[RunSummary]:
        """Every run, the newest first."""
        return await self._pages("scheduler", "/runs", RunSummary)

    async def run(self, run_id: str) -> RunStatus:
        return await self._read("scheduler", "GET", f"/runs/{run_id}", RunStatus)

    async def lineage(self, run_id: str) -> RunLineage:
        """Every version of a run, and whose data it learnt from, page after page."""
        path, params, told = f"/runs/{run_id}/lineage", {"limit": MOST_ON_A_PAGE}, list[VersionLineage]()
        for _ in range(MOST_PAGES):
            found = await self._read("scheduler", "GET", path, RunLineage, params=params)
            told += found.versions
            if found.next is None:
                return found.model_copy(update={"versions": tuple(told)})
            params["after"] = found.next
        raise endless(f"scheduler's {path}")

    async def stop(self, run_id: str) -> RunSummary:
        return await self._read("scheduler", "POST", f"/runs/{run_id}/stop", RunSummary)

    async def budgets(self) -> list[SiteBudget]:
        """Privacy budgets of all sites, as hospitals' signed statements add up."""
        return await self._pages("consent", "/budgets", SiteBudget)

    async def model_bundle(self, run_id: str) -> bytes:
        """The signed model of a finished run, as a ZIP archive."""
        return await self._archive("aggregator", f"/runs/{run_id}/model")

    async def release(self, run_id: str) -> dict[str, Any]:
        """Who signed the release of a run's model, and who is missing."""
        return await self._read("aggregator", "GET", f"/runs/{run_id}/release", dict[str, Any])

    async def sign_release(self, run_id: str, envelope: bytes) -> dict[str, Any]:
        """Hand over signatures under a run's release; how it stands then."""
        return await self._read(
            "aggregator", "POST", f"/runs/{run_id}/release", dict[str, Any], json=json.loads(envelope)
        )

    async def witnessed_proof(self, event_id: str, *, wait_s: float = 10.0) -> str:
        """The proof that the log holds the aggregator's event, in a checkpoint that a quorum of hospitals cosigned;
        they are waited for so long. Raises `OperatorError` without one."""
        params = {"key_id": "service:aggregator", "witnessed": "true", "wait_s": f"{wait_s:g}"}
        return (await self._ask("audit", "GET", f"/events/{event_id}/tlog-proof", params=params)).text

    async def announcements(self, study_id: str) -> list[str]:
        """The log's entries in which hospitals name the keys that they cosign the study's log with."""
        views = await self._pages("audit", f"/logs/{study_id}/witnesses", dict[str, Any])
        return [one["announcement"] for one in views if one.get("announcement")]

    async def audit_bundle(self, study_id: str, *, wait_s: float = 10.0) -> bytes:
        """The study's whole log with its proofs, and the signed documents that its permissions rest on, as a ZIP
        archive. Hospitals' cosignatures are waited for so long. Papers come last: what the log tells is there."""
        made = io.BytesIO(await self._archive("audit", f"/studies/{study_id}/bundle?wait_s={wait_s:g}"))
        papers = await self._read("consent", "GET", f"/studies/{study_id}/papers", StudyPapers)
        with zipfile.ZipFile(made, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(PAPERS, papers.model_dump_json(indent=1) + "\n")
        return made.getvalue()

    async def platform_log(self) -> bytes:
        """The log of what belongs to no study, up to a checkpoint of now, with that and the trust document, as a ZIP
        archive."""
        note = (await self._ask("audit", "GET", f"/logs/{PLATFORM_LOG}/checkpoint")).text
        try:
            size, made = Checkpoint.parse(note).size, io.BytesIO()
        except LogRefused:
            raise OperatorError("audit answered with something that is no checkpoint", code="not_understood") from None
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("trust.json", (await self.trust()).model_dump_json(indent=1) + "\n")
            archive.writestr(f"checkpoints/{size:012}.txt", note)
            with archive.open("entries.jsonl", "w") as lines:
                for start in range(0, size, ENTRIES_AT_ONCE):
                    params = {"start": start, "end": min(start + ENTRIES_AT_ONCE, size)}
                    path = f"/logs/{PLATFORM_LOG}/entries"
                    lines.write((await self._ask("audit", "GET", path, params=params)).content)
        return made.getvalue()


async def every_item(ask: Callable[[Mapping[str, str]], Awaitable[Page[A]]], name: str) -> list[A]:
    """All of a list that is told in pages: `ask` gets the parameters that say which page. Raises `OperatorError` for
    a list without an end."""
    items: list[A] = []
    place = {"limit": str(MOST_ON_A_PAGE)}
    for _ in range(MOST_PAGES):
        page = await ask(place)
        items += page.items
        if page.next is None:
            return items
        place["after"] = page.next
    raise endless(name)


def endless(name: str) -> OperatorError:
    """The error about a list that goes on and on."""
    text = f"{name} has no end after {MOST_PAGES} pages; does the service of this version answer there?"
    return OperatorError(text, code="not_understood")


def problem_of(service: str, answer: httpx.Response) -> OperatorError:
    """The error that a service answered with, for people."""
    try:
        body = answer.json()
        text = body.get("detail") or answer.reason_phrase
        faults = [f"\n  {one['field']}: {one['fault']}" for one in body.get("errors") or () if "fault" in one]
        code = str(body["title"])
    except (ValueError, AttributeError, KeyError, TypeError):
        return OperatorError(
            f"{service} answered {answer.status_code} {answer.reason_phrase}; is it the {service} service that "
            "answers at its address in the operator settings?",
            code="http",
        )
    if code == "not_authorised":
        text = (
            "this is neither the operator's token nor a pass that opens this; check token_file in the operator settings"
        )
    return OperatorError(f"{service}: {text}{''.join(faults)}", code=code)
