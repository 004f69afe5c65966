"""`cohortium consent`: documents, signatures and the people behind them, at the operator's and in the hospital."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

import typer
import yaml
from pydantic import TypeAdapter, ValidationError

from cohortium_cli.locally import locally
from cohortium_cli.options import OPERATOR_DEFAULT, Json, OperatorFile
from cohortium_cli.output import USAGE, done, fail, friendly, read_text, say, show, table
from cohortium_cli.runs import ask
from cohortium_messages.consent import ConsentFile, Deed, Document, PersonCard, Record
from cohortium_platform.identity import read_key
from cohortium_protocol.consent.authorise import Dossier, name_of, told
from cohortium_protocol.consent.files import about, sign_documents
from cohortium_protocol.consent.intake import NotAccepted
from cohortium_protocol.consent.signing import card_digest, record_digest, sign_act, sign_card

if TYPE_CHECKING:
    from cohortium_connector.consent_commands import LocalConsent

T = TypeVar("T")
_DOCUMENT: TypeAdapter[Document] = TypeAdapter(Document)
consent_app = typer.Typer(
    no_args_is_help=True, help="Agreements, ethics approvals, data-use terms, approvals: write, sign, share, check."
)
FileArgument = Annotated[Path, typer.Argument(help="A consent file, JSON, as `consent new` and `consent get` make it.")]
Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="In the hospital: the connector's settings. Left out: the operator."),
]
KeyFile = Annotated[Path, typer.Option(help="The person's key file, made with `governance keygen`.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="The consent file to write, JSON.")]


@consent_app.command()
def card(
    person: Annotated[str, typer.Option(help="An opaque id, unique at the institution; logs show it.")],
    name: Annotated[str, typer.Option(help="The printed name, as it stands in signatures.")],
    role: Annotated[str, typer.Option(help="study_lead, reviewer, officer, site_admin or site_approver.")],
    public_key: Annotated[str, typer.Option(help="The person's public key, 64 hexadecimal digits.")],
    out: Out,
    site_id: Annotated[str | None, typer.Option(help="The hospital's site id, for people of a hospital.")] = None,
    days: Annotated[int, typer.Option(min=1, max=3660, help="How long the card is good.")] = 365,
    as_json: Json = False,
) -> None:
    """Write a card: whose key is whose, in which role. It counts once it is vouched for."""
    now = datetime.now(UTC)
    values = {"person": person, "name": name, "role": role, "key": public_key, "site_id": site_id}
    values |= {"not_before": now.isoformat(), "not_after": (now + timedelta(days=days)).isoformat()}
    try:
        made = PersonCard.model_validate(values)
    except ValidationError as error:
        fail(_first_fault("the card", error), code=USAGE)
    _write(out, ConsentFile(people=(made,)))
    facts = {"file": str(out), "card": card_digest(made).hex()}
    show(facts, as_json=as_json, human=lambda: done(f"{out}: {made.name}, {made.role}; to be vouched for"))


@consent_app.command()
def vouch(
    file: FileArgument,
    key: Annotated[Path | None, typer.Option(help="An officer's key file, for people of the federation.")] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Vouch for the cards in a file: as an officer with --key, as the hospital with --config."""
    read = _read(file)
    if (key is None) == (config is None):
        fail("give --key (an officer) or --config (the hospital), one of them", code=USAGE)
    with friendly(code=USAGE):
        if key is not None:
            signer = read_key(key)
            people = tuple(sign_card(one, signer) for one in read.people)
        else:
            people = _locally(config, lambda site: _vouched(site, read))
    _write(file, read.model_copy(update={"people": people}))
    facts = {"file": str(file), "signatures": [len(one.signatures) for one in people]}
    show(facts, as_json=as_json, human=lambda: done(f"{file}: {len(people)} card(s) vouched for"))


async def _vouched(site: "LocalConsent", file: ConsentFile) -> tuple[PersonCard, ...]:
    try:
        return tuple(site.vouch(one) for one in file.people)
    except ValueError as error:
        fail(str(error), code=USAGE)


@consent_app.command()
def new(
    document: Annotated[Path, typer.Argument(help="The document's fields, YAML; `kind` says which it is.")],
    out: Out,
    as_json: Json = False,
) -> None:
    """Check a document that was written by hand, and make a consent file of it for people to sign."""
    try:
        raw = yaml.safe_load(read_text(document, "document"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        fail(f"{document}{f' line {mark.line + 1}' if mark else ''}: not YAML; write `field: value`", code=USAGE)
    try:
        made = _DOCUMENT.validate_python(raw)
    except ValidationError as error:
        fail(_first_fault(str(document), error), code=USAGE)
    _write(out, ConsentFile(records=(Record(document=made),)))
    digest = record_digest(made).hex()
    show({"file": str(out), "record": digest}, as_json=as_json, human=lambda: done(f"{out}: {name_of(made)}, {digest}"))


@consent_app.command()
def sign(
    file: FileArgument,
    deed: Annotated[str, typer.Option(help="submit (as the author), approve, reject, suspend or terminate.")],
    name: Annotated[str, typer.Option(help="The printed name of the person who signs.")],
    key: KeyFile,
    cards: Annotated[bool, typer.Option("--cards", help="End the cards in the file, not its documents.")] = False,
    as_json: Json = False,
) -> None:
    """Sign every document in a file: name, moment and meaning stand in the signature."""
    if deed not in get_args(Deed):
        fail(f"--deed {deed}: one of {', '.join(get_args(Deed))}", code=USAGE)
    read, now = _read(file), datetime.now(UTC)
    if cards and deed != "terminate":
        fail("--cards: a card can be ended (--deed terminate), and nothing else", code=USAGE)
    with friendly(code=USAGE):
        signer = read_key(key)
    if cards:
        ends = tuple(sign_act(card_digest(one), "terminate", name, now, signer) for one in read.people)
        signed = read.model_copy(update={"ended_cards": (*read.ended_cards, *ends)})
    else:
        signed = sign_documents(read, deed, name, now, signer)  # type: ignore[arg-type]
    _write(file, signed)
    count = len(read.people) if cards else len(read.records)
    facts = {"file": str(file), "deed": deed, "signed": count}
    show(facts, as_json=as_json, human=lambda: done(f"{file}: {deed} by {name}, {count} signature(s)"))


@consent_app.command()
def add(
    file: FileArgument, config: Config = None, operator: OperatorFile = OPERATOR_DEFAULT, as_json: Json = False
) -> None:
    """Put documents, signatures and cards on record: in the hospital with --config, else at the consent service."""
    read = _read(file)
    if config is not None:
        changed = _locally(config, lambda site: _add(site, read))
    else:
        changed = ask(operator, lambda client: client.add_documents(read))
    facts = {"file": str(file), "changed": changed}
    show(facts, as_json=as_json, human=lambda: done(f"{file}: {len(changed)} of its parts were new"))


async def _add(site: "LocalConsent", file: ConsentFile) -> list[str]:
    try:
        return sorted(one.hex() for one in await site.add(file))
    except NotAccepted as refused:
        fail(f"{refused.field}: {refused}", code=USAGE)


@consent_app.command()
def get(
    record: Annotated[str, typer.Argument(help="The document's digest, as `consent list` shows it, or its beginning.")],
    out: Out,
    config: Config = None,
    operator: OperatorFile = OPERATOR_DEFAULT,
    as_json: Json = False,
) -> None:
    """Write a document with all its signatures to a file: to read it, or to sign it and add it again."""
    if config is not None:
        everything = _locally(config, lambda site: site.file())
        digests = [record_digest(one.document) for one in everything.records]
        found = [digest for digest in digests if digest.hex().startswith(record)]
        if len(found) != 1:
            fail(f"{record}: {len(found)} documents here begin so; `consent list` shows their digests", code=USAGE)
        file = about(everything, frozenset(found))
    else:
        file = ask(operator, lambda client: client.document(record))
    _write(out, file)
    show({"file": str(out)}, as_json=as_json, human=lambda: done(f"{out}"))


@consent_app.command("list")
def list_documents(config: Config = None, operator: OperatorFile = OPERATOR_DEFAULT, as_json: Json = False) -> None:
    """Every document, and how it stands now."""
    if config is not None:
        items = _views(_locally(config, lambda site: site.dossier()))
    else:
        items = ask(operator, lambda client: client.documents())
    rows = [[item["digest"][:12], item["name"], item["standing"], item["moment"] or ""] for item in items]
    empty = "No document is on record yet; make one with `cohortium consent new`."
    show(
        items,
        as_json=as_json,
        human=lambda: table("Documents", ["digest", "document", "standing", "moment"], rows, empty=empty),
    )


def _views(dossier: Dossier) -> list[dict[str, Any]]:
    now, found = datetime.now(UTC), []
    for digest, one in sorted(dossier.records.items()):
        word, moment = one.standing(now)
        found.append(
            {
                "digest": digest.hex(),
                "kind": one.document.kind,
                "name": name_of(one.document),
                "standing": word,
                "moment": None if moment is None else moment.isoformat(),
            }
        )
    return found


@consent_app.command()
def check(
    study: Annotated[str, typer.Argument(help="The study's name, or the beginning of its digest.")],
    config: Annotated[Path, typer.Option("--config", "-c", help="The connector's settings, a YAML file.")],
    round_number: Annotated[int, typer.Option("--round", min=0, help="Which round.")] = 1,
    at: Annotated[datetime | None, typer.Option(help="Another moment than now, UTC: what ends before then?")] = None,
    as_json: Json = False,
) -> None:
    """(Hospital) May this study be worked on, by the hospital's own copies? All reasons against it, with their days.

    Exit code 1 if it may not.
    """
    moment = None if at is None else at.replace(tzinfo=UTC)
    verdict = _locally(config, lambda site: site.check(study, round_number, moment))
    reasons = [
        {
            "code": one.code,
            "object": one.thing,
            "moment": None if one.moment is None else one.moment.isoformat(),
            "sentence": told(one),
        }
        for one in verdict.reasons
    ]
    facts = {
        "study": verdict.study,
        "governance": verdict.governance,
        "round": round_number,
        "at": verdict.at.isoformat(),
        "permitted": not reasons,
        "reasons": reasons,
    }

    def human() -> None:
        if not reasons:
            done(f"{verdict.study} may be worked on in round {round_number} ({verdict.governance})")
        for reason in reasons:
            say(f"{reason['code']}: {reason['sentence']}")

    show(facts, as_json=as_json, human=human)
    if reasons:
        raise typer.Exit(1)


def _locally(config: Path | None, work: Callable[["LocalConsent"], Awaitable[T]]) -> T:
    from cohortium_connector.consent_commands import LocalConsent

    assert config is not None  # noqa: S101 - the commands have asked
    return locally(config, LocalConsent.open, work)


def _read(path: Path) -> ConsentFile:
    try:
        return ConsentFile.model_validate_json(read_text(path, "consent file"))
    except ValidationError as error:
        fail(_first_fault(str(path), error), code=USAGE)


def _first_fault(what: str, error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"]) or "the whole of it"
    return f"{what}: {place}: {first['msg']}; see contracts/consent.md"


def _write(path: Path, file: ConsentFile) -> None:
    with friendly(code=USAGE):
        path.write_text(file.model_dump_json(indent=2) + "\n", encoding="utf-8")
