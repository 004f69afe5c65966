"""A RabbitMQ as a federation runs it: TLS, the definitions, enrolment asked about every site. One for the session."""

import json
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import pytest
from broker_world import NAMESPACE, VHOST, GuardedBroker, GuardedWorld

from cohortium_cli.broker import USERS, make_definitions
from cohortium_cli.pki import key_pem, make_authority, make_server, pem
from cohortium_kit.testing.servers import RABBIT_SCRIPT, PrivateRabbit, ServerMissing, free_port


@pytest.fixture(scope="session")
def guarded_broker(
    tmp_path_factory: pytest.TempPathFactory, give_up: Callable[[str], NoReturn]
) -> Iterator[GuardedBroker]:
    """Ready in some ten seconds."""
    folder = tmp_path_factory.mktemp("guarded")
    authority, authority_key = make_authority("test.example", datetime.now(UTC))
    certificate, key = make_server(authority, authority_key, ["localhost"], datetime.now(UTC))
    gate, gate_key = make_server(authority, authority_key, ["localhost"], datetime.now(UTC))
    stranger, _ = make_authority("stranger.example", datetime.now(UTC))
    for name, text in {
        "ca.crt": pem(authority),
        "broker.crt": pem(certificate),
        "broker.key": key_pem(key),
        "enrolment-tls.crt": pem(gate),
        "enrolment-tls.key": key_pem(gate_key),
        "stranger.crt": pem(stranger),
    }.items():
        (folder / name).write_text(text)
    (folder / "enrolment-tls.key").chmod(0o600)
    passwords = {name: secrets.token_hex(24) for name in USERS}
    (folder / "definitions.json").write_text(json.dumps(make_definitions(NAMESPACE, VHOST, passwords, 200)))
    tls, auth, management, measures = free_port(), free_port(), free_port(), free_port()
    shipped = Path(__file__).parents[3] / "deploy" / "rabbitmq"
    rabbit = PrivateRabbit(
        folder / "server",
        settings=[
            *shipped_lines((shipped / "rabbitmq.conf").read_text(), folder, tls, auth, management),
            "log.console = false",
            "prometheus.tcp.ip = 127.0.0.1",
            f"prometheus.tcp.port = {measures}",
        ],
        plugins=["rabbitmq_management", "rabbitmq_auth_backend_http", "rabbitmq_prometheus"],
        tls_port=tls,
        advanced=(shipped / "advanced.config").read_text().replace("/etc/rabbitmq/tls", str(folder)),
    )
    broker = GuardedBroker(rabbit, folder, passwords, tls, auth, management, measures, (authority, authority_key))
    try:
        rabbit.start()
        if RABBIT_SCRIPT in os.environ:
            # 4.3 makes its log's exchange when it boots, and the virtual host that it belongs in comes later.
            rabbit.stop()
            rabbit.start()
    except ServerMissing as missing:
        give_up(str(missing))
    yield broker
    rabbit.remove()


def shipped_lines(text: str, folder: Path, tls: int, auth: int, management: int) -> list[str]:
    """The configuration that we ship, with this test's ports and files in the place of a container's."""
    changed = {
        "listeners.ssl.default": f"127.0.0.1:{tls}",
        "management.ssl.ip": "127.0.0.1",
        "management.ssl.port": str(management),
        **{
            f"{prefix}.{name}file": str(folder / file)
            for prefix in ("ssl_options", "management.ssl")
            for name, file in {"cacert": "ca.crt", "cert": "broker.crt", "key": "broker.key"}.items()
        },
        "load_definitions": str(folder / "definitions.json"),
        **{
            f"auth_http.{name}_path": f"https://localhost:{auth}/broker/{name}"
            for name in ("user", "vhost", "resource", "topic")
        },
    }
    kept = []
    for line in text.splitlines():
        name, _, value = (part.strip() for part in line.partition("="))
        if name and not name.startswith(("#", "log.console", "vm_memory", "disk_free")):
            kept.append(f"{name} = {changed.pop(name, value)}")
    assert not changed, f"rabbitmq.conf lacks {sorted(changed)}"
    return kept


@pytest.fixture
async def guarded(
    guarded_broker: GuardedBroker, tmp_path: Path, postgres_url: str, namespace: str
) -> AsyncIterator[GuardedWorld]:
    """Enrolment beside that broker, on a real database, and sites that log in as they like."""
    world = GuardedWorld(guarded_broker, tmp_path, postgres_url, namespace)
    async with world.open():
        yield world
