"""The operator's commands against running services: what they show, and what they say when it cannot be."""

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from cli_stage import RUN_ID, SITE_ID, STUDY, TOKEN, CommandLine, Federation, PlayedServices, run_status, run_summary

from cohortium_kit.testing.servers import free_port

MANIFEST = {
    "study_id": "heart-disease",
    "version": 1,
    "prev_hash": "00" * 32,
    "study_digest": "5a" * 32,
    "members": [
        {"site_id": f"00000000-0000-4000-8000-00000000000{number}", "name": name, "identity_pk": f"0{number}" * 32}
        for number, name in ((1, "North"), (2, "South"), (3, "West"))
    ],
    "collusion": 0,
    "k_min_floor": 0,
    "signatures": [],
}
PAPERS = {
    "study_id": "heart-disease",
    "file": {"people": [], "ended_cards": [], "records": []},
    "grants": [],
    "withdrawals": [],
}
ASKING = [
    ["runs"],
    ["run-status", RUN_ID],
    ["study", "submit", "study.yaml"],
    ["model", "export", RUN_ID, "--out", "model.zip"],
    ["audit", "export", "heart-disease", "--out", "log"],
    ["site", "invite", "North", "--out", "invitation.json"],
    ["site", "revoke", "11111111-1111-4111-8111-111111111111", "--yes"],
    ["governance", "draft", "study.yaml", "--out", "draft.json"],
    ["governance", "publish", "manifest.json"],
]


@pytest.fixture(autouse=True)
def files(cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST))


def archive(**files: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as bundle:
        for name, data in files.items():
            bundle.writestr(name.replace("__", "/"), data)
    return made.getvalue()


@pytest.mark.parametrize("words", ASKING, ids=lambda words: " ".join(words[:2]))
class TestWhatEveryCommandSays:
    def test_without_settings(self, words: list[str], cli: CommandLine) -> None:
        text = cli.error(*words, code=2)
        for part in ("operator.yaml do not exist", "--operator", "COHORTIUM_OPERATOR", "cohortium init"):
            assert part in text

    def test_when_no_service_runs(self, words: list[str], cli: CommandLine, federation: Federation) -> None:
        settings, port = federation.folder / "operator.yaml", free_port()
        settings.write_text(re.sub(r"127\.0\.0\.1:87\d\d", f"127.0.0.1:{port}", settings.read_text()))
        text = cli.error(*words, "--operator", "fed/operator.yaml", code=1)
        assert f"does not answer at http://127.0.0.1:{port}" in text
        assert "is it running" in text

    def test_when_another_program_answers(self, words: list[str], cli: CommandLine, services: PlayedServices) -> None:
        text = cli.error(*words, code=1)
        assert "answered 404" in text
        assert "its address in the operator settings" in text

    def test_when_the_token_is_not_its_own(self, words: list[str], cli: CommandLine, services: PlayedServices) -> None:
        services.answers = dict.fromkeys(
            ("GET /runs?limit=200", f"GET /runs/{RUN_ID}", "POST /studies", f"GET /runs/{RUN_ID}/model",
             "GET /studies/heart-disease/bundle?wait_s=10", "POST /sites", "GET /sites?limit=200", "POST /manifests",
             "POST /sites/11111111-1111-4111-8111-111111111111/revoke"),
            (401, json.dumps({"title": "not_authorised", "detail": "x"}).encode()),
        )  # fmt: skip
        assert "check token_file" in cli.error(*words, code=1)


class TestSettings:
    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("a: [", "not YAML at line 1"),
            ("just words", "not a mapping"),
            ("token_file: t\naudit: 127.0.0.1:1\ncolour: blue\n", "audit: not an address; write http://HOST:PORT"),
            ("token_file: t\naudit: 127.0.0.1:1\ncolour: blue\n", "colour: unknown"),
            ("token_file: t\naudit: 127.0.0.1:1\ncolour: blue\n", "scheduler: missing"),
        ],
    )
    def test_every_fault_is_named(self, text: str, said: str, cli: CommandLine, tmp_path: Path) -> None:
        (tmp_path / "operator.yaml").write_text(text)
        found = cli.error("runs", code=2)
        assert "operator.yaml" in found
        assert said in found

    def test_a_token_that_is_missing_or_open_is_named(
        self, cli: CommandLine, tmp_path: Path, services: PlayedServices
    ) -> None:
        (tmp_path / "operator.token").chmod(0o644)
        assert "operator.token is open to others: chmod 600" in cli.error("runs", code=2)
        (tmp_path / "operator.token").unlink()
        assert "operator.token" in cli.error("runs", code=2)

    def test_the_environment_names_them_too(
        self, cli: CommandLine, tmp_path: Path, services: PlayedServices, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        services.listed("GET /runs", [])
        monkeypatch.setenv("COHORTIUM_OPERATOR", str(services.settings))
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert cli.facts("runs") == []
        assert services.asked[-1][3] == f"Bearer {TOKEN}"


class TestRuns:
    def test_they_are_listed(self, cli: CommandLine, services: PlayedServices) -> None:
        ended = run_summary(state="FAILED", reason="TOO_FEW_SITES", sentence="Too few hospitals were left.")
        services.listed("GET /runs", [run_summary(), ended])
        text = cli.ok("runs")
        for part in (RUN_ID, "TRAINING", "2/3", "FAILED", "Too few hospitals were left."):
            assert part in text
        assert [one["state"] for one in cli.facts("runs")] == ["TRAINING", "FAILED"]

    def test_all_pages_are_asked_for(self, cli: CommandLine, services: PlayedServices) -> None:
        runs = [run_summary(round=number, rounds=9) for number in range(5)]
        services.listed("GET /runs", runs, on_a_page=2)
        assert [one["round"] for one in cli.facts("runs")] == [0, 1, 2, 3, 4]
        assert len(services.asked) == 3

    def test_a_list_without_end_is_given_up(
        self, cli: CommandLine, services: PlayedServices, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("cohortium_cli.operator.MOST_PAGES", 2)
        services.listed("GET /runs", [run_summary()] * 3, on_a_page=1)
        assert "has no end after 2 pages" in cli.error("runs", code=1)

    def test_none_is_a_sentence_and_an_empty_list(self, cli: CommandLine, services: PlayedServices) -> None:
        services.listed("GET /runs", [])
        assert "no runs yet" in cli.ok("runs")
        assert cli.facts("runs") == []

    def test_one_is_shown_with_rounds_sites_and_window(self, cli: CommandLine, services: PlayedServices) -> None:
        services.answer(f"GET /runs/{RUN_ID}", run_status())
        text = cli.ok("run-status", RUN_ID)
        for part in ("TRAINING, round 2 of 3", "open window: update, round 2, attempt 2", "North", "South", "West"):
            assert part in text
        facts = cli.facts("run-status", RUN_ID)
        assert facts["rounds_done"][0]["refused"] == ["West"]
        assert facts["sites"][0]["code"] == "VALUE_OUT_OF_RANGE"

    def test_deadlines_are_told_with_their_reasons(self, cli: CommandLine, services: PlayedServices) -> None:
        quick = {"site": "North", "source": "measured", "answers": 9, "expected_s": 4, "ready_s": 30, "upload_s": 60}
        slow = {"site": "South", "source": "report", "answers": 0, "expected_s": 51, "ready_s": 510, "upload_s": 120}
        new = {"site": "West", "source": "unknown", "answers": 1}
        told = {"ready_s": 510, "upload_s": 120, "sites": [quick, slow]}
        ended = {**run_status()["rounds_done"][0], "pace": {"ready_s": 3600, "upload_s": 900, "sites": [quick, new]}}
        window = {**run_status()["window"], "pace": told}
        services.answer(f"GET /runs/{RUN_ID}", run_status(window=window, rounds_done=[ended]))
        text = cli.ok("run-status", RUN_ID)
        assert (
            "waits up to 510 s for the sites: South should need about 51 s, by its report of machine and line; "
            "for uploads up to 120 s, by the line that South reported"
        ) in text
        assert (
            "round 1 waited up to 3600 s for the sites, the study's time, as too little is known of West; "
            "for uploads up to 900 s, the study's time, as the line of West was not measured"
        ) in text

    def test_names_from_outside_steer_no_terminal(self, cli: CommandLine, services: PlayedServices) -> None:
        status: dict[str, Any] = run_status()
        status["sites"][0]["name"] = "[red]North[/red]\x1b[2J\u202e"
        services.answer(f"GET /runs/{RUN_ID}", status)
        text = cli.ok("run-status", RUN_ID)
        assert "[red]North[/red]" in text
        assert "\x1b[2J" not in text
        assert "\u202e" not in text

    def test_what_is_no_run_is_said_before_anybody_is_asked(self, cli: CommandLine, services: PlayedServices) -> None:
        for words in (["run-status", "../sites"], ["model", "export", "latest", "--out", "model.zip"]):
            text = cli.error(*words, code=2)
            assert "is not a run's id; `cohortium runs` lists them" in text
        assert services.asked == []

    def test_an_unknown_run_is_named(self, cli: CommandLine, services: PlayedServices) -> None:
        services.problem(f"GET /runs/{RUN_ID}", 404, "RUN_NOT_FOUND", f"there is no run {RUN_ID}")
        assert f"scheduler: there is no run {RUN_ID}" in cli.error("run-status", RUN_ID, code=1)

    def test_an_answer_of_another_version_is_no_traceback(self, cli: CommandLine, services: PlayedServices) -> None:
        services.listed("GET /runs", [{"id": 1}])
        assert "is not the scheduler service of this version" in cli.error("runs", code=1)


class TestStudies:
    def test_submitted(self, cli: CommandLine, services: PlayedServices) -> None:
        services.answer("POST /studies", run_summary(state="RECRUITING"), 201)
        assert cli.facts("study", "submit", "study.yaml")["run_id"] == RUN_ID
        assert services.asked[-1][2].decode() == STUDY
        assert f"cohortium run-status {RUN_ID}" in cli.ok("study", "submit", "study.yaml")

    def test_a_bad_one_is_told_before_anybody_is_asked(
        self, cli: CommandLine, services: PlayedServices, tmp_path: Path
    ) -> None:
        (tmp_path / "bad.yaml").write_text(STUDY.replace("rounds: 3", "rounds: 0"))
        assert "federation.rounds" in cli.error("study", "submit", "bad.yaml", code=2)
        assert "there is no study file gone.yaml" in cli.error("study", "submit", "gone.yaml", code=2)
        assert services.asked == []

    def test_the_services_list_of_faults_is_shown(self, cli: CommandLine, services: PlayedServices) -> None:
        faults = [{"field": "body.rounds", "fault": "too many"}]
        services.problem("POST /studies", 422, "invalid_request", "not valid: body.rounds", errors=faults)
        text = cli.error("study", "submit", "study.yaml", code=1)
        assert "scheduler: not valid: body.rounds\n  body.rounds: too many" in text


class TestExports:
    def test_a_model_that_is_not_there_yet(self, cli: CommandLine, services: PlayedServices, tmp_path: Path) -> None:
        services.problem(f"GET /runs/{RUN_ID}/model", 409, "MODEL_NOT_READY", "run is TRAINING")
        assert "aggregator: run is TRAINING" in cli.error("model", "export", RUN_ID, "--out", "model.zip", code=1)
        assert not (tmp_path / "model.zip").exists()

    def test_places_that_cannot_be_written(self, cli: CommandLine, services: PlayedServices, tmp_path: Path) -> None:
        assert "is a folder" in cli.error("model", "export", RUN_ID, "--out", str(tmp_path), code=2)

    def test_what_is_no_archive_is_not_written(
        self, cli: CommandLine, services: PlayedServices, tmp_path: Path
    ) -> None:
        services.answer(f"GET /runs/{RUN_ID}/model", b"<html>")
        assert "no ZIP archive" in cli.error("model", "export", RUN_ID, "--out", "model.zip", code=1)
        assert not (tmp_path / "model.zip").exists()

    def test_a_log(self, cli: CommandLine, services: PlayedServices, tmp_path: Path) -> None:
        services.answer("GET /studies/heart-disease/bundle?wait_s=10", archive(trust=b"{}", proofs__inclusion=b"[]"))
        services.answer("GET /studies/heart-disease/papers", PAPERS)
        facts = cli.facts("audit", "export", "heart-disease", "--out", "log")
        assert sorted(facts["files"]) == ["consent.json", "proofs/inclusion", "trust"]
        assert (tmp_path / "log" / "proofs" / "inclusion").read_bytes() == b"[]"
        text = cli.error("audit", "export", "heart-disease", "--out", "log", code=1)
        assert "log is not empty; choose another folder" in text
        assert "cohortium verify other" in cli.ok("audit", "export", "heart-disease", "--out", "other")

    def test_a_log_never_leaves_its_folder(self, cli: CommandLine, services: PlayedServices, tmp_path: Path) -> None:
        services.answer("GET /studies/heart-disease/bundle?wait_s=10", archive(good=b"", **{"..__evil": b""}))
        services.answer("GET /studies/heart-disease/papers", PAPERS)
        assert "outside of its folder" in cli.error("audit", "export", "heart-disease", "--out", "log", code=1)
        assert not (tmp_path / "evil").exists()
        assert not (tmp_path / "log").exists()

    def test_a_study_that_nobody_knows(self, cli: CommandLine, services: PlayedServices) -> None:
        services.problem("GET /studies/lungs/bundle?wait_s=10", 404, "log_unknown", "nothing is recorded for lungs yet")
        assert "audit: nothing is recorded for lungs" in cli.error("audit", "export", "lungs", "--out", "log", code=1)
        assert "is not a study's name" in cli.error("audit", "export", "../runs", "--out", "log", code=2)


class TestInvite:
    def test_a_hospital(
        self, cli: CommandLine, federation: Federation, services: PlayedServices, tmp_path: Path
    ) -> None:
        made = json.loads(federation.invitation(tmp_path / "made.json").read_text())
        services.answer("POST /sites", made, 201)
        facts = cli.facts("site", "invite", "North", "--out", "invitation.json")
        assert facts["site_id"] == SITE_ID
        assert (tmp_path / "invitation.json").stat().st_mode & 0o077 == 0
        assert json.loads(services.asked[-1][2]) == {"name": "North"}

    def test_nothing_is_asked_for_that_could_not_be_kept(
        self, cli: CommandLine, services: PlayedServices, tmp_path: Path
    ) -> None:
        (tmp_path / "there.json").write_text("{}")
        assert "there.json is there already" in cli.error("site", "invite", "North", "--out", "there.json", code=2)
        assert "there is no folder" in cli.error("site", "invite", "North", "--out", "gone/a.json", code=2)
        assert "'No/rth' cannot be a site's name" in cli.error("site", "invite", "No/rth", "--out", "a.json", code=2)
        assert services.asked == []

    def test_a_name_that_is_taken(self, cli: CommandLine, services: PlayedServices) -> None:
        faults = [{"field": "name", "text": "an active site is called 'North'"}]
        services.problem("POST /sites", 409, "name_taken", "name: an active site is called 'North'", errors=faults)
        text = cli.error("site", "invite", "North", "--out", "a.json", code=1)
        assert text.count("an active site is called") == 1


class TestRevoke:
    def test_a_hospital_once_a_person_says_so(self, cli: CommandLine, services: PlayedServices) -> None:
        assert "give --yes" in cli.error("site", "revoke", SITE_ID, code=2)
        assert "is not a site's id" in cli.error("site", "revoke", "../sites", "--yes", code=2)
        assert services.asked == []
        services.answer(f"POST /sites/{SITE_ID}/revoke", {"site_id": SITE_ID, "name": "North", "state": "revoked"})
        assert cli.facts("site", "revoke", SITE_ID, "--yes")["state"] == "revoked"


class TestGovernance:
    @staticmethod
    def sites(*names: str, state: str = "active") -> list[dict[str, str]]:
        return [
            {"site_id": f"00000000-0000-4000-8000-00000000000{number}", "name": name, "state": state}
            for number, name in enumerate(names, start=1)
        ]

    def test_draft_sign_publish(
        self, cli: CommandLine, federation: Federation, services: PlayedServices, tmp_path: Path
    ) -> None:
        services.listed("GET /sites", [*self.sites("North", "South", "West"), *self.sites("East", state="invited")])
        services.answer("POST /manifests/draft", MANIFEST)
        services.answer("POST /manifests", {}, 201)
        facts = cli.facts("governance", "draft", "study.yaml", "--out", "m.json")
        assert facts["members"] == ["North", "South", "West"]
        assert len(json.loads(services.asked[-1][2])["site_ids"]) == 3
        for number in (1, 2):
            key = f"fed/governance/officer-{number}.key"
            assert cli.facts("governance", "sign", "m.json", "--key", key)["signatures"] == number
        assert "North, South, West" in cli.ok("governance", "publish", "m.json")
        assert len(json.loads(services.asked[-1][2])["signatures"]) == 2

    def test_a_member_that_is_not_enrolled_is_named(self, cli: CommandLine, services: PlayedServices) -> None:
        services.listed("GET /sites", self.sites("North", "South", "West"))
        text = cli.error("governance", "draft", "study.yaml", "--out", "m.json", "--site", "Nroth", code=1)
        assert "--site Nroth" in text
        assert "enrolled are: North, South, West" in text

    def test_too_few_members_are_said(self, cli: CommandLine, services: PlayedServices) -> None:
        services.listed("GET /sites", self.sites("North", "South"))
        text = cli.error("governance", "draft", "study.yaml", "--out", "m.json", code=1)
        assert "at least 3 members, and 2 would be" in text

    def test_wrong_files_are_named(self, cli: CommandLine, federation: Federation, tmp_path: Path) -> None:
        key = ("--key", "fed/governance/officer-1.key")
        assert "there is no manifest gone.json" in cli.error("governance", "sign", "gone.json", *key, code=2)
        assert "study.yaml is not a manifest" in cli.error("governance", "sign", "study.yaml", *key, code=2)
        assert "there is no study file x.yaml" in cli.error("governance", "draft", "x.yaml", "-o", "m.json", code=2)
        (tmp_path / "short.key").write_text("abcd\n")
        (tmp_path / "short.key").chmod(0o600)
        for file, said in (("gone.key", "gone.key"), ("short.key", "32-byte key"), ("study.yaml", "chmod 600")):
            assert said in cli.error("governance", "sign", "manifest.json", "--key", file, code=2)
