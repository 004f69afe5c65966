"""`cohortium init` and `cohortium governance`: the federation's files, and the signatures of people."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from cohortium_cli.federation import ROLES, FederationFiles, FederationSpec, create_federation, write_secret
from cohortium_cli.operator import Operator, OperatorError
from cohortium_cli.options import (
    AMQP_DEFAULT,
    NAMESPACE_DEFAULT,
    OPERATOR_DEFAULT,
    Json,
    OperatorFile,
    StudyFile,
)
from cohortium_cli.output import USAGE, done, fail, friendly, read_text, say, show
from cohortium_cli.runs import ask
from cohortium_messages.governance import Manifest
from cohortium_messages.study import Study
from cohortium_messages.study_file import parse_study
from cohortium_platform.identity import read_key
from cohortium_protocol.documents import sign_manifest
from cohortium_protocol.signing import IdentityKey

FIRST_PORT = 8701
LEAST_MEMBERS = 3
governance_app = typer.Typer(no_args_is_help=True, help="Officers' keys, and the membership manifests they sign.")


def init(
    directory: Annotated[Path, typer.Argument(help="Folder for the federation's files; made if missing.")],
    name: Annotated[str, typer.Option(help="The federation's name, like a host name.")] = "federation.example",
    amqp: Annotated[str, typer.Option(help="RabbitMQ's URL.")] = AMQP_DEFAULT,
    database: Annotated[str | None, typer.Option(help="PostgreSQL's URL; left out, SQLite files.")] = None,
    namespace: Annotated[str, typer.Option(help="Prefix of exchanges, queues and schemas.")] = NAMESPACE_DEFAULT,
    first_port: Annotated[
        int, typer.Option(min=1, max=65536 - len(ROLES), help="HTTP port of the first service; the others follow it.")
    ] = FIRST_PORT,
    as_json: Json = False,
) -> None:
    """Make a federation: keys, the signed trust document, one settings file a service.

    Both officers' keys are made here, which is right for a trial only. For production each officer makes a key with
    `cohortium governance keygen` on a machine of their own.
    """
    spec = FederationSpec(
        directory=directory,
        name=name,
        amqp_url=amqp,
        database_url=database,
        namespace=namespace,
        schema_prefix=f"{namespace.replace('-', '_')}_",
        now=datetime.now(UTC),
        ports={role: first_port + number for number, role in enumerate(ROLES)},
    )
    with friendly(code=USAGE):
        files = create_federation(spec)
    facts = {
        "directory": str(directory),
        "trust": str(directory / "trust.json"),
        "operator": str(files.operator_settings),
    }
    facts |= {f"config_{role}": str(path) for role, path in files.configs.items()}
    show(facts, as_json=as_json, human=lambda: _next_steps(files))


def _next_steps(files: FederationFiles) -> None:
    done(f"{files.directory}: trust document, keys, settings of {', '.join(ROLES)}")
    say(f"Next, for each of the {len(ROLES)} services, the tables once and then the service, for example:")
    say(f"  cohortium migrate {ROLES[0]} --config {files.configs[ROLES[0]]}")
    say(f"  cohortium run {ROLES[0]} --config {files.configs[ROLES[0]]}")
    say("Then invite hospitals:")
    say(f"  export COHORTIUM_OPERATOR={files.operator_settings.resolve()}")
    say("  cohortium site invite NAME --out invitation.json")


@governance_app.command()
def keygen(
    file: Annotated[Path, typer.Argument(help="The file for the new key, readable by its owner only.")],
    as_json: Json = False,
) -> None:
    """Make an officer's key and print its public half, which hospitals pin."""
    key = IdentityKey.generate()
    with friendly(code=USAGE):
        write_secret(file, key.to_seed().hex())
    show({"file": str(file), "public_key": key.public.hex()}, as_json=as_json, human=lambda: say(key.public.hex()))


@governance_app.command()
def draft(
    study: StudyFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="The manifest to write, JSON.")],
    site: Annotated[
        list[str] | None, typer.Option(help="A member's name or id; repeat. Left out: every enrolled site.")
    ] = None,
    operator: OperatorFile = OPERATOR_DEFAULT,
    as_json: Json = False,
) -> None:
    """Draft the membership manifest of a study, for the officers to read and sign."""
    text = read_text(study, "study file")
    with friendly():
        parsed = parse_study(text, file=str(study))
    manifest = ask(operator, lambda client: _draft(client, parsed, site or ()))
    _write(out, manifest)
    _tell(manifest, out, as_json, f"{out}: version {manifest.version} for {manifest.study_id}, to be signed")


async def _draft(client: Operator, study: Study, names: Sequence[str]) -> Manifest:
    active = [one for one in await client.sites() if one.get("state") == "active"]
    known = ", ".join(str(one["name"]) for one in active) or "none yet"
    strangers = sorted(set(names) - {str(one[key]) for one in active for key in ("name", "site_id")})
    if strangers:
        raise OperatorError(f"--site {strangers[0]}: no enrolled site is called so; enrolled are: {known}")
    chosen = [str(one["site_id"]) for one in active if not names or one["name"] in names or one["site_id"] in names]
    if len(chosen) < LEAST_MEMBERS:
        raise OperatorError(
            f"a study needs at least {LEAST_MEMBERS} members, and {len(chosen)} would be; enrolled are: {known}. "
            "Invite more with `cohortium site invite`, and start their connectors: they enrol when they run"
        )
    return await client.draft_manifest(study.name, study.digest(), chosen, study.federation.collusion)


@governance_app.command()
def sign(
    manifest: Annotated[Path, typer.Argument(help="The manifest, JSON; the signature is added in place.")],
    key: Annotated[Path, typer.Option(help="The officer's key file.")],
    as_json: Json = False,
) -> None:
    """Sign a membership manifest as an officer."""
    read = _read(manifest)
    with friendly(code=USAGE):
        signed = sign_manifest(read, read_key(key))
    _write(manifest, signed)
    count = len(signed.signatures)
    _tell(signed, manifest, as_json, f"{manifest}: {count} signature{'' if count == 1 else 's'}")


@governance_app.command()
def publish(
    manifest: Annotated[Path, typer.Argument(help="The signed manifest, JSON.")],
    operator: OperatorFile = OPERATOR_DEFAULT,
    as_json: Json = False,
) -> None:
    """Hand a signed manifest to enrolment, which checks it and sends it to services and members."""
    read = _read(manifest)
    ask(operator, lambda client: client.publish_manifest(read))
    _tell(read, manifest, as_json, f"version {read.version} for {read.study_id} is published")


def _tell(manifest: Manifest, file: Path, as_json: bool, sentence: str) -> None:
    facts: dict[str, Any] = {
        "file": str(file),
        "study": manifest.study_id,
        "study_digest": manifest.study_digest.hex(),
        "version": manifest.version,
        "members": [member.name for member in manifest.members],
        "collusion": manifest.collusion,
        "signatures": len(manifest.signatures),
    }

    def human() -> None:
        done(sentence)
        say(f"  {len(manifest.members)} members, of which {manifest.collusion} may collude:")
        say(f"  {', '.join(facts['members'])}")

    show(facts, as_json=as_json, human=human)


def _read(path: Path) -> Manifest:
    try:
        return Manifest.model_validate_json(read_text(path, "manifest"))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole file"
        fail(f"{path} is not a manifest: {place}: {first['msg']}; make one with governance draft", code=USAGE)


def _write(path: Path, manifest: Manifest) -> None:
    with friendly(code=USAGE):
        path.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
