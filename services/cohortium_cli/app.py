"""The command tree. Each command reads its options, calls one function, and prints what came of it."""

import dataclasses
import importlib
import os
from importlib.metadata import version as installed
from pathlib import Path
from typing import Annotated, Any

import typer

from cohortium_cli import audit_convert, consent_proofs, withdrawals  # noqa: F401 - they add commands to others
from cohortium_cli.broker import broker_app
from cohortium_cli.budget import budget, budget_write_off
from cohortium_cli.connector import connector_app
from cohortium_cli.consent import consent_app
from cohortium_cli.dead_letters import dead_letters_app
from cohortium_cli.governance import governance_app, init
from cohortium_cli.models import model_app
from cohortium_cli.options import Json, StudyFile
from cohortium_cli.output import (
    FAILED,
    USAGE,
    console,
    done,
    errors,
    fail,
    print_json,
    quiet_logs,
    read_text,
    say,
    show,
)
from cohortium_cli.people import people_app
from cohortium_cli.pki import pki_app
from cohortium_cli.privacy import privacy_app
from cohortium_cli.runs import audit_app, run_lineage, run_status, runs, study_submit
from cohortium_cli.simulation import demo, simulate
from cohortium_cli.site import site_app
from cohortium_cli.sites import sites
from cohortium_cli.study_words import cohort, details, extent, governance, promise, promise_facts, tree_facts
from cohortium_kit.errors import ConfigurationError
from cohortium_messages.study_file import StudyFileError, parse_study
from cohortium_privacy.study_plans import plan_findings

SERVICES = ("enrolment", "consent", "scheduler", "aggregator", "audit", "connector")
app = typer.Typer(
    name="cohortium",
    help="Federated learning for hospitals over a message broker: only sums leave a hospital.",
    epilog="Start with `cohortium demo`. Every command explains itself with --help.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_show_locals=False,
)
study_app = typer.Typer(no_args_is_help=True, help="Check a study file, or submit it to running services.")

START, OPERATE, PROVE, HOSPITAL = "Start here", "Operate", "Prove", "In the hospital"
ServiceName = Annotated[str, typer.Argument(help="One of: " + ", ".join(SERVICES) + ".")]
ConfigFile = Annotated[Path, typer.Option("--config", "-c", help="The service's settings, a YAML file.")]

app.command(rich_help_panel=START)(demo)
app.command(rich_help_panel=START)(simulate)
app.command(rich_help_panel=OPERATE)(init)
app.command(rich_help_panel=OPERATE)(sites)
app.command(rich_help_panel=OPERATE)(runs)
app.command("run-status", rich_help_panel=OPERATE)(run_status)
app.command("run-lineage", rich_help_panel=OPERATE)(run_lineage)
study_app.command("submit")(study_submit)
app.add_typer(governance_app, name="governance", rich_help_panel=OPERATE)
app.add_typer(consent_app, name="consent", rich_help_panel=OPERATE)
app.add_typer(people_app, name="people", rich_help_panel=OPERATE)
app.add_typer(study_app, name="study", rich_help_panel=OPERATE)
app.add_typer(dead_letters_app, name="dead-letters", rich_help_panel=OPERATE)
app.add_typer(pki_app, name="pki", rich_help_panel=OPERATE)
app.add_typer(broker_app, name="broker", rich_help_panel=OPERATE)
app.add_typer(model_app, name="model", rich_help_panel=OPERATE)
app.add_typer(audit_app, name="audit", rich_help_panel=PROVE)
app.add_typer(site_app, name="site", rich_help_panel=HOSPITAL)
app.add_typer(connector_app, name="connector", rich_help_panel=HOSPITAL)
app.command(rich_help_panel=HOSPITAL)(budget)
app.command("budget-write-off", rich_help_panel=HOSPITAL)(budget_write_off)
app.add_typer(privacy_app, name="privacy", rich_help_panel=PROVE)


def _print_version(asked: bool) -> None:
    if asked:
        say(installed("cohortium"))
        raise typer.Exit


@app.callback()
def root(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Federated learning for hospitals over a message broker: only sums leave a hospital."""
    quiet_logs()


# Services


def _known(service: str) -> str:
    if service not in SERVICES:
        fail(f"there is no service {service}; the services are {', '.join(SERVICES)}", code=USAGE)
    return service


def _service(name: str) -> Any:
    return importlib.import_module(f"cohortium_{_known(name)}.__main__")


@app.command(rich_help_panel=OPERATE)
def run(service: ServiceName, config: ConfigFile) -> None:
    """Run one service until it is told to stop (SIGTERM or Ctrl-C)."""
    raise typer.Exit(_service(service).main(["run", "--config", str(config)]))


@app.command(rich_help_panel=OPERATE)
def migrate(service: ServiceName, config: ConfigFile) -> None:
    """Bring one service's tables up to date."""
    raise typer.Exit(_service(service).main(["migrate", "--config", str(config)]))


@app.command("check-config", rich_help_panel=OPERATE)
def check_config(service: ServiceName, config: ConfigFile, as_json: Json = False) -> None:
    """Check a settings file and name every error in it."""
    module = importlib.import_module(f"cohortium_{_known(service)}.settings")
    facts = {"service": service, "config": str(config), "valid": True, "problem": None}
    try:
        getattr(module, f"{service.capitalize()}Settings").load(config)
    except ConfigurationError as error:
        if not as_json:
            fail(str(error), code=USAGE)
        print_json(facts | {"valid": False, "problem": str(error)})
        raise typer.Exit(USAGE) from None
    show(facts, as_json=as_json, human=lambda: done(f"{config}: no errors"))


# Studies


@study_app.command("check")
def study_check(file: StudyFile, as_json: Json = False) -> None:
    """Check a study file; every error is named with its line and field."""
    text = read_text(file, "study file")
    try:
        study = parse_study(text, file=str(file), also=plan_findings)
    except StudyFileError as error:
        if not as_json:
            fail(str(error))
        print_json({"valid": False, "problems": [dataclasses.asdict(problem) for problem in error.problems]})
        raise typer.Exit(FAILED) from None

    def human() -> None:
        done(
            f"{study.name}: {len(study.dataset.features)} features, {study.recipe.trainer}, "
            f"{extent(study)}, at least {study.federation.min_sites} sites"
        )
        say(f"  digest {study.digest().hex()}")
        for line in (governance(study), cohort(study), *details(study), *promise(study)):
            say(f"  {line}")

    facts = {"valid": True, "name": study.name, "digest": study.digest().hex(), "trainer": study.recipe.trainer}
    facts |= {"governance": study.governance}
    show(facts | tree_facts(study) | promise_facts(study), as_json=as_json, human=human)


# Proof


@app.command(rich_help_panel=PROVE)
def verify(
    directory: Annotated[Path, typer.Argument(help="A result's folder, or the audit bundle in it.")],
    governance_key: Annotated[
        list[str] | None, typer.Option("--governance-key", help="An officer's public key that you trust (hex); repeat.")
    ] = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            "--checkpoint",
            help="A checkpoint of this log that you kept earlier, several divided by a line ----, or a file of a "
            "hospital's witness/; repeat.",
        ),
    ] = None,
    quorum: Annotated[
        int | None,
        typer.Option(min=0, max=200, help="Hospitals that must have cosigned; left out, what the study asks for."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check the audit bundle of a result offline and say what it proves.

    Exit codes: 0 proved, 1 refuted, 2 unreadable.
    """
    from cohortium_verify.command import OptionRefused, verify_folder

    try:
        report = verify_folder(directory, governance_key or [], checkpoint or [], quorum)
    except OptionRefused as error:
        fail(str(error), code=USAGE)
    show(report.as_dict(), as_json=as_json, human=lambda: say(report.text()))
    raise typer.Exit(report.exit_code)


@app.command(rich_help_panel=OPERATE)
def version(as_json: Json = False) -> None:
    """Print the version."""
    show({"version": installed("cohortium")}, as_json=as_json, human=lambda: say(installed("cohortium")))


if os.environ.get("COHORTIUM_NO_COLOR"):
    console.no_color = errors.no_color = True
