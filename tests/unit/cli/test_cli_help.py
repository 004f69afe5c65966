"""Every command explains itself: what it does, and each of its options and arguments."""

from collections.abc import Iterator

import click
import pytest
import typer
from cli_stage import CommandLine

from cohortium_cli.app import SERVICES, app

COMMANDS = {
    "demo", "simulate", "init", "run", "migrate", "check-config", "runs", "run-status", "verify", "version",
    "study check", "study submit", "model export", "model release", "model check", "model predict",
    "site sign-release", "audit export",
    "consent card", "consent vouch", "consent new", "consent sign", "consent add", "consent get", "consent list",
    "consent check", "consent exclude", "consent withdrawals", "consent decide", "consent receipt",
    "consent verify-receipt", "run-lineage",
    "governance keygen", "governance draft", "governance sign", "governance publish",
    "sites", "connector preflight", "budget", "budget-write-off", "privacy benchmark", "privacy calibrate",
    "people first", "people setup", "people add", "people roles", "people reset", "people end", "people list",
    "people pass", "dead-letters list", "dead-letters show", "dead-letters redrive", "dead-letters drop",
    "pki authority", "pki server", "pki check", "broker definitions", "site revoke",
    "site invite", "site join", "site offers", "site cohort", "site approve", "site withdraw", "site status",
    "site trust-logs-anew", "audit convert", "consent prove", "consent check-proof",
}  # fmt: skip


def commands(group: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command below this one, with the words that lead to it."""
    for name, child in getattr(group, "commands", {}).items():
        if hasattr(child, "commands"):
            yield from commands(child, (*words, name))
        else:
            yield (*words, name), child


ALL = dict(commands(typer.main.get_command(app)))


def test_the_commands_are_these() -> None:
    assert {" ".join(words) for words in ALL} == COMMANDS


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_a_command_explains_itself_and_all_its_options(words: tuple[str, ...], cli: CommandLine) -> None:
    text = cli.ok(*words, "--help")
    command = ALL[words]
    assert command.help
    assert command.help.split("\n")[0].rstrip().endswith((".", ".)")), "a sentence, then the rest"
    for parameter in command.params:
        if parameter.name == "help":
            continue
        shown = parameter.opts[0] if parameter.param_type_name == "option" else parameter.name
        assert shown is not None
        assert shown in text
        assert getattr(parameter, "help", None), f"{shown} is not explained"


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_dash_h_is_help_too(words: tuple[str, ...], cli: CommandLine) -> None:
    assert cli.ok(*words, "-h") == cli.ok(*words, "--help")


@pytest.mark.parametrize("words", [(), ("study",), ("model",), ("audit",), ("governance",), ("site",)], ids=" ".join)
def test_a_group_without_a_command_shows_what_there_is(words: tuple[str, ...], cli: CommandLine) -> None:
    said = cli(*words)
    text = said.out + said.err
    for path in ALL:
        if path[: len(words)] == words:
            assert path[len(words)] in text


def test_an_unknown_command_or_option_is_named_with_the_way_to_help(cli: CommandLine) -> None:
    assert "No such command 'simulat'" in cli.usage_error("simulat")
    assert "--sit" in cli.usage_error("simulate", "study.yaml", "--out", "x", "--sit", "a=b")
    assert "-h" in cli.usage_error("run")


@pytest.mark.parametrize("words", [["version"], ["--version"]])
def test_the_version(words: list[str], cli: CommandLine) -> None:
    assert cli.ok(*words).strip().count(".") == 2
    assert cli.facts("version")["version"] == cli.ok(*words).strip()


def test_what_prints_facts_prints_them_as_json_too() -> None:
    without = {" ".join(words) for words, command in ALL.items() if "as_json" not in {p.name for p in command.params}}
    assert without == {"run", "migrate"}, "the services themselves speak in their logs"


@pytest.mark.parametrize("command", ["run", "migrate", "check-config"])
def test_an_unknown_service_is_named_with_those_there_are(command: str, cli: CommandLine) -> None:
    text = cli.error(command, "registry", "--config", "x.yaml", code=2)
    assert "registry" in text
    assert all(service in text for service in SERVICES)
