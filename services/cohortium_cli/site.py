"""`cohortium site`: inviting a hospital, and what a person in the hospital does with its connector."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from pydantic import ValidationError

from cohortium_cli.federation import ConnectorSpec, create_connector, write_secret
from cohortium_cli.operator import Operator, OperatorSettings
from cohortium_cli.output import USAGE, console, fail, friendly, show, table
from cohortium_messages.governance import Invitation
from cohortium_messages.problems import sentence

if TYPE_CHECKING:
    from cohortium_connector.commands import LocalSite

T = TypeVar("T")
site_app = typer.Typer(no_args_is_help=True, help="Invite a hospital; or, in the hospital: join, approve, withdraw.")
Json = Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")]
ConfigFile = Annotated[Path, typer.Option("--config", "-c", help="The connector's settings, a YAML file.")]
StudyName = Annotated[str, typer.Argument(help="The study's name, or the beginning of its digest.")]


@site_app.command()
def invite(
    name: Annotated[str, typer.Argument(help="The hospital's name, as people will see it.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The invitation to write; hand it over safely.")],
    operator: Annotated[
        Path, typer.Option("--operator", envvar="COHORTIUM_OPERATOR", help="The operator's settings.")
    ] = Path("operator.yaml"),
) -> None:
    """(Operator) Invite a hospital: a file with a one-time token, good for a day."""

    async def ask() -> Invitation:
        settings = OperatorSettings.load(operator)
        async with Operator.at(settings, settings.token_file.read_text(encoding="ascii").strip()) as client:
            return await client.invite(name)

    with friendly():
        invitation = asyncio.run(ask())
        write_secret(out, invitation.model_dump_json())
    console.print(f"[green]✓[/] {out}: site {invitation.site_id}, until {invitation.expires_at:%Y-%m-%d %H:%M} UTC")


@site_app.command()
def join(
    invitation: Annotated[Path, typer.Argument(help="The invitation that the operator handed over.")],
    directory: Annotated[Path, typer.Option("--dir", help="Folder for the connector's settings and spool.")],
    data: Annotated[Path, typer.Option(help="The hospital's table, CSV or Parquet.")],
    amqp: Annotated[str, typer.Option(help="RabbitMQ's URL.")] = "amqp://guest:guest@127.0.0.1:5672/",
    namespace: Annotated[str, typer.Option(help="The federation's prefix of exchanges and queues.")] = "cohortium",
) -> None:
    """Write the connector's settings from an invitation. Compare the officers' keys that it prints before you start it."""
    try:
        read = Invitation.model_validate_json(invitation.read_bytes())
    except OSError as error:
        fail(f"cannot read {invitation}: {error.strerror}", code=USAGE)
    except ValidationError:
        fail(f"{invitation} is not an invitation; ask the operator for the file again", code=USAGE)
    if not data.is_file():
        fail(f"--data {data}: there is no such file", code=USAGE)
    with friendly():
        config = create_connector(ConnectorSpec(directory, read, amqp, namespace, {"*": {"path": str(data.resolve())}}))
    console.print(f"[green]✓[/] {config}\nOfficers of {read.trust.federation}, {read.trust.threshold} must sign:")
    for key in read.trust.governance_keys:
        console.print(f"  {key.hex()}", highlight=False)
    console.print("If these are the keys that the officers gave you: cohortium run connector --config " + str(config))


@site_app.command()
def offers(config: ConfigFile, as_json: Json = False) -> None:
    """Studies that ask for this hospital's grant, and what became of each."""
    found = _locally(config, lambda site: site.offers())
    rows = [
        [
            offer.study,
            offer.digest[:12],
            "granted" if offer.permission == "granted" else sentence(offer.permission),
            ", ".join(offer.members),
            offer.purpose,
        ]
        for offer in found
    ]
    show(
        [_plain(offer) for offer in found],
        as_json=as_json,
        human=lambda: table(
            "Offers", ["study", "digest", "grant", "members", "purpose"], rows, empty="No study was offered yet."
        ),
    )


@site_app.command()
def approve(
    study: StudyName,
    config: ConfigFile,
    approver: Annotated[list[str], typer.Option(help="Who approves, by name; repeat for two people.")],
) -> None:
    """Grant a study version: from now on this hospital takes part in it."""
    grant = _locally(config, lambda site: site.approve(study, tuple(approver)))
    if grant is None:
        console.print(f"[green]✓[/] {study} is granted already")
    else:
        console.print(f"[green]✓[/] {study} is granted until {grant.not_after:%Y-%m-%d}, for {grant.max_rounds} rounds")


@site_app.command()
def withdraw(study: StudyName, config: ConfigFile) -> None:
    """Leave a study at once. One person can always stop."""
    ended = _locally(config, lambda site: site.withdraw(study))
    console.print(f"[green]✓[/] {study}: {ended} grants ended, work in hand is deleted")


@site_app.command()
def status(config: ConfigFile, as_json: Json = False) -> None:
    """What this connector is and has in hand."""
    view = _locally(config, lambda site: site.status())

    def human() -> None:
        joined = "enrolled" if view.registered else sentence(view.refused) if view.refused else "not enrolled yet"
        console.print(f"[bold]{view.name}[/] {view.site_id} in {view.federation}: {joined}")
        console.print(f"{view.finished_windows} windows done, {view.waiting_messages} messages wait to be sent")
        rows = [[one.study, one.purpose, str(one.round), one.phase] for one in view.windows]
        table("Open windows", ["study", "purpose", "round", "phase"], rows, empty="No window is open.")

    show(_plain(view), as_json=as_json, human=human)


def _locally(config: Path, ask: "Callable[[LocalSite], Awaitable[T]]") -> T:
    from cohortium_connector.commands import LocalSite
    from cohortium_connector.settings import ConnectorSettings

    async def inside() -> T:
        async with LocalSite.open(ConnectorSettings.load(config)) as site:
            return await ask(site)

    with friendly():
        return asyncio.run(inside())


def _plain(value: object) -> object:
    """A dataclass as JSON can hold it."""
    import json

    return json.loads(json.dumps(dataclasses.asdict(value), default=str))  # type: ignore[call-overload]
