"""`init`, `check-config`, `keygen`, `site join`: files, their rights, and what is said of wrong ones."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cli_stage import SITE_ID, CommandLine, Federation

from cohortium_cli.federation import ROLES
from cohortium_messages.governance import TrustDocument


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class TestInit:
    def test_its_settings_are_without_error_for_every_service(self, cli: CommandLine, federation: Federation) -> None:
        for role in ROLES:
            facts = cli.facts("check-config", role, "--config", federation.facts[f"config_{role}"])
            assert facts["valid"] is True
            assert "no errors" in cli.ok("check-config", role, "-c", federation.facts[f"config_{role}"])

    def test_what_is_secret_is_its_owners_alone(self, federation: Federation) -> None:
        for folder in ("secrets", "governance", "config", "data"):
            assert mode(federation.folder / folder) == 0o700
            assert all(mode(file) == 0o600 for file in (federation.folder / folder).iterdir())
        assert len(list((federation.folder / "secrets").iterdir())) == len(ROLES) + 3

    def test_a_federation_is_never_overwritten(self, cli: CommandLine, federation: Federation) -> None:
        before = federation.trust
        text = cli.error("init", "fed", code=2)
        assert "fed holds a federation already" in text
        assert federation.trust == before

    def test_a_half_made_federation_is_not_overwritten_either(self, cli: CommandLine, federation: Federation) -> None:
        (federation.folder / "trust.json").unlink()
        text = cli.error("init", "fed", code=2)
        assert "officer-1.key" in text
        assert "choose another place" in text

    def test_ports_follow_the_first_one(self, cli: CommandLine, tmp_path: Path) -> None:
        cli.ok("init", "fed", "--first-port", "9500")
        ports = [yaml.safe_load((tmp_path / f"fed/config/{role}.yaml").read_text())["http_port"] for role in ROLES]
        assert ports == [9500, 9501, 9502, 9503, 9504]
        operator = yaml.safe_load((tmp_path / "fed/operator.yaml").read_text())
        assert [operator[role] for role in ROLES] == [f"http://127.0.0.1:{port}" for port in ports]

    def test_federations_on_one_database_have_schemas_of_their_own(self, cli: CommandLine, tmp_path: Path) -> None:
        schemas = set()
        for name in ("one", "two"):
            cli.ok("init", name, "--namespace", f"{name}-x", "--database", "postgresql://db/x")
            schemas |= {
                yaml.safe_load((tmp_path / f"{name}/config/{role}.yaml").read_text())["schema"] for role in ROLES
            }
        assert len(schemas) == 2 * len(ROLES)
        assert "one_x_audit" in schemas

    def test_it_says_what_to_do_next(self, cli: CommandLine, tmp_path: Path) -> None:
        text = cli.ok("init", "fed")
        for words in ("cohortium migrate enrolment --config ", "cohortium run enrolment", "COHORTIUM_OPERATOR="):
            assert words in text
        assert str(tmp_path / "fed" / "config" / "enrolment.yaml") in text, "never broken, so that it can be copied"

    @pytest.mark.parametrize(
        ("option", "value", "named"),
        [
            ("--namespace", "Not One", "'Not One'"),
            ("--namespace", "", "--namespace"),
            ("--name", "A B", "'A B'"),
            ("--amqp", "http://user:pass@host", "amqp://"),
            ("--database", "mysql://user:pass@host/x", "postgresql://"),
        ],
    )
    def test_a_wrong_value_is_named_and_nothing_is_made(
        self, option: str, value: str, named: str, cli: CommandLine, tmp_path: Path
    ) -> None:
        text = cli.error("init", "fed", option, value, code=2)
        assert option in text
        assert named in text
        assert "pass" not in text.lower().replace("password", ""), "an address may hold a password"
        assert not (tmp_path / "fed").exists()

    @pytest.mark.parametrize("port", ["0", "65532", "http"])
    def test_ports_are_ports(self, port: str, cli: CommandLine) -> None:
        assert "--first-port" in cli.usage_error("init", "fed", "--first-port", port)

    def test_a_folder_that_cannot_be_made_is_named(self, cli: CommandLine, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        assert "file" in cli.error("init", "file/fed", code=2)


class TestCheckConfig:
    def test_a_missing_file_is_named(self, cli: CommandLine) -> None:
        assert "nowhere.yaml" in cli.error("check-config", "audit", "--config", "nowhere.yaml", code=2)

    def test_bad_yaml_is_told_with_its_line(self, cli: CommandLine, tmp_path: Path) -> None:
        (tmp_path / "bad.yaml").write_text("a: 1\nb: [\n")
        text = cli.error("check-config", "audit", "--config", "bad.yaml", code=2)
        assert "bad.yaml: not YAML at line 3" in text

    def test_every_fault_is_named_at_once(self, cli: CommandLine, federation: Federation) -> None:
        path = Path(federation.facts["config_audit"])
        values = yaml.safe_load(path.read_text())
        del values["trust_file"]
        path.write_text(yaml.safe_dump(values | {"colour": "blue", "http_port": 99999}))
        text = cli.error("check-config", "audit", "--config", str(path), code=2)
        for fault in ("trust_file: missing", "colour: unknown", "http_port: ", str(path)):
            assert fault in text
        said = cli("check-config", "audit", "--config", str(path), "--json")
        assert said.code == 2
        assert '"valid": false' in said.out

    @pytest.mark.parametrize("command", ["run", "migrate"])
    def test_services_do_not_start_with_wrong_settings(self, command: str, cli: CommandLine) -> None:
        for role in (*ROLES, "connector"):
            said = cli(command, role, "--config", "nowhere.yaml")
            assert said.code == 2
            assert "nowhere.yaml: No such file or directory" in said.err

    def test_a_service_without_its_tables_says_how_to_make_them(self, federation: Federation) -> None:
        words = ["run", "audit", "--config", federation.facts["config_audit"]]
        done = subprocess.run(
            [sys.executable, "-m", "cohortium_cli", *words], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 2
        assert "cohortium migrate audit" in done.stderr
        assert "Traceback" not in done.stderr


class TestKeygen:
    def test_the_key_is_new_and_its_owners_alone(self, cli: CommandLine, tmp_path: Path) -> None:
        public = cli.ok("governance", "keygen", "ada.key").strip()
        assert len(bytes.fromhex(public)) == 32
        assert mode(tmp_path / "ada.key") == 0o600
        kept = (tmp_path / "ada.key").read_text()
        assert "ada.key: File exists; choose another place" in cli.error("governance", "keygen", "ada.key", code=2)
        assert (tmp_path / "ada.key").read_text() == kept
        assert set(cli.facts("governance", "keygen", "grace.key")) == {"file", "public_key"}

    def test_a_folder_that_is_not_there_is_named(self, cli: CommandLine) -> None:
        assert "vault/ada.key: No such file or directory" in cli.error("governance", "keygen", "vault/ada.key", code=2)


class TestJoin:
    @pytest.fixture(autouse=True)
    def table(self, tmp_path: Path) -> None:
        (tmp_path / "table.csv").write_text("age,disease\n1,0\n")

    def test_the_connector_can_start_with_what_it_writes(
        self, cli: CommandLine, federation: Federation, tmp_path: Path
    ) -> None:
        federation.invitation(tmp_path / "invitation.json")
        facts = cli.facts("site", "join", "invitation.json", "--dir", "north", "--data", "table.csv")
        assert facts["site_id"] == SITE_ID
        assert facts["threshold"] == 2
        assert facts["governance_keys"] == [key.hex() for key in federation.trust.governance_keys]
        assert mode(tmp_path / "north") == 0o700
        assert mode(Path(facts["config"])) == mode(tmp_path / "north" / "invitation.json") == 0o600
        assert cli.facts("check-config", "connector", "--config", facts["config"])["valid"] is True
        status = cli.facts("site", "status", "--config", facts["config"])
        assert (status["name"], status["registered"]) == ("North", False)
        assert "not enrolled yet" in cli.ok("site", "status", "--config", facts["config"])
        assert cli.facts("site", "offers", "--config", facts["config"]) == []
        assert "No study was offered yet" in cli.ok("site", "offers", "--config", facts["config"])

    def test_the_officers_keys_are_shown_whole(self, cli: CommandLine, federation: Federation, tmp_path: Path) -> None:
        federation.invitation(tmp_path / "invitation.json")
        text = cli.ok("site", "join", "invitation.json", "--dir", "north", "--data", "table.csv")
        assert all(key.hex() in text for key in federation.trust.governance_keys)
        assert f"cohortium run connector --config {tmp_path / 'north' / 'connector.yaml'}" in text

    def test_settings_are_never_overwritten(self, cli: CommandLine, federation: Federation, tmp_path: Path) -> None:
        federation.invitation(tmp_path / "invitation.json")
        words = ("site", "join", "invitation.json", "--dir", "north", "--data", "table.csv")
        cli.ok(*words)
        assert "connector.yaml is there already" in cli.error(*words, code=2)

    @pytest.mark.parametrize(("option", "value"), [("--amqp", "broker.example"), ("--namespace", "North Sea")])
    def test_a_broker_that_cannot_be_is_refused_before_anything_is_written(
        self, cli: CommandLine, federation: Federation, tmp_path: Path, option: str, value: str
    ) -> None:
        federation.invitation(tmp_path / "invitation.json")
        words = ("site", "join", "invitation.json", "--dir", "north", "--data", "table.csv")
        assert f"error: {option}: " in cli.error(*words, option, value, code=2)
        assert not (tmp_path / "north").exists()
        cli.ok(*words)

    def test_an_invitation_that_ended_is_refused(
        self, cli: CommandLine, federation: Federation, tmp_path: Path
    ) -> None:
        federation.invitation(tmp_path / "old.json", ends_in_s=-60)
        text = cli.error("site", "join", "old.json", "--dir", "north", "--data", "table.csv", code=2)
        assert "old.json ended at" in text
        assert "ask the operator for a new one" in text

    def test_what_is_no_invitation_is_said(self, cli: CommandLine, federation: Federation, tmp_path: Path) -> None:
        words = ("--dir", "north", "--data", "table.csv")
        assert "there is no invitation nowhere.json" in cli.error("site", "join", "nowhere.json", *words, code=2)
        (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
        assert "bytes.json is not UTF-8" in cli.error("site", "join", "bytes.json", *words, code=2)
        assert "fed/trust.json is not an invitation" in cli.error("site", "join", "fed/trust.json", *words, code=2)

    def test_a_missing_table_is_named(self, cli: CommandLine, federation: Federation, tmp_path: Path) -> None:
        federation.invitation(tmp_path / "invitation.json")
        words = ("site", "join", "invitation.json", "--dir", "north", "--data", "gone.csv")
        assert "--data gone.csv: there is no such file" in cli.error(*words, code=2)
        assert not (tmp_path / "north").exists()

    def test_local_commands_name_what_is_wrong(self, cli: CommandLine, federation: Federation, tmp_path: Path) -> None:
        federation.invitation(tmp_path / "invitation.json")
        config = cli.facts("site", "join", "invitation.json", "--dir", "north", "--data", "table.csv")["config"]
        assert "nowhere.yaml" in cli.error("site", "status", "--config", "nowhere.yaml", code=2)
        approve = ("site", "approve", "heart-disease", "--config", config)
        assert "no offer 'heart-disease'" in cli.error(*approve, "--approver", "Dr. Ada", code=1)
        assert "no offer 'x'" in cli.error("site", "withdraw", "x", "--config", config, code=1)
        assert "--approver 'Ada; Grace'" in cli.error(*approve, "--approver", "Ada; Grace", code=2)
        many = [word for number in range(9) for word in ("--approver", f"Dr. {number}")]
        assert "at most 8 people" in cli.error(*approve, *many, code=2)


def test_the_trust_document_of_init_is_signed_by_both_officers(federation: Federation) -> None:
    trust = TrustDocument.model_validate_json((federation.folder / "trust.json").read_bytes())
    assert len(trust.signatures) == trust.threshold == len(trust.governance_keys) == 2
