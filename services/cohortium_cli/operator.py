"""The operator's side of the services' HTTP interfaces: what the command line and the simulator both speak."""

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self, TypeVar

import httpx
import yaml
from pydantic import Field, TypeAdapter, ValidationError

from cohortium_kit.errors import ConfigurationError
from cohortium_kit.settings import read_secret_file
from cohortium_messages.governance import Invitation, Manifest, TrustDocument
from cohortium_messages.ids import Wire
from cohortium_messages.status import RunStatus, RunSummary

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
        return await self._read("enrolment", "GET", "/sites", list[dict[str, Any]])

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

    async def submit(self, study_text: str) -> RunSummary:
        """Submit a study file; the answer is its run."""
        headers = {"Content-Type": "application/yaml"}
        return await self._read(
            "scheduler", "POST", "/studies", RunSummary, content=study_text.encode(), headers=headers
        )

    async def runs(self) -> list[RunSummary]:
        """The newest runs first."""
        return await self._read("scheduler", "GET", "/runs", list[RunSummary])

    async def run(self, run_id: str) -> RunStatus:
        return await self._read("scheduler", "GET", f"/runs/{run_id}", RunStatus)

    async def stop(self, run_id: str) -> RunSummary:
        return await self._read("scheduler", "POST", f"/runs/{run_id}/stop", RunSummary)

    async def model_bundle(self, run_id: str) -> bytes:
        """The signed model of a finished run, as a ZIP archive."""
        return await self._archive("aggregator", f"/runs/{run_id}/model")

    async def audit_bundle(self, study_id: str) -> bytes:
        """The study's whole log with its proofs, as a ZIP archive."""
        return await self._archive("audit", f"/studies/{study_id}/bundle")


def _problem(service: str, answer: httpx.Response) -> OperatorError:
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
        text = "the operator's token is not its own; check token_file in the operator settings"
    return OperatorError(f"{service}: {text}{''.join(faults)}", code=code)
