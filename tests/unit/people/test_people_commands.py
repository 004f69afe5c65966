"""`cohortium people`, against a consent service on loopback."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cohortium_cli.app import app
from cohortium_cli.operator import SERVICES
from cohortium_kit.http import serve
from cohortium_platform.people.passes import read_pass
from governance_stage import STUDY, Stage
from people_stage import PASSWORD, House

Command = Callable[..., "asyncio.Future[tuple[int, str, str]]"]


@pytest.fixture
async def command(house: House, stage: Stage, tmp_path: Path) -> AsyncIterator[Command]:
    """`await command("people", ...)`: the exit code, and what it said."""
    stop, ports = asyncio.Event(), asyncio.Queue[int]()
    serving = asyncio.create_task(serve(house.app.http, "127.0.0.1", 0, stop, on_port=ports.put_nowait))
    url = f"http://127.0.0.1:{await ports.get()}"
    token = stage.files.directory / "secrets" / "operator.token"
    file = tmp_path / "operator.yaml"
    file.write_text(yaml.safe_dump({"token_file": str(token)} | dict.fromkeys(SERVICES, url)))

    async def run(*words: str, **secrets: str) -> tuple[int, str, str]:
        runner = CliRunner(env={"NO_COLOR": "1", "TERM": "dumb", "COHORTIUM_OPERATOR": str(file), **secrets})
        said = await asyncio.to_thread(runner.invoke, app, ["people", *words])
        return said.exit_code, said.stdout, said.stderr

    yield run  # type: ignore[misc]
    stop.set()
    await serving


async def test_from_the_first_officer_to_a_hospitals_admin_who_is_gone_again(
    command: Command, house: House, stage: Stage, tmp_path: Path
) -> None:
    code, out, _ = await command("first", "officer-1", "--name", "Olga", "--json")
    token = json.loads(out)["token"]
    assert (code, (await command("first", "officer-2", "--name", "Otto"))[0]) == (0, 1)
    set_up = {"COHORTIUM_SETUP_TOKEN": token, "COHORTIUM_PASSWORD": PASSWORD}
    assert (await command("setup", "officer-1", **set_up))[0] == 0
    code, _, err = await command("setup", "officer-1", **set_up)
    assert (code, "wrong, or has ended" in err) == (1, True)

    me, site = {"COHORTIUM_PASSWORD": PASSWORD}, stage.hospitals[0].site_id
    role = f"site_admin:{site}"
    code, out, _ = await command("add", "admin-1", "--name", "Ada", "--role", role, "--as", "officer-1", **me)
    assert (code, "one-time token" in out, PASSWORD in out) == (0, True, False)
    code, out, _ = await command("roles", "admin-1", "--role", f"reviewer:{STUDY}", "--as", "officer-1", **me)
    assert (code, f"reviewer:{STUDY}" in out) == (0, True)
    code, out, _ = await command("list", "--as", "officer-1", "--json", **me)
    assert [(one["person"], one["waits_for_setup"]) for one in json.loads(out)] == [
        ("admin-1", True),
        ("officer-1", False),
    ]
    assert (await command("end", "admin-1", "--as", "officer-1", **me))[0] == 0

    file = tmp_path / "pass"
    code, _, err = await command("pass", "audit", "--out", str(file), "--as", "officer-1", **me)
    assert (code, file.stat().st_mode & 0o077) == (0, 0), err
    assert read_pass(file.read_text().strip(), stage.files.trust, "audit", house.clock.now()).person == "officer-1"

    wrong = {"COHORTIUM_PASSWORD": "not the password"}
    assert (await command("list", "--as", "officer-1", **wrong))[0] == 1
    for bad in ("site_admin", "officer:x", "king", "machine", "reviewer:Not A Study"):
        code, _, err = await command("roles", "admin-1", "--role", bad, "--as", "officer-1", **me)
        assert (code, bad in err) == (2, True), bad
