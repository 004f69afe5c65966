"""`cohortium connector`: what a hospital's IT does with its connector beside the decisions of `cohortium site`."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from cohortium_cli.federation import write_secret
from cohortium_cli.options import Json
from cohortium_cli.output import FAILED, USAGE, fail, friendly, say

connector_app = typer.Typer(no_args_is_help=True, help="In the hospital: try line, machine and training.")


@connector_app.command()
def preflight(
    config: Annotated[Path, typer.Option("--config", "-c", help="The connector's settings, a YAML file.")],
    send: Annotated[bool, typer.Option(help="Tell the platform the outcome: codes and numbers, nothing else.")] = True,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the report here, too, as JSON.")] = None,
    as_json: Json = False,
) -> None:
    """Try what a study will need, with the connector stopped: broker, clock, line, machine, training, tables.

    Exit code 1 if something failed. Nothing of a record is read, and nothing is changed.
    """
    from cohortium_connector.preflight.trial import carry_out
    from cohortium_connector.preflight.words import lines
    from cohortium_connector.settings import ConnectorSettings

    if out is not None and out.exists():
        fail(f"{out} is there already; choose another file for the report", code=USAGE)
    with friendly():
        trial = asyncio.run(carry_out(ConnectorSettings.load(config), send=send))
        if out is not None:
            write_secret(out, trial.as_json())
    say(trial.as_json() if as_json else "\n".join(lines(trial)))
    if not trial.passed:
        raise typer.Exit(FAILED)
