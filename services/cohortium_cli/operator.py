"""The operator's side of the services' HTTP interfaces: what the command line and the simulator both speak."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import httpx
import yaml
from pydantic import Field, ValidationError

from cohortium_kit.errors import ConfigurationError
from cohortium_messages.governance import Invitation, Manifest, TrustDocument
from cohortium_messages.ids import Wire
from cohortium_messages.status import RunStatus, RunSummary

SERVICES = ("enrolment", "consent", "scheduler", "aggregator", "audit")
Url = Annotated[str, Field(pattern=r"^https?://[^\s/]+(:[0-9]+)?$")]


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
        """Read the file; raises `ConfigurationError` naming the field and the way out."""
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigurationError(
                f"the operator settings {path} do not exist; name them with --config or COHORTIUM_OPERATOR, "
                "or make a federation with `cohortium init`"
            ) from None
        except yaml.YAMLError as error:
            raise ConfigurationError(f"the operator settings {path} are not YAML: {error}") from None
        try:
            settings = cls.model_validate(values)
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
            raise ConfigurationError(f"the operator settings {path} have errors: {faults}") from None
        if settings.token_file.is_absolute():
            return settings
        return settings.model_copy(update={"token_file": path.parent / settings.token_file})


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
            answer = await self._clients[service].request(method, path, **kwargs)
        except httpx.HTTPError as error:
            raise OperatorError(
                f"the {service} service does not answer at {self._clients[service].base_url} "
                f"({type(error).__name__}); is it running, and is the address in the operator settings right?",
                code="unreachable",
            ) from error
        if answer.is_error:
            raise _problem(service, answer)
        return answer

    async def healthy(self, service: str) -> bool:
        """Whether the service says that it is ready."""
        try:
            await self._ask(service, "GET", "/readyz")
        except OperatorError:
            return False
        return True

    async def invite(self, name: str) -> Invitation:
        """A one-time invitation for a new site."""
        answer = await self._ask("enrolment", "POST", "/sites", json={"name": name})
        return Invitation.model_validate_json(answer.content)

    async def sites(self) -> list[dict[str, Any]]:
        """Every site that enrolment knows."""
        listed: list[dict[str, Any]] = (await self._ask("enrolment", "GET", "/sites")).json()
        return listed

    async def revoke(self, site_id: str) -> None:
        await self._ask("enrolment", "POST", f"/sites/{site_id}/revoke")

    async def trust(self) -> TrustDocument:
        return TrustDocument.model_validate_json((await self._ask("enrolment", "GET", "/trust")).content)

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
        answer = await self._ask("enrolment", "POST", "/manifests/draft", json=wanted)
        return Manifest.model_validate_json(answer.content)

    async def publish_manifest(self, manifest: Manifest) -> None:
        """Hand over a membership manifest that the officers have signed."""
        await self._ask("enrolment", "POST", "/manifests", json=manifest.model_dump(mode="json"))

    async def submit(self, study_text: str) -> RunSummary:
        """Submit a study file; the answer is its run."""
        headers = {"Content-Type": "application/yaml"}
        answer = await self._ask("scheduler", "POST", "/studies", content=study_text.encode(), headers=headers)
        return RunSummary.model_validate_json(answer.content)

    async def runs(self) -> list[RunSummary]:
        """The newest runs first."""
        listed = (await self._ask("scheduler", "GET", "/runs")).json()
        return [RunSummary.model_validate(item) for item in listed]

    async def run(self, run_id: str) -> RunStatus:
        return RunStatus.model_validate_json((await self._ask("scheduler", "GET", f"/runs/{run_id}")).content)

    async def stop(self, run_id: str) -> RunSummary:
        answer = await self._ask("scheduler", "POST", f"/runs/{run_id}/stop")
        return RunSummary.model_validate_json(answer.content)

    async def model_bundle(self, run_id: str) -> bytes:
        """The signed model of a finished run, as a ZIP archive."""
        return (await self._ask("aggregator", "GET", f"/runs/{run_id}/model")).content

    async def audit_bundle(self, study_id: str) -> bytes:
        """The study's whole log with its proofs, as a ZIP archive."""
        return (await self._ask("audit", "GET", f"/studies/{study_id}/bundle")).content


def _problem(service: str, answer: httpx.Response) -> OperatorError:
    try:
        body = answer.json()
        text = body.get("detail") or body.get("title") or answer.reason_phrase
        errors = body.get("errors") or []
        if errors:
            text += "\n" + "\n".join(str(item.get("text", item)) for item in errors)
        return OperatorError(f"{service}: {text}", code=str(body.get("code", answer.status_code)))
    except (ValueError, AttributeError):
        return OperatorError(f"{service} answered {answer.status_code} {answer.reason_phrase}", code="http")
