"""`cohortium init` and `cohortium governance`: the federation's files, and the signatures of people."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from cohortium_cli.federation import ROLES, FederationSpec, create_federation, write_secret
from cohortium_cli.operator import Operator, OperatorSettings
from cohortium_cli.output import USAGE, console, fail, friendly, show
from cohortium_messages.governance import Manifest
from cohortium_messages.study_file import parse_study
from cohortium_platform.identity import read_key
from cohortium_protocol.documents import sign_manifest
from cohortium_protocol.signing import IdentityKey

FIRST_PORT = 8701
governance_app = typer.Typer(no_args_is_help=True, help="Officers' keys, and the membership manifests they sign.")
Json = Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")]
OperatorFile = Annotated[
    Path, typer.Option("--operator", envvar="COHORTIUM_OPERATOR", help="The operator's settings, a YAML file.")
]
OPERATOR_DEFAULT = Path("operator.yaml")


def init(
    directory: Annotated[Path, typer.Argument(help="Folder for the federation's files; made if missing.")],
    name: Annotated[str, typer.Option(help="The federation's name, like a host name.")] = "federation.example",
    amqp: Annotated[str, typer.Option(help="RabbitMQ's URL.")] = "amqp://guest:guest@127.0.0.1:5672/",
    database: Annotated[str | None, typer.Option(help="PostgreSQL's URL; left out, SQLite files.")] = None,
    namespace: Annotated[str, typer.Option(help="Prefix of exchanges and queues.")] = "cohortium",
    as_json: Json = False,
) -> None:
    """Make a federation: keys, the signed trust document, one settings file a service.

    Both officers' keys are made here, which is right for a trial only. For production each officer makes a key with
    `cohortium governance keygen` on a machine of their own.
    """
    ports = {role: FIRST_PORT + number for number, role in enumerate(ROLES)}
    with friendly():
        files = create_federation(
            FederationSpec(
                directory=directory,
                name=name,
                amqp_url=amqp,
                database_url=database,
                namespace=namespace,
                now=datetime.now(UTC),
                ports=ports,
            )
        )
    facts = {
        "directory": str(directory),
        "trust": str(directory / "trust.json"),
        "operator": str(files.operator_settings),
    }
    facts |= {f"config_{role}": str(path) for role, path in files.configs.items()}

    def human() -> None:
        console.print(f"[green]✓[/] {directory}: trust document, keys, settings of {', '.join(ROLES)}")
        console.print(
            "Next, for each service: cohortium migrate SERVICE --config …, then cohortium run SERVICE --config …"
        )

    show(facts, as_json=as_json, human=human)


@governance_app.command()
def keygen(file: Annotated[Path, typer.Argument(help="The file for the new key, readable by its owner only.")]) -> None:
    """Make an officer's key and print its public half, which hospitals pin."""
    key = IdentityKey.generate()
    with friendly():
        write_secret(file, key.to_seed().hex())
    console.print(key.public.hex(), highlight=False)


@governance_app.command()
def draft(
    study: Annotated[Path, typer.Argument(help="The study file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The manifest to write, JSON.")],
    site: Annotated[
        list[str] | None, typer.Option(help="A member's name or id; repeat. Left out: every enrolled site.")
    ] = None,
    operator: OperatorFile = OPERATOR_DEFAULT,
) -> None:
    """Draft the membership manifest of a study, for the officers to read and sign."""
    with friendly():
        parsed = parse_study(study.read_text(encoding="utf-8"), file=str(study))
        manifest = asyncio.run(_draft(operator, parsed.name, parsed.digest(), parsed.federation.collusion, site))
    _write(out, manifest)
    console.print(
        f"[green]✓[/] {out}: version {manifest.version}, {len(manifest.members)} members, c = {manifest.collusion}"
    )


async def _draft(operator: Path, study: str, digest: bytes, collusion: int | None, names: list[str] | None) -> Manifest:
    async with _operator(operator) as client:
        active = [one for one in await client.sites() if one.get("state") == "active"]
        chosen = [one for one in active if not names or one["name"] in names or one["site_id"] in names]
        return await client.draft_manifest(study, digest, [one["site_id"] for one in chosen], collusion)


@governance_app.command()
def sign(
    manifest: Annotated[Path, typer.Argument(help="The manifest, JSON; the signature is added in place.")],
    key: Annotated[Path, typer.Option(help="The officer's key file.")],
) -> None:
    """Sign a membership manifest as an officer."""
    with friendly():
        signed = sign_manifest(_read(manifest), read_key(key))
    _write(manifest, signed)
    console.print(f"[green]✓[/] {manifest}: {len(signed.signatures)} signatures")


@governance_app.command()
def publish(
    manifest: Annotated[Path, typer.Argument(help="The signed manifest, JSON.")],
    operator: OperatorFile = OPERATOR_DEFAULT,
) -> None:
    """Hand a signed manifest to enrolment, which checks it and sends it to services and members."""
    read = _read(manifest)

    async def hand_over() -> None:
        async with _operator(operator) as client:
            await client.publish_manifest(read)

    with friendly():
        asyncio.run(hand_over())
    console.print(f"[green]✓[/] manifest {read.version} of {read.study_id} is published")


def _operator(path: Path) -> Operator:
    settings = OperatorSettings.load(path)
    return Operator.at(settings, settings.token_file.read_text(encoding="ascii").strip())


def _read(path: Path) -> Manifest:
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        fail(f"cannot read {path}: {error.strerror}", code=USAGE)
    except ValidationError as error:
        first = error.errors()[0]
        fail(f"{path} is not a manifest: {'.'.join(map(str, first['loc']))}: {first['msg']}", code=USAGE)


def _write(path: Path, manifest: Manifest) -> None:
    path.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
