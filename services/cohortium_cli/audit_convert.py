"""`cohortium audit convert`: a study's log for a SIEM, a FHIR server or a lineage tool."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from cohortium_cli.audit_formats import fhir_lines, prov_json, syslog_lines
from cohortium_cli.options import Json
from cohortium_cli.output import USAGE, done, fail, friendly, show
from cohortium_cli.runs import audit_app
from cohortium_verify import log
from cohortium_verify.bundle import BundleError, open_bundle

Format = Literal["fhir", "syslog", "prov"]


@audit_app.command("convert")
def audit_convert(
    bundle: Annotated[Path, typer.Argument(help="A bundle, as `cohortium audit export` or a simulation leaves it.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")],
    to: Annotated[
        Format, typer.Option(help="fhir: AuditEvent R4, NDJSON. syslog: RFC 5424. prov: W3C PROV-JSON, the lineage.")
    ],
    as_json: Json = False,
) -> None:
    """Write a study's audit log in another system's language. Only entries whose signatures hold are written.

    The result proves nothing: check the bundle itself with `cohortium verify`.
    """
    folder = bundle / "audit" if (bundle / "audit").is_dir() else bundle
    try:
        opened = open_bundle(folder)
        trust, manifests, raw = opened.trust(), opened.manifests(), opened.entries()
    except BundleError as error:
        fail(str(error), code=USAGE)
    study = manifests[-1].study_id
    origin = f"{trust.federation}/audit/{study}"
    keys = log.known_keys(trust.services, manifests)
    entries, failures = log.read_entries(raw, keys, study)
    if failures:
        fail(f"{folder}: {failures[0]}; run `cohortium verify {folder}`")
    if to == "prov":
        text = json.dumps(prov_json(entries, origin), indent=1) + "\n"
    else:
        lines = fhir_lines(entries, origin) if to == "fhir" else syslog_lines(entries, origin)
        text = "".join(f"{line}\n" for line in lines)
    with friendly():
        out.write_text(text, encoding="utf-8", newline="\n")
    facts = {"file": str(out), "format": to, "entries": len(entries)}
    show(facts, as_json=as_json, human=lambda: done(f"{out}: {len(entries)} entries"))
