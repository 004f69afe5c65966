"""A command line for tests: runs a command, and never lets a traceback pass for an error message."""

import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from typer.testing import CliRunner

from cohortium_cli.app import app
from cohortium_messages.governance import Invitation, TrustDocument
from cohortium_messages.ids import SiteId

RUN_ID = "8f14e45f-ceea-467f-9c5b-0d8a5c3b7a11"
SITE_ID = "00000000-0000-4000-8000-000000000001"
TOKEN = "a-token"
STUDY = """\
apiVersion: cohortium/study/1
name: heart-disease
purpose: Predict coronary disease from routine findings
dataset:
  features:
    - {name: age, type: float, range: [18, 110]}
  label: {name: disease, type: binary}
  split: {test: 0.3, seed: 7}
recipe: {trainer: benchmark.noise, parameters: 100}
federation: {rounds: 3, min_sites: 3}
metrics: []
governance: trial
"""


@dataclass(frozen=True, slots=True)
class Said:
    """What a command said, without colours, and how it ended."""

    code: int
    out: str
    err: str


class CommandLine:
    """`cohortium`, in this process."""

    def __call__(self, *words: str) -> Said:
        environment = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
        done = CliRunner(env=environment).invoke(app, list(words), catch_exceptions=False)
        said = Said(done.exit_code, _plain(done.stdout), _plain(done.stderr))
        assert "Traceback" not in said.out + said.err
        return said

    def ok(self, *words: str) -> str:
        """A command that must succeed."""
        said = self(*words)
        assert said.code == 0, said.err
        return said.out

    def facts(self, *words: str) -> Any:
        """What it says with --json: one document and nothing else."""
        return json.loads(self.ok(*words, "--json"))

    def error(self, *words: str, code: int) -> str:
        """Its one error message: on standard error, nothing on standard output."""
        said = self(*words)
        assert said.code == code, f"{said.code}: {said.err}"
        assert said.out == ""
        assert said.err.startswith("error: ")
        assert said.err.count("error: ") == 1
        return said.err

    def usage_error(self, *words: str) -> str:
        """What is said of words that fit no option, exit code 2."""
        said = self(*words)
        assert said.code == 2, said.err
        return said.err


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@dataclass(frozen=True, slots=True)
class Federation:
    """What `cohortium init` made, and what it said."""

    folder: Path
    facts: dict[str, str]

    @property
    def trust(self) -> TrustDocument:
        return TrustDocument.model_validate_json((self.folder / "trust.json").read_bytes())

    def invitation(self, path: Path, *, ends_in_s: float = 3600.0) -> Path:
        """An invitation of this federation, as enrolment would have made it."""
        ends = datetime.now(UTC) + timedelta(seconds=ends_in_s)
        made = Invitation(site_id=SiteId(SITE_ID), name="North", token="t" * 40, expires_at=ends, trust=self.trust)
        path.write_text(made.model_dump_json(), encoding="utf-8")
        return path


class PlayedServices:
    """One HTTP server that plays all five services. `answers`: by method and path, status and body."""

    def __init__(self, folder: Path) -> None:
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.asked: list[tuple[str, str, bytes, str]] = []
        handler = type("Handler", (_Handler,), {"services": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.settings = folder / "operator.yaml"
        self.settings.write_text(operator_settings(self.url), encoding="utf-8")
        token = folder / "operator.token"
        token.write_text(TOKEN + "\n", encoding="ascii")
        token.chmod(0o600)

    def answer(self, asked: str, body: Any, status: int = 200) -> None:
        """From now on `GET /runs` (say) is answered with this."""
        self.answers[asked] = (status, body if isinstance(body, bytes) else json.dumps(body).encode())

    def listed(self, asked: str, items: Sequence[Any], *, on_a_page: int = 200) -> None:
        """From now on `GET /runs` (say) is answered with these, in pages; a thing's place is its number."""
        pages = [items[at : at + on_a_page] for at in range(0, len(items), on_a_page)] or [items]
        for number, page in enumerate(pages):
            behind = f"&after={number}" if number else ""
            more = str(number + 1) if number + 1 < len(pages) else None
            self.answer(f"{asked}?limit=200{behind}", {"items": list(page), "next": more})

    def problem(self, asked: str, status: int, title: str, detail: str, **more: Any) -> None:
        """From now on it is answered with this error."""
        self.answer(asked, {"title": title, "status": status, "detail": detail, **more}, status)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    services: PlayedServices

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.services.asked.append((self.command, self.path, body, self.headers.get("Authorization", "")))
        status, answer = self.services.answers.get(f"{self.command} {self.path}", (404, b"not here"))
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = _answer  # noqa: N815 - the server calls them so

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


def operator_settings(url: str) -> str:
    roles = ("enrolment", "consent", "scheduler", "aggregator", "audit")
    return "token_file: operator.token\n" + "".join(f"{role}: {url}\n" for role in roles)


def run_summary(**changes: Any) -> dict[str, Any]:
    """A run as the scheduler lists it."""
    return {
        "run_id": RUN_ID,
        "study_id": "heart-disease",
        "study_digest": "5a" * 32,
        "state": "TRAINING",
        "reason": "",
        "sentence": None,
        "round": 2,
        "rounds": 3,
        "created_at": "2026-11-21T09:30:00Z",
        "ended_at": None,
        **changes,
    }


def run_status(**changes: Any) -> dict[str, Any]:
    """A run as the scheduler shows it."""
    site = {"site_id": SITE_ID, "name": "North", "state": "silent", "last_seen": None, "progress": None}
    done = {"number": 1, "model_version": 1, "cohort": ["North"], "dropped": ["South"], "refused": ["West"]}
    return {
        **run_summary(),
        "purpose": "Predict",
        "mode": "synchronous",
        "model": None,
        "rounds_done": [{**done, "seconds": 0.5, "bytes_up": 1000, "bytes_down": 2000}],
        "window": {
            "purpose": "update",
            "round": 2,
            "attempt": 2,
            "phase": "OPEN",
            "opened_at": None,
            "ready": ["North"],
            "roster": [],
        },
        "sites": [{**site, "code": "VALUE_OUT_OF_RANGE", "updates_used": 1}],
        "secure_sum": None,
        "attempts_failed": 1,
        **changes,
    }
