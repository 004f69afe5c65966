"""What lies in deploy/ fits the services: settings, images, compose files, the seccomp rule."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cohortium_connector.training.isolation import CLONE_NEWNET, CLONE_NEWUSER
from cohortium_messages.topology import SERVICE_NAMES

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSED = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
HOSPITAL = yaml.safe_load((DEPLOY / "hospital" / "compose.yaml").read_text(encoding="utf-8"))
CONTAINERS = COMPOSED["services"] | HOSPITAL["services"]
ENVIRONMENT = {
    "COHORTIUM_AMQP_URL": "amqps://platform:pa55word@broker:5671/cohortium",
    "COHORTIUM_DATABASE_URL": "postgresql://cohortium:pa55word@database:5432/cohortium",
    "COHORTIUM_GOVERNANCE_KEYS": json.dumps(["ab" * 32, "cd" * 32]),
    "COHORTIUM_GOVERNANCE_THRESHOLD": "2",
    "COHORTIUM_REDIS_URL": "redis://:pa55word@presence:6379/0",
}


def settings_type(service: str) -> Any:
    module = importlib.import_module(f"cohortium_{service}.settings")
    return getattr(module, f"{service.capitalize()}Settings")


class TestSettings:
    @pytest.mark.parametrize("service", SERVICE_NAMES)
    def test_a_services_file_and_the_environment_are_all_it_needs(
        self, service: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in ENVIRONMENT.items():
            monkeypatch.setenv(name, value)
        settings = settings_type(service).load(DEPLOY / "config" / f"{service}.yaml")
        assert settings.http_port == 8080
        assert settings.governance_threshold == 2
        assert len(settings.governance_keys) == 2
        assert "pa55word" not in repr(settings)

    def test_the_connectors_file_is_complete(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COHORTIUM_AMQP_URL", ENVIRONMENT["COHORTIUM_AMQP_URL"])
        settings = settings_type("connector").load(DEPLOY / "config" / "connector.yaml")
        assert settings.policy.approvals == "manual"
        assert settings.trainer.isolation == "require"

    @pytest.mark.parametrize("service", [*SERVICE_NAMES, "connector"])
    def test_no_address_with_a_password_is_in_a_file(self, service: str) -> None:
        values = yaml.safe_load((DEPLOY / "config" / f"{service}.yaml").read_text(encoding="utf-8"))
        assert not {"database_url", "redis_url", "management_url"} & values.keys()
        # A hospital's login is made from its key: its address of the broker holds none.
        assert ("amqp_url" in values) == (service == "connector")
        assert "@" not in values.get("amqp_url", "")

    @pytest.mark.parametrize("service", [*SERVICE_NAMES, "connector"])
    def test_the_broker_is_checked(self, service: str) -> None:
        values = yaml.safe_load((DEPLOY / "config" / f"{service}.yaml").read_text(encoding="utf-8"))
        field = settings_type(service).model_fields["broker_check"]
        assert values.get("broker_check", field.default) == "strict"


class TestCompose:
    @pytest.mark.parametrize("name", CONTAINERS)
    def test_a_container_has_no_rights_to_lose(self, name: str) -> None:
        container = CONTAINERS[name]
        assert container["read_only"] is True
        assert container["cap_drop"] == ["ALL"]
        assert "cap_add" not in container
        assert "no-new-privileges:true" in container["security_opt"]
        assert container["user"].split(":")[0] not in ("0", "root")
        assert not container.get("privileged")
        assert "docker.sock" not in json.dumps(container)

    @pytest.mark.parametrize("service", SERVICE_NAMES)
    def test_every_service_is_migrated_first_and_runs_with_its_own_key_only(self, service: str) -> None:
        container = COMPOSED["services"][service]
        assert container["command"] == ["run", service, "--config", f"/etc/cohortium/{service}.yaml"]
        assert container["depends_on"][f"{service}-migrate"] == {"condition": "service_completed_successfully"}
        assert COMPOSED["services"][f"{service}-migrate"]["command"][:2] == ["migrate", service]
        keys = {secret for secret in container["secrets"] if secret.endswith(".key")}
        assert keys <= {f"{service}.key", "enrolment-token.key", "enrolment-tls.key", "aggregator-seal.key"}
        assert f"{service}.key" in keys

    @pytest.mark.parametrize("service", SERVICE_NAMES)
    def test_secrets_that_the_settings_name_are_mounted(self, service: str) -> None:
        named = yaml.safe_load((DEPLOY / "config" / f"{service}.yaml").read_text(encoding="utf-8"))
        wanted = {value.rpartition("/")[2] for value in named.values() if str(value).startswith("/run/secrets/")}
        assert wanted <= set(COMPOSED["services"][service]["secrets"])

    def test_broker_and_enrolment_ask_each_other_over_tls(self) -> None:
        lines = (DEPLOY / "rabbitmq" / "rabbitmq.conf").read_text(encoding="utf-8").splitlines()
        conf = {name.strip(): value.strip() for name, _, value in (line.partition("=") for line in lines)}
        settings = yaml.safe_load((DEPLOY / "config" / "enrolment.yaml").read_text(encoding="utf-8"))
        asked = [value for name, value in conf.items() if name.startswith("auth_http.") and name.endswith("_path")]
        assert len(asked) == 4
        assert all(one.startswith(f"https://enrolment:{settings['broker_auth_port']}/") for one in asked)
        assert not [name for name in conf if name.startswith("management.tcp.")]
        assert conf["management.ssl.port"] == "15671"
        mounted = {one["source"] for one in COMPOSED["services"]["broker"]["configs"]}
        assert "rabbitmq-advanced" in mounted
        assert "{verify, verify_peer}" in (DEPLOY / "rabbitmq" / "advanced.config").read_text(encoding="utf-8")
        assert "management_ca_file" in settings

    def test_only_the_brokers_tls_port_is_open_to_the_world(self) -> None:
        published = {port for container in COMPOSED["services"].values() for port in container.get("ports", [])}
        assert {port for port in published if not port.startswith("127.0.0.1:")} == {"5671:5671"}

    def test_the_connector_opens_no_port(self) -> None:
        assert "ports" not in HOSPITAL["services"]["connector"]
        assert "network_mode" not in HOSPITAL["services"]["connector"]

    def test_the_data_are_mounted_read_only(self) -> None:
        binds = [one for one in HOSPITAL["services"]["connector"]["volumes"] if one["type"] == "bind"]
        assert binds
        assert all(one["read_only"] for one in binds)

    @pytest.mark.parametrize("composed", [COMPOSED, HOSPITAL], ids=["platform", "hospital"])
    def test_what_is_used_is_defined(self, composed: dict[str, Any]) -> None:
        for container in composed["services"].values():
            for kind in ("secrets", "configs"):
                used = {one if isinstance(one, str) else one["source"] for one in container.get(kind, [])}
                assert used <= composed.get(kind, {}).keys()
            assert set(container.get("networks", [])) <= composed.get("networks", {}).keys()


class TestImages:
    @pytest.mark.parametrize("name", ["platform", "connector"])
    def test_an_image_runs_as_nobody_and_says_how_it_is(self, name: str) -> None:
        lines = (DEPLOY / f"Dockerfile.{name}").read_text(encoding="utf-8").splitlines()
        final = lines[max(number for number, line in enumerate(lines) if line.startswith("FROM")) :]
        assert "USER 10001:10001" in final
        assert any(line.startswith("HEALTHCHECK") for line in final)
        assert not any("pip install" in line for line in final)

    def test_the_connectors_image_sees_nothing_of_the_platform(self) -> None:
        text = (DEPLOY / "Dockerfile.connector").read_text(encoding="utf-8")
        copied = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY") and "--from" not in line]
        sources = {source for line in copied for source in line if source.startswith("services")}
        assert sources == {"services/cohortium_connector"}

    @pytest.mark.parametrize("given", [True, False], ids=["from-a-file", "without-one"])
    def test_the_entrypoint_puts_passwords_into_the_environment(self, given: bool, tmp_path: Path) -> None:
        (tmp_path / "amqp-url").write_text("amqp://it's:a$ecret@broker/\n", encoding="utf-8")
        environment = {"PATH": "/usr/bin:/bin"}
        if given:
            environment["COHORTIUM_AMQP_URL_FILE"] = str(tmp_path / "amqp-url")
        command = [str(DEPLOY / "entrypoint.sh"), "sh", "-c", 'printf %s "${COHORTIUM_AMQP_URL-none}"']
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        assert said == ("amqp://it's:a$ecret@broker/" if given else "none")


class TestSeccomp:
    def test_one_call_with_exactly_these_flags_is_added_once(self, tmp_path: Path) -> None:
        profile = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]}
        made: dict[str, Any] = profile
        for number in range(2):
            path = tmp_path / f"{number}.json"
            path.write_text(json.dumps(made), encoding="utf-8")
            command = [sys.executable, str(DEPLOY / "hospital" / "seccomp.py"), str(path)]
            made = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        assert made["defaultAction"] == "SCMP_ACT_ERRNO"
        (added,) = [rule for rule in made["syscalls"] if rule not in profile["syscalls"]]
        assert added["names"] == ["unshare"]
        assert added["args"] == [{"index": 0, "value": CLONE_NEWUSER | CLONE_NEWNET, "op": "SCMP_CMP_EQ"}]


class TestHospitalCommand:
    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"PYTHONPATH": str(DEPLOY / "connector"), "COHORTIUM_AMQP_URL": ENVIRONMENT["COHORTIUM_AMQP_URL"]}
        command = [sys.executable, "-m", "cohortium_hospital", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    def test_it_checks_the_settings_that_we_ship(self) -> None:
        ended = self.run("check-config", "--config", str(DEPLOY / "config" / "connector.yaml"))
        assert (ended.returncode, ended.stderr) == (0, "")

    @pytest.mark.parametrize(
        "command", ["status", *(pytest.param(name, marks=pytest.mark.long) for name in ("offers", "health", "budget"))]
    )
    def test_before_it_has_joined_it_says_so_and_what_to_do(self, command: str, tmp_path: Path) -> None:
        settings = tmp_path / "connector.yaml"
        text = (DEPLOY / "config" / "connector.yaml").read_text(encoding="utf-8")
        settings.write_text(text.replace("/var/lib/cohortium", str(tmp_path / "spool")), encoding="utf-8")
        ended = self.run(command, "--config", str(settings))
        assert ended.returncode == 2, ended.stderr
        assert ended.stderr.startswith("error: ")
        assert "Traceback" not in ended.stderr

    def test_no_grant_without_a_name_under_it(self) -> None:
        ended = self.run("approve", "heart-disease")
        assert ended.returncode == 2
        assert "--approver" in ended.stderr
