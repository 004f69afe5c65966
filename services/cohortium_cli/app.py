"""The command tree. Each command reads its options, calls one function, and prints what came of it."""

import asyncio
import dataclasses
import importlib
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from cohortium_cli.governance import governance_app, init
from cohortium_cli.operator import Operator, OperatorSettings
from cohortium_cli.output import FAILED, OK, USAGE, console, fail, friendly, print_json, show, table
from cohortium_cli.simulation import demo, simulate
from cohortium_cli.site import site_app
from cohortium_messages.problems import sentence
from cohortium_messages.status import RunStatus, RunSummary
from cohortium_messages.study_file import StudyFileError, parse_study

SERVICES = ("enrolment", "consent", "scheduler", "aggregator", "audit", "connector")
app = typer.Typer(
    name="cohortium",
    help="Federated learning for hospitals over a message broker: only sums leave a hospital.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_show_locals=False,
)
study_app = typer.Typer(no_args_is_help=True, help="Check a study file, or submit it to running services.")
model_app = typer.Typer(no_args_is_help=True, help="Fetch what a run made.")

START, OPERATE, PROVE, HOSPITAL = "Start here", "Operate", "Prove", "In the hospital"
Json = Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")]
ServiceName = Annotated[str, typer.Argument(help="One of: " + ", ".join(SERVICES) + ".")]
ConfigFile = Annotated[Path, typer.Option("--config", "-c", help="The service's settings, a YAML file.")]
StudyFile = Annotated[Path, typer.Argument(help="The study file (YAML).")]
OperatorFile = Annotated[
    Path, typer.Option("--operator", envvar="COHORTIUM_OPERATOR", help="The operator's settings, a YAML file.")
]
OPERATOR_DEFAULT = Path("operator.yaml")

app.command(rich_help_panel=START)(demo)
app.command(rich_help_panel=START)(simulate)
app.command(rich_help_panel=OPERATE)(init)
app.add_typer(governance_app, name="governance", rich_help_panel=OPERATE)
app.add_typer(study_app, name="study", rich_help_panel=OPERATE)
app.add_typer(model_app, name="model", rich_help_panel=OPERATE)
app.add_typer(site_app, name="site", rich_help_panel=HOSPITAL)


# Services


def _service(name: str) -> Any:
    if name not in SERVICES:
        fail(f"there is no service {name}; the services are {', '.join(SERVICES)}", code=USAGE)
    return importlib.import_module(f"cohortium_{name}.__main__")


@app.command(rich_help_panel=OPERATE)
def run(service: ServiceName, config: ConfigFile) -> None:
    """Run one service until it is told to stop (SIGTERM or Ctrl-C)."""
    raise typer.Exit(_service(service).main(["run", "--config", str(config)]))


@app.command(rich_help_panel=OPERATE)
def migrate(service: ServiceName, config: ConfigFile) -> None:
    """Bring one service's tables up to date."""
    raise typer.Exit(_service(service).main(["migrate", "--config", str(config)]))


@app.command("check-config", rich_help_panel=OPERATE)
def check_config(service: ServiceName, config: ConfigFile) -> None:
    """Check a settings file and name every error in it."""
    raise typer.Exit(_service(service).main(["check-config", "--config", str(config)]))


# Studies and runs


@study_app.command("check")
def study_check(file: StudyFile, as_json: Json = False) -> None:
    """Check a study file; every error is named with its line and field."""
    text = _read(file)
    try:
        study = parse_study(text, file=str(file))
    except StudyFileError as error:
        if as_json:
            print_json({"valid": False, "problems": [dataclasses.asdict(problem) for problem in error.problems]})
            raise typer.Exit(FAILED) from None
        fail(str(error))
    facts = {"valid": True, "name": study.name, "digest": study.digest().hex(), "trainer": study.recipe.trainer}
    show(
        facts,
        as_json=as_json,
        human=lambda: console.print(
            f"[green]✓[/] {study.name}: {len(study.dataset.features)} features, {study.recipe.trainer}, "
            f"{study.federation.rounds} rounds {study.federation.mode}\n  digest {study.digest().hex()}"
        ),
    )


@study_app.command("submit")
def study_submit(file: StudyFile, operator: OperatorFile = OPERATOR_DEFAULT, as_json: Json = False) -> None:
    """Submit a study to the scheduler; it recruits until members are signed in and their hospitals have granted."""
    text = _read(file)
    with friendly():
        parse_study(text, file=str(file))
        started = asyncio.run(_with(operator, lambda client: client.submit(text)))
    show(
        started.model_dump(mode="json"),
        as_json=as_json,
        human=lambda: console.print(
            f"[green]✓[/] run {started.run_id} is {started.state}\n  study digest {started.study_digest.hex()}"
        ),
    )


@app.command(rich_help_panel=OPERATE)
def runs(operator: OperatorFile = OPERATOR_DEFAULT, as_json: Json = False) -> None:
    """List runs, newest first."""
    with friendly():
        listed: list[RunSummary] = asyncio.run(_with(operator, lambda client: client.runs()))
    rows = [
        [item.run_id, item.study_id, item.state, f"{item.round}/{item.rounds}", item.sentence or ""] for item in listed
    ]
    show(
        [item.model_dump(mode="json") for item in listed],
        as_json=as_json,
        human=lambda: table("Runs", ["run", "study", "state", "round", "why"], rows, empty="There are no runs yet."),
    )


@app.command("run-status", rich_help_panel=OPERATE)
def run_status(
    run_id: Annotated[str, typer.Argument(help="The run's id.")],
    operator: OperatorFile = OPERATOR_DEFAULT,
    as_json: Json = False,
) -> None:
    """Show one run: its rounds, its sites, its open window, and the reason of a refusal."""
    with friendly():
        status: RunStatus = asyncio.run(_with(operator, lambda client: client.run(run_id)))
    show(status.model_dump(mode="json"), as_json=as_json, human=lambda: _print_status(status))


def _print_status(status: RunStatus) -> None:
    console.print(f"[bold]{status.study_id}[/] {status.run_id}\n{status.state} round {status.round} of {status.rounds}")
    if status.sentence:
        console.print(status.sentence)
    sites = [
        [site.name, site.state, str(site.updates_used), sentence(site.code) if site.code else ""]
        for site in status.sites
    ]
    table("Sites", ["site", "state", "updates used", "why"], sites, empty="No members yet.")
    rounds = [
        [
            str(done.number),
            ", ".join(done.cohort),
            f"{done.seconds:.2f}",
            f"{done.bytes_up}",
            "" if done.evaluation is None or done.evaluation.auc is None else f"{done.evaluation.auc:.4f}",
        ]
        for done in status.rounds_done[-10:]
    ]
    table("Newest rounds", ["round", "cohort", "seconds", "bytes up", "AUC"], rounds, empty="No round has ended yet.")


@model_app.command("export")
def model_export(
    run_id: Annotated[str, typer.Argument(help="The run's id.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write, a ZIP archive.")],
    operator: OperatorFile = OPERATOR_DEFAULT,
    as_json: Json = False,
) -> None:
    """Fetch the signed model of a finished run: weights, preprocessing, card, attestation."""
    with friendly():
        bundle: bytes = asyncio.run(_with(operator, lambda client: client.model_bundle(run_id)))
        try:
            out.write_bytes(bundle)
        except OSError as error:
            fail(f"cannot write {out}: {error.strerror}")
    show(
        {"run_id": run_id, "file": str(out), "bytes": len(bundle)},
        as_json=as_json,
        human=lambda: console.print(f"[green]✓[/] {out}: {len(bundle)} bytes"),
    )


async def _with(operator: Path, ask: Any) -> Any:
    settings = OperatorSettings.load(operator)
    token = settings.token_file.read_text(encoding="ascii").strip()
    async with Operator.at(settings, token) as client:
        return await ask(client)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        fail(f"there is no file {file}", code=USAGE)
    except UnicodeDecodeError:
        fail(f"{file} is not UTF-8 text", code=USAGE)
    except OSError as error:
        fail(f"cannot read {file}: {error.strerror}", code=USAGE)


# Proof


@app.command(rich_help_panel=PROVE)
def verify(
    directory: Annotated[Path, typer.Argument(help="A result's folder, or the audit bundle in it.")],
    governance_key: Annotated[
        list[str] | None, typer.Option("--governance-key", help="An officer's public key that you trust (hex); repeat.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check the audit bundle of a result offline and say what it proves.

    Exit codes: 0 proved, 1 refuted, 2 unreadable.
    """
    from cohortium_cli.verify import verify_bundle

    keys = []
    for text in governance_key or []:
        try:
            keys.append(bytes.fromhex(text))
        except ValueError:
            fail(f"--governance-key {text} is not hexadecimal text", code=USAGE)
    report = verify_bundle(directory / "audit" if (directory / "audit").is_dir() else directory, keys or None)
    show(report.as_dict(), as_json=as_json, human=lambda: console.print(report.text(), markup=False, highlight=False))
    raise typer.Exit(report.exit_code)


@app.command(rich_help_panel=OPERATE)
def version(as_json: Json = False) -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    show({"version": installed("cohortium")}, as_json=as_json, human=lambda: console.print(installed("cohortium")))
    raise typer.Exit(OK)


if os.environ.get("COHORTIUM_NO_COLOR"):
    console.no_color = True
