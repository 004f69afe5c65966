"""What `cohortium pki` and `cohortium broker definitions` write. That RabbitMQ takes it: tests/integration/broker."""

import base64
import hashlib
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from typer.testing import CliRunner

from cohortium_cli.broker import USERS, make_definitions, password_hash
from cohortium_cli.pki import check_server, key_pem, make_authority, make_server, pem, pki_app
from cohortium_kit._amqp_wire import queue_arguments
from cohortium_kit.errors import ConfigurationError
from cohortium_messages.channels import CHANNELS
from cohortium_messages.rights import watched_queues
from cohortium_messages.topology import SERVICE_NAMES, QueueKind, platform_topology

NOW = datetime(2026, 11, 21, tzinfo=UTC)
PASSWORDS = {name: f"pass-of-{name}" for name in USERS}


@pytest.fixture(scope="module")
def made() -> dict[str, bytes]:
    authority, authority_key = make_authority("hospitals.example", NOW)
    certificate, key = make_server(authority, authority_key, ["broker.example", "10.0.0.1"], NOW)
    stranger, _ = make_authority("hospitals.example", NOW)
    texts = {"ca": pem(authority), "cert": pem(certificate), "key": key_pem(key), "stranger": pem(stranger)}
    return {name: text.encode() for name, text in texts.items()}


class TestPki:
    @pytest.mark.parametrize("host", ["broker.example", "10.0.0.1"])
    def test_a_client_takes_it(self, made: dict[str, bytes], host: str) -> None:
        check_server(made["cert"], made["key"], made["ca"], host, NOW + timedelta(days=300))

    @pytest.mark.parametrize(
        ("changes", "word"),
        [
            ({"host": "other.example"}, "no client would take it"),
            ({"authority": "stranger"}, "no client would take it"),
            ({"key": "ca"}, "--key: not PEM"),
            ({"now": NOW + timedelta(days=500)}, "it ends"),
        ],
    )
    def test_what_is_wrong_is_said(self, made: dict[str, bytes], changes: dict[str, object], word: str) -> None:
        authority, key = made[str(changes.get("authority", "ca"))], made[str(changes.get("key", "key"))]
        now = changes.get("now", NOW)
        assert isinstance(now, datetime)
        with pytest.raises(ConfigurationError, match=word):
            check_server(made["cert"], key, authority, str(changes.get("host", "broker.example")), now)

    def test_the_command_names_the_files_and_overwrites_none(self, tmp_path: Path) -> None:
        def say(*arguments: str) -> int:
            return CliRunner().invoke(pki_app, [*arguments, "--dir", str(tmp_path)]).exit_code

        assert say("authority", "hospitals.example") == 0
        assert say("server", "broker.example") == 0
        assert say("server", "enrolment", "--name", "enrolment-tls") == 0
        assert say("server", "enrolment", "--name", "enrolment-tls") != 0
        assert say("server", "enrolment", "--name", "ca") != 0
        assert say("server", "enrolment", "--name", "../x") != 0
        assert {file.name for file in tmp_path.iterdir()} == {
            f"{name}.{kind}" for name in ("ca", "broker", "enrolment-tls") for kind in ("crt", "key")
        }
        assert (tmp_path / "enrolment-tls.key").stat().st_mode & 0o077 == 0
        read = [(tmp_path / name).read_bytes() for name in ("enrolment-tls.crt", "enrolment-tls.key", "ca.crt")]
        check_server(read[0], read[1], read[2], "enrolment", datetime.now(UTC))

    def test_the_authority_signs_no_further_authority_and_the_server_nothing(self, made: dict[str, bytes]) -> None:
        for name, ca in (("ca", True), ("cert", False)):
            certificate = x509.load_pem_x509_certificate(made[name])
            constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
            assert constraints.critical
            assert (constraints.value.ca, constraints.value.path_length) == (ca, 0 if ca else None)

    @pytest.mark.parametrize("host", ["", "bad name", "a..b", "x" * 64, "http://x"])
    def test_what_is_no_host_is_refused(self, host: str) -> None:
        authority, key = make_authority("hospitals.example", NOW)
        with pytest.raises(ConfigurationError, match="HOST"):
            make_server(authority, key, [host], NOW)


class TestDefinitions:
    made = make_definitions("cohortium", "cohortium", PASSWORDS, 100)

    def test_no_password_is_in_them(self) -> None:
        assert not any(password in json.dumps(self.made) for password in PASSWORDS.values())
        for user in self.made["users"]:
            raw = base64.b64decode(user["password_hash"])
            assert raw[4:] == hashlib.sha256(raw[:4] + PASSWORDS[user["name"]].encode()).digest()
        assert password_hash("test12", bytes.fromhex("908dc60a")) == "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR"

    def test_only_the_reaper_administers_and_it_reaches_no_message(self) -> None:
        assert {user["name"] for user in self.made["users"] if user["tags"]} == {"reaper"}
        assert "reaper" not in {one["user"] for one in self.made["permissions"]}

    @pytest.mark.parametrize("role", SERVICE_NAMES)
    def test_a_service_reads_and_declares_nothing_of_the_others(self, role: str) -> None:
        (rights,) = [one for one in self.made["permissions"] if one["user"] == role]
        for queue in platform_topology().queues:
            name = f"cohortium.{queue.name}"
            consumed = {"aggregator": ("chunks", "steps"), "scheduler": ("presence",)}.get(role, ())
            expected = queue.name.partition(".")[0] in (role, *consumed) and not queue.name.endswith(".dead")
            assert bool(re.search(rights["read"], name)) == expected, queue.name
            assert not re.search(rights["configure"], name)
            # RabbitMQ 4 counts what waits there for who has a right to it; to bind, an exchange must be read too.
            looks_at = queue.name.endswith(".dead") and queue.name in watched_queues(role)
            assert bool(re.search(rights["write"], name)) == looks_at, queue.name

    def test_an_integrator_reads_the_stream_of_entries_and_may_do_nothing_else(self) -> None:
        (rights,) = [one for one in self.made["permissions"] if one["user"] == "integrator"]
        assert (rights["configure"], rights["write"]) == ("^$", "^$")
        readable = [
            queue.name for queue in platform_topology().queues if re.search(rights["read"], f"cohortium.{queue.name}")
        ]
        assert readable == ["entries.log"]
        assert not re.search(rights["read"], "cohortium.entries.logs")

    def test_only_the_audit_service_writes_entries(self) -> None:
        writers = {one["user"] for one in self.made["permissions"] if re.search(one["write"], "cohortium.entries")}
        assert writers == {"audit"}

    def test_every_channel_of_a_service_may_be_used(self) -> None:
        for channel in CHANNELS:
            if channel.publisher == "site":
                continue
            (rights,) = [one for one in self.made["permissions"] if one["user"] == channel.publisher]
            assert re.search(rights["write"], f"cohortium.{channel.exchange.name}"), channel.name
            topics = [
                one["write"]
                for one in self.made["topic_permissions"]
                if (one["user"], one["exchange"]) == (channel.publisher, f"cohortium.{channel.exchange.name}")
            ]
            for message in channel.messages:
                key = channel.key.replace("{study}", "heart-disease").replace("{type}", message.type_name)
                assert all(re.search(pattern, key) for pattern in topics), (channel.name, key)

    def test_each_queue_has_its_bounds_in_one_policy_too(self) -> None:
        for queue in platform_topology().queues:
            name, rules = f"cohortium.{queue.name}", queue_arguments(queue, "cohortium")
            policies = [one["definition"] for one in self.made["policies"] if re.search(one["pattern"], name)]
            bounds = {f"x-{key}": value for policy in policies for key, value in policy.items()}
            assert len(policies) == (queue.kind is not QueueKind.STREAM), queue.name
            assert bounds.items() <= rules.items()
            assert not policies or all(isinstance(rule, bool | str) for key, rule in rules.items() - bounds.items())

    def test_everything_that_is_declared_is_in_them(self) -> None:
        assert len(self.made["queues"]) == len(platform_topology().queues)
        assert len(self.made["bindings"]) == sum(len(queue.bindings) for queue in platform_topology().queues)

    def test_the_command_writes_private_files(self, tmp_path: Path) -> None:
        from typer.testing import CliRunner

        from cohortium_cli.broker import broker_app

        ended = CliRunner().invoke(broker_app, ["--out", str(tmp_path / "out")])
        assert ended.exit_code == 0, ended.output
        assert all(file.stat().st_mode & 0o077 == 0 for file in (tmp_path / "out").iterdir())
        again = CliRunner().invoke(broker_app, ["--out", str(tmp_path / "out")])
        assert again.exit_code == 2
