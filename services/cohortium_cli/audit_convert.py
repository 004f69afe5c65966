"""`cohortium audit convert`: a log for a SIEM, a FHIR server or a lineage tool."""

from pathlib import Path
from typing import Annotated

import typer

from cohortium_cli.options import Json
from cohortium_cli.output import USAGE, done, fail, friendly, show
from cohortium_cli.runs import audit_app
from cohortium_verify import convert
from cohortium_verify.bundle import BundleError
from cohortium_verify.command import OptionRefused


@audit_app.command("convert")
def audit_convert(
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")],
    to: Annotated[convert.Format, typer.Option(help=convert.TO_HELP)],
    folder: Annotated[Path | None, typer.Argument(help=convert.FOLDER_HELP)] = None,
    entries: Annotated[Path | None, typer.Option(help=convert.ENTRIES_HELP)] = None,
    trust: Annotated[Path | None, typer.Option(help=convert.TRUST_HELP)] = None,
    manifest: Annotated[list[Path] | None, typer.Option(help=convert.MANIFEST_HELP)] = None,
    checkpoint: Annotated[Path | None, typer.Option(help=convert.CHECKPOINT_HELP)] = None,
    first: Annotated[int, typer.Option("--from", min=0, help=convert.FROM_HELP)] = 0,
    as_json: Json = False,
) -> None:
    """Write an audit log in another system's language. Only a log whose signatures all hold is written.

    A study's log from its bundle, or any log from its entries. The result proves nothing: check the bundle itself with
    `cohortium verify`.
    """
    try:
        files = convert.files_named(folder, entries, trust, manifest or [], checkpoint)
        text, count = convert.converted(files, to, first)
    except (BundleError, OptionRefused) as error:
        fail(str(error), code=USAGE)
    except convert.NotHeld as error:
        advice = "" if folder is None else f"; run `cohortium verify {folder}`"
        fail(f"{error}{advice}")
    with friendly():
        out.write_text(text, encoding="utf-8", newline="\n")
    facts = {"file": str(out), "format": to, "entries": count}
    show(facts, as_json=as_json, human=lambda: done(f"{out}: {count} entries"))
