"""The trial's single checks: the way to a broker with a certificate of its own, the machine, the tables, the report."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from pydantic import ValidationError

from cohortium_cli.pki import SERVER_DAYS, key_pem, make_authority, make_server, pem
from cohortium_connector.preflight import broker, machine, network, training
from cohortium_connector.preflight.findings import ADVICE, Finding, failed, ok, skipped, warning
from cohortium_connector.preflight.trial import Trial
from cohortium_connector.preflight.words import lines
from cohortium_kit.bus import Outgoing
from cohortium_messages.preflight import (
    PADDING,
    PROBE_ROWS,
    PROBE_UPDATES,
    Capacity,
    PreflightCheck,
    PreflightProbe,
    PreflightReport,
)
from cohortium_messages.study import MlpRecipe, SplitFraction
from cohortium_protocol.parameters import layout_of
from cohortium_protocol.statistics import input_count

NOW = datetime.now(UTC)


@asynccontextmanager
async def listening(
    folder: Path, host: str, made_at: datetime, says: bytes = b"\x01"
) -> AsyncIterator[tuple[int, Path]]:
    """A server with a certificate for this host, made then; yields its port and its authority."""
    authority, authority_key = make_authority("test", made_at)
    certificate, key = make_server(authority, authority_key, [host], made_at)
    (folder / "ca.crt").write_text(pem(authority))
    (folder / "server.crt").write_text(pem(certificate))
    (folder / "server.key").write_text(key_pem(key))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(8):
            writer.write(says)
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1], folder / "ca.crt"
    finally:
        server.close()
        await server.wait_closed()


async def tried(port: int, cafile: Path | None) -> dict[str, Finding]:
    query = f"?cafile={cafile}" if cafile else ""
    return {finding.name: finding for finding in await network.way(f"amqps://127.0.0.1:{port}/{query}")}


async def test_a_good_certificate_is_told_with_protocol_and_end(tmp_path: Path) -> None:
    async with listening(tmp_path, "127.0.0.1", NOW) as (port, authority):
        found = await tried(port, authority)
    assert {name: one.state for name, one in found.items()} == dict.fromkeys(
        ("name", "connection", "tls", "certificate"), "ok"
    )
    assert found["tls"].facts["protocol"] == "TLSv1.3"
    assert str(found["certificate"].facts["ends"]).startswith(f"{NOW + timedelta(days=SERVER_DAYS):%Y-%m}")


async def test_a_certificate_that_ends_soon_is_a_warning(tmp_path: Path) -> None:
    async with listening(tmp_path, "127.0.0.1", NOW - timedelta(days=SERVER_DAYS - 5)) as (port, authority):
        found = await tried(port, authority)
    assert (found["certificate"].state, found["certificate"].code) == ("warning", "CERTIFICATE_ENDS_SOON")


@pytest.mark.parametrize(
    ("host", "age", "known"),
    [
        ("other.example", timedelta(0), True),
        ("127.0.0.1", timedelta(days=SERVER_DAYS + 1), True),
        ("127.0.0.1", timedelta(0), False),
    ],
    ids=["another name", "ended", "unknown authority"],
)
async def test_a_certificate_that_is_not_good_is_refused(
    tmp_path: Path, host: str, age: timedelta, known: bool
) -> None:
    async with listening(tmp_path, host, NOW - age) as (port, authority):
        found = await tried(port, authority if known else None)
    assert (found["certificate"].state, found["certificate"].code) == ("failed", "CERTIFICATE_REFUSED")


async def test_who_does_not_speak_amqp_is_named(tmp_path: Path) -> None:
    async with listening(tmp_path, "127.0.0.1", NOW, says=b"HTTP/1.1 400 Bad Request") as (port, authority):
        found = await tried(port, authority)
    assert found["tls"].code == "NOT_AMQP"


async def test_a_closed_port_and_a_name_without_address() -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    assert (await tried(port, None))["connection"].code == "NO_CONNECTION"
    nowhere = await network.way("amqps://broker.invalid:5671/")
    assert [finding.code for finding in nowhere] == ["NAME_NOT_FOUND", None, None, None]


def test_a_proxy_in_the_environment_is_told() -> None:
    assert network.proxy({"HTTPS_PROXY": "http://secret:password@proxy:3128"}).facts == {"variables": "HTTPS_PROXY"}
    assert network.proxy({}).state == "ok"


def test_the_disk_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    finding, free_mb, fsync_ms = machine.disk(tmp_path)
    assert finding.name == "disk"
    assert free_mb > 0
    assert fsync_ms > 0
    assert list(tmp_path.iterdir()) == []


def test_graphics_processors_are_counted_and_nothing_else(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert machine.graphics(tmp_path) == 2


@pytest.mark.parametrize(
    ("offset", "state"), [(0.2, "ok"), (-7, "warning"), (9, "warning"), (300, "failed"), (-90_000, "failed")]
)
def test_a_clock_is_judged_by_its_difference(offset: float, state: str) -> None:
    line = broker.Line(round_trip_ms=40, up_mbit_s=20, down_mbit_s=20, clock_offset_s=offset)
    assert [finding.state for finding in broker.line_findings(line)] == ["ok", state]


def test_a_slow_or_silent_line_is_told() -> None:
    slow = broker.Line(round_trip_ms=40, up_mbit_s=0.5, down_mbit_s=20, clock_offset_s=0)
    half = broker.Line(round_trip_ms=40, up_mbit_s=20, clock_offset_s=0)
    assert [broker.line_findings(one)[0].code for one in (slow, half)] == ["LINE_SLOW"] * 2
    assert [finding.code for finding in broker.line_findings(broker.Line())] == ["NO_ECHO", None]


def test_the_made_up_table_is_the_same_everywhere(tmp_path: Path) -> None:
    training.write_rows(tmp_path / "a.csv")
    training.write_rows(tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert training.probe_study().recipe.trainer == "torch.mlp"


def test_what_the_probe_costs_is_what_rounds_are_compared_with() -> None:
    """One pooled model and one of the site alone, over the rows that do not test, as often as the study says."""
    study = training.probe_study()
    assert isinstance(study.recipe, MlpRecipe)
    assert isinstance(study.dataset.split, SplitFraction)
    parameters = layout_of(study.recipe, input_count(study)).size
    rows = PROBE_ROWS * (1 - study.dataset.split.test)
    assert 2 * rows * study.rounds * study.recipe.local.epochs * parameters == PROBE_UPDATES


def test_every_code_has_its_advice_and_is_a_code_on_the_wire() -> None:
    for code, advice in ADVICE.items():
        assert PreflightCheck(name="line", state="failed", code=code).code == code
        assert len(advice) > 20
    assert failed("line", "NO_ECHO").advice


@pytest.mark.parametrize(
    "change",
    [
        {"cpus": 0},
        {"up_mbit_s": -1},
        {"training_s": float("nan")},
        {"clock_offset_s": float("inf")},
        {"rows": 100},
    ],
)
def test_what_a_site_declares_is_bounded(change: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Capacity.model_validate({"cpus": 2, "memory_mb": 1000, **change})


@pytest.mark.parametrize("padding", ["0" * (2 * PADDING + 1), "x", "0\n"])
def test_padding_is_bounded_and_says_nothing(padding: str) -> None:
    with pytest.raises(ValidationError):
        PreflightProbe(site_id="22000000-0000-4000-8000-000000000002", nonce=bytes(16), sequence=0, padding=padding)


def ended(*findings: Finding) -> tuple[bool, list[str]]:
    """Whether the trial passed, and the last lines for people."""
    trial = Trial("north", "test", findings, cast("PreflightReport", None), cast("Outgoing", None), ())
    told = lines(trial)
    return trial.passed, told[len(told) - told[::-1].index("") :]


def test_before_enrolment_a_site_is_not_ready() -> None:
    line = (ok("line"), ok("clock"), skipped("certificate"))
    assert ended(ok("identity"), *line) == (True, ["Ready to take part.", "Sent to nobody."])
    early = (skipped("identity", "NOT_ENROLLED"), skipped("line"), skipped("clock"), warning("proxy", "PROXY_SET"))
    passed, told = ended(*early)
    assert not passed
    assert told[:2] == [
        "Not ready: enrolment, line, clock not tried.",
        "1 warning: judge it before the first study.",
    ]
    assert ended(*early, warning("memory", "MEMORY_SMALL"), failed("disk", "DISK_SLOW")) == (
        False,
        ["Not ready: 1 failed.", "2 warnings: judge them before the first study.", "Sent to nobody."],
    )
