"""What the pages tell an operator and three hospitals to type, typed: from `init` to a model with its verified log.

Real RabbitMQ, real processes, SQLite files, nothing but the command line.
"""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cohortium_kit.amqp import RabbitBus
from cohortium_messages.ids import SiteId
from cohortium_messages.topology import platform_topology, site_topology

ROLES = ("enrolment", "consent", "scheduler", "aggregator", "audit")
HOSPITALS = ("north", "south", "west")
ROUNDS = 2
STUDY = f"""\
apiVersion: cohortium/study/1
governance: trial
name: operator-path
purpose: Walk the operator's path
dataset:
  features: [{{name: unused, type: float, range: [0, 1], missing: impute}}]
  label: {{name: label, type: binary}}
  split: {{test: 0.5}}
recipe: {{trainer: benchmark.noise, parameters: 2000}}
federation:
  rounds: {ROUNDS}
  min_sites: 3
metrics: []
"""


def free_run_of_ports(count: int) -> int:
    """The first of so many free ports in a row; `init` gives each service the next one."""
    for first in range(21000, 32000, count):
        with ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    one = stack.enter_context(socket.socket())
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    one.bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise AssertionError("no free ports")


class Machine:
    """A person's terminal: commands in a folder, and services that run until the end."""

    def __init__(self, folder: Path, amqp: str, namespace: str) -> None:
        self.folder = folder
        self.amqp, self.namespace = amqp, namespace
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("COHORTIUM_")}
        self.environment["COHORTIUM_OPERATOR"] = str(folder / "fed" / "operator.yaml")
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.shell: subprocess.Popen[str] | None = None

    def attempt(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command, and how it ended. Each is a process of its own."""
        self.shell = self.shell or subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("loaded_command.py"))],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.shell.stdin is not None
        assert self.shell.stdout is not None
        output, errors = self.folder / "command.out", self.folder / "command.err"
        asked = {"words": words, "output": str(output), "errors": str(errors)}
        self.shell.stdin.write(json.dumps(asked) + "\n")
        self.shell.stdin.flush()
        code = int(self.shell.stdout.readline())
        return subprocess.CompletedProcess(words, code, output.read_text(), errors.read_text())

    def run(self, *words: str) -> str:
        """A command that must succeed; its standard output."""
        done = self.attempt(*words)
        assert done.returncode == 0, f"cohortium {' '.join(words)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def succeeds(self, *words: str, unless: str) -> str:
        """Its standard output; nothing if it does not succeed for this reason, which it must name."""
        done = self.attempt(*words)
        assert done.returncode == 0 or unless in done.stderr, done.stderr
        return done.stdout

    def facts(self, *words: str) -> Any:
        """What a command says with --json."""
        return json.loads(self.run(*words, "--json"))

    def start(self, name: str, *words: str) -> None:
        """A service, as an operator or a hospital starts it."""
        with (self.folder / f"{name}.log").open("wb") as log:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", "cohortium_cli", "run", *words],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def until(self, ask: Callable[[], Any], what: str, timeout_s: float = 240.0) -> Any:
        """Ask until there is something, as a person would look again."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for name, process in self.running.items():
                assert process.poll() is None, f"{name} ended: {self.log(name)}"
            found = ask()
            if found:
                return found
            time.sleep(0.5)
        raise AssertionError(f"{what} did not come; scheduler: {self.log('scheduler')}")

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-3000:]

    def leave(self) -> None:
        """Close the terminal; what was started goes on."""
        if self.shell is not None:
            self.shell.communicate()

    def stop(self) -> dict[str, int]:
        """SIGTERM to each, in the order they were started, backwards; how each of them ended."""
        codes = {}
        for process in reversed(self.running.values()):
            process.send_signal(signal.SIGTERM)
        for name, process in self.running.items():
            try:
                codes[name] = process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                codes[name] = process.wait()
        self.running.clear()
        return codes


async def remove_traces(machine: Machine) -> None:
    """Queues and exchanges of this federation."""
    bus = RabbitBus(machine.amqp, machine.namespace, connection_name="test-cleanup")
    await bus.connect()
    for invitation in machine.folder.glob("*.invitation.json"):
        await bus.delete(site_topology(SiteId(json.loads(invitation.read_text())["site_id"])))
    await bus.delete(platform_topology())
    await bus.close()


@pytest.fixture
def machine(tmp_path: Path, amqp_url: str, namespace: str) -> Iterator[Machine]:
    machine = Machine(tmp_path, amqp_url, namespace)
    (tmp_path / "study.yaml").write_text(STUDY, encoding="utf-8")
    (tmp_path / "table.csv").write_text("unused,label\n0,0\n1,1\n", encoding="ascii")
    try:
        yield machine
    finally:
        machine.leave()
        machine.stop()
        asyncio.run(remove_traces(machine))


def make_federation(machine: Machine) -> None:
    """The operator: `init`, then each service as its text says."""
    ports = free_run_of_ports(len(ROLES))
    words = ["--namespace", machine.namespace, "--amqp", machine.amqp, "--first-port", str(ports)]
    made = machine.facts("init", "fed", *words)
    for role in ROLES:
        config = made[f"config_{role}"]
        machine.run("migrate", role, "--config", config)
        machine.start(role, role, "--config", config)
    away = "does not answer"
    machine.until(lambda: machine.succeeds("runs", unless=away), "the scheduler")
    first = ("site", "invite", HOSPITALS[0], "--out", invitation(HOSPITALS[0]))
    machine.until(lambda: machine.succeeds(*first, unless=away), "enrolment")


def invitation(hospital: str) -> str:
    return f"{hospital}.invitation.json"


def join_hospitals(machine: Machine) -> list[str]:
    """Invite the others, join all, run their connectors; the paths of their settings."""
    for hospital in HOSPITALS[1:]:
        machine.run("site", "invite", hospital, "--out", invitation(hospital))
    configs = []
    for hospital in HOSPITALS:
        words = ["--dir", hospital, "--data", "table.csv", "--amqp", machine.amqp, "--namespace", machine.namespace]
        joined = machine.facts("site", "join", invitation(hospital), *words)
        trust = json.loads((machine.folder / "fed" / "trust.json").read_text())
        assert joined["governance_keys"] == trust["governance_keys"]
        # A test machine may not let a process cut off its network; a hospital's machine must.
        config = Path(joined["config"])
        config.write_text(config.read_text() + "trainer: {isolation: warn}\npresence_s: 1.0\n")
        machine.start(f"connector-{hospital}", "connector", "--config", joined["config"])
        configs.append(joined["config"])
    return configs


def sign_in(machine: Machine) -> None:
    """Officers sign the membership as soon as all hospitals have enrolled."""

    words = ("governance", "draft", "study.yaml", "--out", "manifest.json", "--json")
    drafted = machine.until(lambda: machine.succeeds(*words, unless="enrolled are"), "the hospitals' enrolment")
    members = json.loads(drafted)["members"]
    assert sorted(members) == sorted(HOSPITALS)
    for number in (1, 2):
        machine.run("governance", "sign", "manifest.json", "--key", f"fed/governance/officer-{number}.key")
    machine.run("governance", "publish", "manifest.json")


def finished(machine: Machine, run_id: str) -> Any:
    status = machine.facts("run-status", run_id)
    assert status["state"] not in ("FAILED", "STOPPED"), status
    return status if status["state"] == "FINISHED" else None


def verified(machine: Machine) -> Any:
    """What `verify` says of the log as it is now; nothing while events of the run's end are under way."""
    shutil.rmtree(machine.folder / "log", ignore_errors=True)
    machine.run("audit", "export", "operator-path", "--out", "log")
    trust = json.loads((machine.folder / "fed" / "trust.json").read_text())
    keys = [word for key in trust["governance_keys"] for word in ("--governance-key", key)]
    notes = sorted((machine.folder / "log" / "checkpoints").iterdir())
    done = machine.attempt("verify", "log", *keys, "--checkpoint", str(notes[0]), "--json")
    report = json.loads(done.stdout)
    assert report["verified"] == (done.returncode == 0)
    return report if report["verified"] else None


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_from_init_to_a_verified_model_with_the_command_line_alone(machine: Machine) -> None:
    make_federation(machine)
    configs = join_hospitals(machine)
    run_id = machine.facts("study", "submit", "study.yaml")["run_id"]
    sign_in(machine)
    for config in configs:
        offered = machine.until(lambda config=config: machine.facts("site", "offers", "--config", config), "the offer")
        assert offered[0]["study"] == "operator-path"
        assert machine.facts("site", "approve", "operator-path", "--config", config, "--approver", "Dr. Ada")
    assert [one["run_id"] for one in machine.facts("runs")] == [run_id]
    status = machine.until(lambda: finished(machine, run_id), "the end of the run")
    assert [done["number"] for done in status["rounds_done"]] == [1, 2]
    assert sorted(status["rounds_done"][-1]["cohort"]) == sorted(HOSPITALS)
    assert "operator-path" in machine.run("run-status", run_id)

    words = ("model", "export", run_id, "--out", "model.zip")
    machine.until(lambda: machine.succeeds(*words, unless="has no finished model"), "the model's bundle")
    assert "model.safetensors" in zipfile.ZipFile(machine.folder / "model.zip").namelist()
    report = machine.until(lambda: verified(machine), "a log that verifies")
    assert report["governance_keys"] == "pinned"
    assert set(machine.stop().values()) == {0}, "SIGTERM ends each service in good order"
