"""`cohortium site`: inviting a hospital, and what a person in the hospital does with its connector."""

import dataclasses
import json
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar, get_args

import typer
from pydantic import ValidationError

from cohortium_cli.federation import ConnectorSpec, create_connector, write_secret
from cohortium_cli.locally import locally
from cohortium_cli.options import AMQP_DEFAULT, NAMESPACE_DEFAULT, OPERATOR_DEFAULT, Json, OperatorFile
from cohortium_cli.output import USAGE, done, fail, friendly, read_text, say, show, table
from cohortium_cli.runs import ask
from cohortium_kit.addresses import login_of
from cohortium_kit.broker_check import BrokerCheck
from cohortium_messages.consent import Effect
from cohortium_messages.governance import Invitation
from cohortium_messages.ids import UUID_PATTERN
from cohortium_messages.problems import sentence
from cohortium_protocol.cohorts import cohort_lines
from cohortium_protocol.release import ATTESTATION
from cohortium_sim.plan import SITE_NAME, SITE_NAME_RULE

if TYPE_CHECKING:
    from cohortium_connector.commands import LocalSite

T = TypeVar("T")
MOST_APPROVERS = 8
site_app = typer.Typer(no_args_is_help=True, help="Invite a hospital; or, in the hospital: join, approve, withdraw.")
ConfigFile = Annotated[Path, typer.Option("--config", "-c", help="The connector's settings, a YAML file.")]
StudyName = Annotated[str, typer.Argument(help="The study's name, or the beginning of its digest.")]


@site_app.command()
def invite(
    name: Annotated[str, typer.Argument(help="The hospital's name, as people will see it.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The invitation to write; hand it over safely.")],
    operator: OperatorFile = OPERATOR_DEFAULT,
    as_json: Json = False,
) -> None:
    """(Operator) Invite a hospital: a file with a one-time token, good for a day."""
    if not SITE_NAME.fullmatch(name):
        fail(f"{name!r} cannot be a site's name: {SITE_NAME_RULE}", code=USAGE)
    if out.exists():
        # Known before the token is made: an invitation that cannot be written down is lost.
        fail(f"{out} is there already; choose another file for this invitation", code=USAGE)
    if not out.absolute().parent.is_dir():
        fail(f"there is no folder {out.absolute().parent} for the invitation; make it first", code=USAGE)
    invitation = ask(operator, lambda client: client.invite(name))
    with friendly():
        write_secret(out, invitation.model_dump_json())
    show(
        {"file": str(out), "site_id": invitation.site_id, "expires_at": invitation.expires_at.isoformat()},
        as_json=as_json,
        human=lambda: done(f"{out}: site {invitation.site_id}, until {invitation.expires_at:%Y-%m-%d %H:%M} UTC"),
    )


@site_app.command()
def revoke(
    site_id: Annotated[str, typer.Argument(help="The site's id; `cohortium sites` and the invitation have it.")],
    yes: Annotated[
        bool, typer.Option("--yes", help="It cannot be undone; the hospital would be invited anew.")
    ] = False,
    operator: OperatorFile = OPERATOR_DEFAULT,
    as_json: Json = False,
) -> None:
    """(Operator) End a hospital's part at once: its key is void everywhere, its connections are closed."""
    if not re.fullmatch(UUID_PATTERN, site_id):
        fail(f"{site_id!r} is not a site's id: 36 characters, small letters, digits and hyphens", code=USAGE)
    if not yes:
        fail(f"this ends the part of site {site_id} and cannot be undone: give --yes", code=USAGE)
    ask(operator, lambda client: client.revoke(site_id))
    show(
        {"site_id": site_id, "state": "revoked"},
        as_json=as_json,
        human=lambda: done(f"{site_id} is revoked; what it contributed to released models stays in them"),
    )


@site_app.command()
def join(
    invitation: Annotated[Path, typer.Argument(help="The invitation that the operator handed over.")],
    directory: Annotated[Path, typer.Option("--dir", help="Folder for the connector's settings and spool.")],
    data: Annotated[Path, typer.Option(help="The hospital's table, CSV or Parquet.")],
    amqp: Annotated[str, typer.Option(help="RabbitMQ's URL.")] = AMQP_DEFAULT,
    namespace: Annotated[
        str, typer.Option(help="The federation's prefix of exchanges and queues.")
    ] = NAMESPACE_DEFAULT,
    as_json: Json = False,
) -> None:
    """Write the connector's settings from an invitation.

    Compare the officers' keys that it prints with those that the officers gave you, before you start it.
    """
    read = _invitation(invitation)
    if not data.is_file():
        fail(f"--data {data}: there is no such file", code=USAGE)
    with friendly(code=USAGE):
        # An address that brings a login is a trial's; a hospital's own login is made from its key.
        check: BrokerCheck = "strict" if login_of(amqp) is None else "trial"
        table = {"*": {"path": str(data.resolve())}}
        spec = ConnectorSpec(directory, read, amqp, namespace, table, broker_check=check)
        config = create_connector(spec)
    keys = [key.hex() for key in read.trust.governance_keys]

    def human() -> None:
        done(f"{config}")
        say(f"Officers of {read.trust.federation}, {read.trust.threshold} must sign:")
        say("\n".join(f"  {key}" for key in keys))
        say(f"If these are the keys that the officers gave you: cohortium run connector --config {config}")

    facts = {"config": str(config), "site_id": read.site_id, "federation": read.trust.federation}
    show(facts | {"governance_keys": keys, "threshold": read.trust.threshold}, as_json=as_json, human=human)


def _invitation(file: Path) -> Invitation:
    try:
        read = Invitation.model_validate_json(read_text(file, "invitation"))
    except ValidationError:
        fail(f"{file} is not an invitation; ask the operator for the file again", code=USAGE)
    if read.expires_at <= datetime.now(UTC):
        fail(
            f"the invitation {file} ended at {read.expires_at:%Y-%m-%d %H:%M} UTC; ask the operator for a new one",
            code=USAGE,
        )
    return read


@site_app.command()
def offers(config: ConfigFile, as_json: Json = False) -> None:
    """Studies that ask for this hospital's grant, and what became of each."""
    found = at_site(config, lambda site: site.offers())
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
    as_json: Json = False,
) -> None:
    """Grant a study version: from now on this hospital takes part in it."""
    wrong = [name for name in approver if not SITE_NAME.fullmatch(name)]
    if wrong:
        fail(f"--approver {wrong[0]!r}: {SITE_NAME_RULE}", code=USAGE)
    if len(approver) > MOST_APPROVERS:
        fail(f"--approver: at most {MOST_APPROVERS} people approve, {len(approver)} are named", code=USAGE)
    grant = at_site(config, lambda site: site.approve(study, tuple(approver)))
    if grant is None:
        facts: dict[str, object] = {"study": study, "granted": "already"}
        words = f"{study} is granted already"
    else:
        facts = {"study": grant.study_id, "granted": "now", "until": grant.not_after.isoformat()}
        words = f"{study} is granted until {grant.not_after:%Y-%m-%d}, for {grant.max_rounds} rounds"
        if grant.cohort is not None:
            facts["cohort"] = grant.cohort.model_dump(mode="json")
            words += "\n" + "\n".join(cohort_lines(grant.cohort))
    show(facts, as_json=as_json, human=lambda: done(words))


@site_app.command()
def cohort(study: StudyName, config: ConfigFile, as_json: Json = False) -> None:
    """The cohort that an approval of this study would freeze now. Nothing is granted or kept."""
    found = at_site(config, lambda site: site.cohort(study))
    lines = [f"{study}: an approval freezes no cohort"] if found is None else cohort_lines(found)
    facts = {"study": study, "cohort": None if found is None else found.model_dump(mode="json")}
    show(facts, as_json=as_json, human=lambda: say("\n".join(lines)))


@site_app.command()
def withdraw(
    study: StudyName,
    config: ConfigFile,
    effect: Annotated[
        str,
        typer.Option(help="What the hospital asks for the models: stop_future, retrain or retire; officers decide."),
    ] = "stop_future",
    as_json: Json = False,
) -> None:
    """Leave a study at once. One person can always stop."""
    if effect not in get_args(Effect):
        fail(f"--effect {effect}: one of {', '.join(get_args(Effect))}", code=USAGE)
    asked: Effect = effect  # type: ignore[assignment]
    ended = at_site(config, lambda site: site.withdraw(study, asked))
    show(
        {"study": study, "grants_ended": ended},
        as_json=as_json,
        human=lambda: done(f"{study}: {ended} grant{'' if ended == 1 else 's'} ended, work in hand is deleted"),
    )


@site_app.command("sign-release")
def sign_release(
    model: Annotated[Path, typer.Argument(help="The model's folder, unpacked; review its card before you sign.")],
    release: Annotated[Path, typer.Argument(help="The release that an officer signed; changed in place.")],
    config: ConfigFile,
    as_json: Json = False,
) -> None:
    """Sign the release of a model as a member hospital, after an officer has."""
    with friendly(code=USAGE):
        attestation, signed = (model / ATTESTATION).read_bytes(), release.read_bytes()
    signed = at_site(config, lambda site: site.sign_release(attestation, signed))
    with friendly():
        release.write_bytes(signed)
    words = f"{release}: signed; hand it back: cohortium model release RUN --signed {release}"
    show({"file": str(release)}, as_json=as_json, human=lambda: done(words))


@site_app.command()
def status(config: ConfigFile, as_json: Json = False) -> None:
    """What this connector is and has in hand."""
    view = at_site(config, lambda site: site.status())

    def human() -> None:
        joined = "enrolled" if view.registered else sentence(view.refused) if view.refused else "not enrolled yet"
        say(f"{view.name} {view.site_id} in {view.federation}: {joined}")
        say(f"{view.finished_windows} windows done, {view.waiting_messages} messages wait to be sent")
        for study in view.forked_logs:
            say(f"{study}: {sentence('LOG_FORKED')} Both notes are in witness/{study}.fork.txt of the spool.")
        for study in view.damaged_witness:
            say(f"{study}: {sentence('WITNESS_DAMAGED')}")
        for alarm in view.log_alarms:
            say(f"{alarm.study}: {sentence(alarm.code)} Since {alarm.since:%Y-%m-%d %H:%M} UTC.")
        rows = [[one.study, one.purpose, str(one.round), one.phase] for one in view.windows]
        table("Open windows", ["study", "purpose", "round", "phase"], rows, empty="No window is open.")

    show(_plain(view), as_json=as_json, human=human)


@site_app.command("trust-logs-anew")
def trust_logs_anew(
    config: ConfigFile,
    yes: Annotated[bool, typer.Option("--yes", help="People have settled why the log forked.")] = False,
    as_json: Json = False,
) -> None:
    """After a forked log was settled: forget what was cosigned and take tasks again, with a new witness key."""

    async def begin(site: "LocalSite") -> tuple[str, ...]:
        return await site.trust_logs_anew()

    if not yes:
        fail(
            "this forgets what the hospital holds of the logs: keep the notes in witness/ of the spool, settle with "
            "the operator and the other hospitals which history is true, then give --yes",
            code=USAGE,
        )
    forked = at_site(config, begin)
    words = f"{len(forked)} forked logs forgotten; the connector has a new witness key from its next cosignature on"
    show({"forked": list(forked)}, as_json=as_json, human=lambda: done(words))


def at_site(config: Path, ask: "Callable[[LocalSite], Awaitable[T]]") -> T:
    from cohortium_connector.commands import LocalSite

    return locally(config, LocalSite.open, ask)


def _plain(value: object) -> object:
    """A dataclass as JSON can hold it."""
    return json.loads(json.dumps(dataclasses.asdict(value), default=str))  # type: ignore[call-overload]
