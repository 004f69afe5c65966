"""A study's log for other systems: each form is what its standard says, and holds what the log holds."""

import asyncio
import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import prov.model
import pytest
from cli_stage import CommandLine, PlayedServices
from fhir.resources.R4B.auditevent import AuditEvent

from cohortium_kit.bus import Ack
from cohortium_kit.testing.clock import START
from cohortium_messages import events as ev
from cohortium_messages.envelope import Envelope
from cohortium_messages.events import FaultSeen, ReleaseSigned
from cohortium_messages.governance import Permit
from cohortium_messages.ids import RunId, SiteId, StudyId
from cohortium_messages.oversight import PreflightRecorded
from cohortium_messages.people import AuthFailed, AuthFailedAgain, AuthLogin
from cohortium_messages.topology import inbox
from cohortium_messages.withdrawals import ModelCarried, ModelRetired, SumSetAside, WithdrawalOverdue
from cohortium_verify.formats import fhir_lines, prov_json, syslog_lines
from cohortium_verify.log import Entry
from governance_stage import FEDERATION, STUDY, Stage, delivery
from study_story import RUN, bundle_of, model, recording, study_lines

SYSLOG = re.compile(
    r"^<(?P<pri>\d{1,3})>1 (?P<time>\S+) (?P<host>\S{1,255}) (?P<app>\S{1,48}) - (?P<msgid>[\x21-\x7e]{1,32}) "
    r'\[cohortium@32473(?P<data>( [^\s="\]]{1,32}="([^"\\\]]|\\["\\\]])*")*)\]$'
)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    folder = tmp_path_factory.mktemp("convert")

    async def make() -> tuple[Path, int]:
        stage = Stage.at(folder)
        lines = study_lines(stage)
        return (await bundle_of(stage, lines, folder / "result")).parent, len(lines)

    return asyncio.run(make())


def converted(cli: CommandLine, result: Path, form: str, out: Path) -> str:
    assert "entries" in cli.ok("audit", "convert", str(result), "--to", form, "--out", str(out))
    return out.read_text()


def test_fhir(cli: CommandLine, result: tuple[Path, int], tmp_path: Path) -> None:
    lines = converted(cli, result[0], "fhir", tmp_path / "log.ndjson").splitlines()
    found = [AuditEvent.model_validate_json(line) for line in lines]
    log = hashlib.sha256(f"{FEDERATION}/audit/{STUDY}".encode()).hexdigest()[:16]
    assert [event.id for event in found] == [f"{STUDY[:28]}-{log}-{index}" for index in range(result[1])]
    assert {event.outcome for event in found} == {"0"}
    kinds = {event.subtype[0].code: event.action for event in found}
    assert kinds["model_released"] == "C"
    assert kinds["aggregate_opened"] == "E"
    assert found[0].source.observer.identifier.value == f"{FEDERATION}/audit/{STUDY}"


def test_syslog(cli: CommandLine, result: tuple[Path, int], tmp_path: Path) -> None:
    lines = converted(cli, result[0], "syslog", tmp_path / "log.txt").splitlines()
    assert len(lines) == result[1]
    for line in lines:
        match = SYSLOG.match(line)
        assert match, line
        assert int(match["pri"]) == 13 * 8 + 6
    assert any("model_released" in line for line in lines)


def test_what_must_be_escaped_is_and_faults_are_warnings() -> None:
    message = FaultSeen(key_id="site:a", code="BAD_SIGNATURE")
    envelope = Envelope.model_validate(
        {
            "id": "event-0001",
            "source": "/scheduler",
            "type": message.type_name,
            "time": "2026-01-01T00:00:00Z",
            "study": STUDY,
            "data": message.model_dump(mode="json"),
        }
    )
    odd = Entry(3, 'key"with\\odd]signs', envelope, message)
    (line,) = syslog_lines([odd], "fl.example.org/audit/x")
    match = SYSLOG.match(line)
    assert match, line
    assert int(match["pri"]) == 13 * 8 + 4
    assert r'by="key\"with\\odd\]signs"' in line


def test_prov(cli: CommandLine, result: tuple[Path, int], tmp_path: Path) -> None:
    text = converted(cli, result[0], "prov", tmp_path / "lineage.json")
    document = prov.model.ProvDocument.deserialize(io.StringIO(text), format="json")
    entities = {str(record.identifier) for record in document.get_records(prov.model.ProvEntity)}
    models = sorted(name for name in entities if "/model/" in name or ":model/" in name)
    assert [name.rpartition("/")[2] for name in models] == ["0", "1"]
    raw: dict[str, Any] = json.loads(text)
    derived = {(one["prov:generatedEntity"], one["prov:usedEntity"]) for one in raw["wasDerivedFrom"].values()}
    assert (models[1], models[0]) in derived
    sites = {one["prov:agent"] for one in raw["wasAssociatedWith"].values()}
    assert len(sites) == 4
    begun = {one["prov:entity"] for one in raw["used"].values()}
    assert begun == {models[0]}


def told(message: ev.AuditEvent, study: str | None = None) -> Envelope:
    return Envelope(
        id="e" * 32,
        source="/x",
        type=message.type_name,
        time=START,
        study=None if study is None else StudyId(study),
        data={},
    )


SITE = SiteId("10000000-0000-4000-8000-000000000001")
WINDOW: dict[str, Any] = {"run_id": RUN, "window_id": b"i" * 16}


def ended(state: str) -> ev.WindowEnded:
    return ev.WindowEnded.model_validate({**WINDOW, "purpose": "update", "state": state})


def authorised(permit: Permit) -> ev.WindowAuthorised:
    return ev.WindowAuthorised(**WINDOW, round=1, purpose="update", params_hash=b"p" * 32, permits=(permit,))


def trial(*failed: str) -> PreflightRecorded:
    return PreflightRecorded.model_validate({"site_id": SITE, "report_sha256": b"r" * 32, "failed": failed})


FORK = ev.ForkDetected(site_id=SITE, held_size=1, held_root=b"h" * 32, offered_size=1, offered_root=b"o" * 32)


@pytest.mark.parametrize(
    ("message", "severity", "outcome"),
    [
        (FORK, 2, "8"),
        (AuthFailed(person=None, method="local", reason="WRONG_PASSWORD"), 4, "4"),
        (AuthFailedAgain(person=None, method="local", count=8), 4, "4"),
        (ev.BrokerRefusal(site_id=SITE, code="LOGIN_REFUSED", count=2), 4, "4"),
        (ev.TaskDeclined(**WINDOW, site_id=SITE, code="NO_GRANT"), 4, "4"),
        (SumSetAside(**WINDOW, sites=(SITE,), opened=True), 4, "4"),
        (WithdrawalOverdue(withdrawal=b"w" * 32, deadline="DECIDED", due=START), 4, "4"),
        (ev.SiteRevocation(site_id=SITE, reason="KEY_LOST"), 4, "4"),
        (ev.GrantStopped(site_id=SITE, study_digest=b"d" * 32, reason="WITHDRAWN"), 4, "4"),
        (ev.BrokerCut(site_id=SITE, reason="SITE_REVOKED", connections=1), 4, "4"),
        (authorised(Permit(site_id=SITE, permitted=False, deny_code="EPSILON_EXHAUSTED")), 4, "4"),
        (authorised(Permit(site_id=SITE, permitted=True)), 6, "0"),
        (ended("FAILED_INTEGRITY"), 4, "4"),
        (ended("ABORTED"), 4, "4"),
        (ended("RELEASED"), 6, "0"),
        (ev.RunStateChanged(run_id=RUN, state="FAILED"), 4, "4"),
        (ev.RunStateChanged(run_id=RUN, state="FINISHED"), 6, "0"),
        (trial("connection"), 4, "4"),
        (trial(), 6, "0"),
        (AuthLogin(person="olga", method="local", mfa=True), 6, "0"),
    ],
)
def test_failures_and_refusals_are_told_as_such(message: ev.AuditEvent, severity: int, outcome: str) -> None:
    entry = Entry(1, "service:x", told(message), message)
    (line,), (resource,) = syslog_lines([entry], "x.example/audit/x"), fhir_lines([entry], "x.example/audit/x")
    assert line.startswith(f"<{13 * 8 + severity}>1 ")
    event = AuditEvent.model_validate_json(resource)
    assert event.outcome == outcome
    carried_out = isinstance(message, ev.SiteRevocation | ev.GrantStopped | ev.BrokerCut)
    assert ("carried out" in (event.outcomeDesc or "")) == carried_out


def test_fhir_ids_of_long_names_fit_and_differ() -> None:
    names = ["s" * 62 + end for end in "ab"]
    entries = [Entry(place, "service:x", told(FORK, name), FORK) for name in names for place in (0, (1 << 53) - 1)]
    lines = [line for one in entries for line in fhir_lines([one], f"x.example/audit/{one.envelope.study}")]
    found = [AuditEvent.model_validate_json(line).id for line in lines]
    assert len(set(found)) == 4
    assert all(re.fullmatch(r"[A-Za-z0-9.-]{1,64}", one or "") for one in found)


def test_a_run_that_begins_with_another_runs_model_descends_from_it() -> None:
    again = RunId("b0000000-0000-4000-8000-00000000000b")
    said = [
        ev.ModelReleased(run_id=RUN, model=model(1), parent=None, window_id=b"1" * 16),
        ModelCarried(run_id=again, model=model(1), from_run=RUN),
        ev.ModelReleased(run_id=again, model=model(2), parent=model(1), window_id=b"2" * 16),
    ]
    made = prov_json([Entry(at, "service:aggregator", told(one), one) for at, one in enumerate(said)], "x.example/a")
    old, carried, new = f"cohortium:model/{RUN}/1", f"cohortium:model/{again}/1", f"cohortium:model/{again}/2"
    assert set(made["entity"]) == {old, carried, new}
    assert made["entity"][carried]["cohortium:sha256"] == made["entity"][old]["cohortium:sha256"]
    assert made["wasDerivedFrom"] == {
        "_:d1": {"prov:generatedEntity": carried, "prov:usedEntity": old},
        "_:d2": {"prov:generatedEntity": new, "prov:usedEntity": carried},
    }
    prov.model.ProvDocument.deserialize(io.StringIO(json.dumps(made)), format="json")


def test_a_release_is_attributed_to_the_people_who_signed_it() -> None:
    message = ReleaseSigned(
        run_id=RUN,
        model=model(1),
        attestation_sha256=b"a" * 32,
        release_sha256=b"r" * 32,
        officers=(b"o" * 32,),
        sites=(),
    )
    retired = ModelRetired(run_id=RUN, model=model(0), withdrawal=b"w" * 32)
    said = [Entry(7 + place, "service:aggregator", told(one), one) for place, one in enumerate((message, retired))]
    made = prov_json(said, "test.example/audit/x")
    assert made["wasInvalidatedBy"]["_:i8"]["prov:entity"] == f"cohortium:model/{RUN}/0"
    release, officer = f"cohortium:release/{(b'r' * 32).hex()}", f"cohortium:officer/{(b'o' * 32).hex()}"
    assert made["wasAttributedTo"] == {"_:t0": {"prov:entity": release, "prov:agent": officer}}
    assert made["wasDerivedFrom"]["_:d7"]["prov:usedEntity"] == f"cohortium:bundle/{(b'a' * 32).hex()}"
    prov.model.ProvDocument.deserialize(io.StringIO(json.dumps(made)), format="json")


def test_a_log_that_was_touched_is_not_converted(cli: CommandLine, result: tuple[Path, int], tmp_path: Path) -> None:
    shutil.copytree(result[0], tmp_path / "copy")
    file = tmp_path / "copy" / "audit" / "entries.jsonl"
    file.write_bytes(file.read_bytes().replace(b"FINISHED", b"STOPPED\x20", 1))
    words = ("audit", "convert", str(tmp_path / "copy"), "--to", "fhir", "--out", str(tmp_path / "out"))
    assert "cohortium verify" in cli.error(*words, code=1)
    assert not (tmp_path / "out").exists()


@dataclass(frozen=True, slots=True)
class PlatformLog:
    """The log of what belongs to no study, as the audit service hands it out, and who may be asked about keys."""

    entries: bytes
    note: str
    trust: str

    def written(self, folder: Path) -> list[str]:
        """As files; the words of the command that name them."""
        for name, text in (
            ("log.jsonl", self.entries),
            ("note.txt", self.note.encode()),
            ("t.json", self.trust.encode()),
        ):
            (folder / name).write_bytes(text)
        found = {"--entries": "log.jsonl", "--trust": "t.json", "--checkpoint": "note.txt"}
        return [word for option, name in found.items() for word in (option, str(folder / name))]


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> PlatformLog:
    folder = tmp_path_factory.mktemp("platform")

    async def make() -> PlatformLog:
        stage = Stage.at(folder)
        site = stage.hospitals[0]
        fault = FaultSeen(key_id="service:aggregator", code="BAD_SIGNATURE")
        async with recording(stage) as app:
            for outgoing in (
                stage.event(
                    "enrolment", ev.SiteEnrolled(site_id=site.site_id, identity_pk=site.key.public), study=None
                ),
                stage.event("consent", AuthLogin(person="olga", method="local", mfa=True), study=None),
                stage.event("consent", AuthFailed(person=None, method="local", reason="WRONG_PASSWORD"), study=None),
                stage.from_site(site, "audit", fault),
            ):
                assert await app.consumer.handle(delivery(outgoing, inbox("audit"))) == Ack()
            async with stage.client(app) as client:
                note = (await client.get("/logs/-/checkpoint")).raise_for_status().text
                entries = (await client.get("/logs/-/entries")).raise_for_status().content
        return PlatformLog(entries, note, stage.files.trust.model_dump_json())

    return asyncio.run(make())


def test_the_platforms_log_is_converted_with_sign_ins_and_refusals(
    cli: CommandLine, platform: PlatformLog, services: PlayedServices, tmp_path: Path
) -> None:
    words, out = platform.written(tmp_path), str(tmp_path / "out")
    cli.ok("audit", "convert", *words, "--to", "syslog", "--out", out)
    lines = Path(out).read_text().splitlines()
    told = [(int(match["pri"]) % 8, match["msgid"]) for match in map(SYSLOG.match, lines) if match]
    assert told == [(6, "site_enrolled"), (6, "auth_login"), (4, "auth_failed"), (4, "fault_seen")]
    assert cli.facts("audit", "convert", *words, "--from", "2", "--to", "syslog", "--out", out)["entries"] == 2
    assert Path(out).read_text().splitlines() == lines[2:], "the same lines as before"
    services.answer("GET /logs/-/checkpoint", platform.note.encode())
    services.answer("GET /logs/-/entries?start=0&end=4", platform.entries)
    services.answer("GET /trust", json.loads(platform.trust))
    text = cli.ok("audit", "export", "-", "--out", str(tmp_path / "exported"))
    assert f"cohortium audit convert {tmp_path / 'exported'} --to syslog" in text
    cli.ok("audit", "convert", str(tmp_path / "exported"), "--to", "fhir", "--out", out)
    found = [AuditEvent.model_validate_json(line) for line in Path(out).read_text().splitlines()]
    assert [event.source.observer.identifier.value for event in found] == [f"{FEDERATION}/audit/-"] * 4


@pytest.mark.parametrize(
    ("name", "change", "code", "said"),
    [
        ("log.jsonl", lambda data: data.replace(b"WRONG_PASSWORD", b"WRONG_PASSPHRASE"), 1, "entry 2: its signature"),
        ("log.jsonl", lambda data: data.partition(b"\n")[2], 1, "entry 2: it is signed by site:"),
        ("log.jsonl", lambda data: data[: data[:-1].rindex(b"\n") + 1], 1, "of 4 entries, the bundle holds 3"),
        ("log.jsonl", lambda data: data + data[: data.index(b"\n") + 1], 1, "entry 4: the same event is entry 0"),
        ("log.jsonl", lambda data: data[:-1], 2, "log.jsonl: the last line is not complete"),
        ("log.jsonl", lambda data: b"[]\n", 1, "entry 0: it is not a log entry"),
        ("note.txt", lambda data: data.replace(b"/audit/-", b"/audit/x"), 1, "is not a checkpoint of"),
        ("t.json", lambda data: b"{}", 2, "t.json"),
    ],
)
def test_no_log_is_converted_that_does_not_hold(
    cli: CommandLine,
    platform: PlatformLog,
    tmp_path: Path,
    name: str,
    change: Callable[[bytes], bytes],
    code: int,
    said: str,
) -> None:
    words, file = platform.written(tmp_path), tmp_path / name
    file.write_bytes(change(file.read_bytes()))
    out = tmp_path / "out"
    assert said in cli.error("audit", "convert", *words, "--to", "syslog", "--out", str(out), code=code)
    assert not out.exists()


def test_a_studys_entries_need_the_keys_of_its_hospitals(
    cli: CommandLine, result: tuple[Path, int], tmp_path: Path
) -> None:
    whole, audit = converted(cli, result[0], "syslog", tmp_path / "whole"), result[0] / "audit"
    words = ["audit", "convert", "--entries", str(audit / "entries.jsonl"), "--trust", str(audit / "trust.json")]
    words += ["--to", "syslog", "--out", str(tmp_path / "out")]
    assert "which neither the trust document nor a manifest names" in cli.error(*words, code=1)
    cli.ok(*words, "--manifest", str(audit / "manifests" / "000001.json"))
    assert (tmp_path / "out").read_text() == whole


def test_a_folder_or_files_and_not_both(cli: CommandLine, result: tuple[Path, int], tmp_path: Path) -> None:
    out = ("--to", "fhir", "--out", str(tmp_path / "out"))
    assert "--entries with --trust" in cli.error("audit", "convert", *out, code=2)
    assert "--entries with --trust" in cli.error("audit", "convert", "--entries", "x", *out, code=2)
    assert "leave out --entries" in cli.error("audit", "convert", str(result[0]), "--trust", "x", *out, code=2)
    assert "the file is missing" in cli.error("audit", "convert", "--entries", "x", "--trust", "y", *out, code=2)
