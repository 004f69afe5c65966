"""`cohortium dead-letters`: what could not be handled, seen, sent again or dropped. The runbook says what to do when.

Through AMQP alone. The settings file is a service's, for each act is an audit event that this service signs. Its login
at the broker must be allowed to read the parking queues and to publish where messages came from, which a service's own
is not: give the operator's, which `cohortium broker definitions` wrote to operator.amqp-url, in COHORTIUM_AMQP_URL.
"""

import asyncio
import dataclasses
import importlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer

from cohortium_cli.operator import Operator
from cohortium_cli.options import Json
from cohortium_cli.output import USAGE, done, fail, friendly, print_json, say, show
from cohortium_kit.addresses import login_of
from cohortium_kit.amqp import RabbitBus
from cohortium_kit.clock import SystemClock
from cohortium_kit.dead_letters import CONSUMERS, Held, Letter, dead_letters, letter_of, revived
from cohortium_kit.envelopes import Sender, open_envelope
from cohortium_kit.errors import BusError, ConfigurationError, Poison
from cohortium_messages.events import DeadLetterSettled
from cohortium_messages.topology import EVENTS
from cohortium_platform.faults import fault_code
from cohortium_platform.identity import ROLES, PlatformSettings, load_identity
from cohortium_protocol.signing import Keyring, site_key_id
from cohortium_sim.report_words import byte_count, clean, duration, plural

T = TypeVar("T")
Act = Literal["REDRIVEN", "DROPPED"]
URL_VARIABLE = "COHORTIUM_AMQP_URL"
MOST_BYTES = 256 << 20
"""Of one queue in hand at once; what lies behind them is seen when these are settled."""

dead_letters_app = typer.Typer(no_args_is_help=True, help="Look at messages that could not be handled; settle them.")
ConfigFile = Annotated[Path, typer.Option("--config", "-c", help="Settings of the service whose key signs each act.")]
Service = Annotated[str, typer.Option("--service", help="Whose settings these are.")]
Consumers = Annotated[list[str] | None, typer.Option("--consumer", help=f"Only these: {', '.join(CONSUMERS)}; repeat.")]
Most = Annotated[
    int, typer.Option("--most", min=1, max=100_000, help="Look at so many of each queue, the oldest first.")
]
Operators = Annotated[
    Path | None, typer.Option("--operator", help="The operator's settings: enrolment then tells the hospitals' keys.")
]
Ids = Annotated[list[str] | None, typer.Argument(help="Ids of messages; `list` shows them.")]
Bodies = Annotated[
    list[str] | None, typer.Option("--sha256", help="Of the letters with these ids only those with this body; repeat.")
]
All = Annotated[bool, typer.Option("--all", help="All that are there now, of the consumers named.")]


@dataclass(frozen=True, slots=True)
class Post:
    """The operator's place: a connection, and who signs."""

    bus: RabbitBus
    sender: Sender
    keyring: Keyring


@dataclass(slots=True)
class Outcome:
    """What came of an act. `failed`: by message id, why the broker did not take it; such a letter stays parked."""

    settled: list[Letter] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


# The work


async def listed(bus: RabbitBus, consumers: Sequence[str], most: int) -> list[Letter]:
    """What is parked, queue by queue, the oldest first. Leaves every queue as it was."""
    now, found = SystemClock().now(), []
    for consumer in consumers:
        async with bus.hold(dead_letters(consumer), most=most, most_bytes=MOST_BYTES) as held:
            found += [letter_of(one.delivery, now) for one in held]
    return found


async def named(
    bus: RabbitBus, consumers: Sequence[str], most: int, ids: frozenset[str], bodies: frozenset[str]
) -> frozenset[Letter]:
    """The letters with these message ids and, where `bodies` has any, one of these SHA-256 sums of their body.

    The sender chooses a message's id, so it may be another letter's: raises `ConfigurationError` for one that several
    letters have, unless `bodies` says which.
    """
    found = [one for one in await listed(bus, consumers, most) if one.message_id in ids]
    for message_id in sorted(ids) if not bodies else ():
        same = [one for one in found if one.message_id == message_id]
        if len(same) > 1:
            which = "; ".join(f"{dead_letters(one.consumer)} sha256 {one.sha256}" for one in same)
            raise ConfigurationError(
                f"{clean(message_id)}: {len(same)} letters have this id, and nothing was done: {which}. Look at them "
                "with `cohortium dead-letters show`, then say which with --sha256, and --consumer for the queue"
            )
    return frozenset(_known(one) for one in found if not bodies or one.sha256 in bodies)


def _known(letter: Letter) -> Letter:
    """The same at every look: without its age."""
    return dataclasses.replace(letter, age_s=None)


async def settle(
    post: Post,
    consumers: Sequence[str],
    most: int,
    wanted: frozenset[str] | None,
    act: Act,
    bodies: frozenset[str] = frozenset(),
) -> Outcome:
    """Send again, or drop, the letters that `named` finds by these message ids (None: all). Raises what it raises.

    Each act goes on record first. Sent again, a message keeps its id, body and signature, so that the inbox of its
    receiver recognises what was done already; a letter is gone only after the broker has confirmed its message.
    """
    chosen = None if wanted is None else await named(post.bus, consumers, most, wanted, bodies)
    outcome, now = Outcome(), SystemClock().now()
    for consumer in consumers:
        async with post.bus.hold(dead_letters(consumer), most=most, most_bytes=MOST_BYTES) as held:
            for one in held:
                letter = letter_of(one.delivery, now)
                if chosen is None or _known(letter) in chosen:
                    await _settle_one(post, one, letter, act, outcome)
    known = {letter.message_id for letter in outcome.settled} | outcome.failed.keys()
    outcome.missing = sorted((wanted or frozenset()) - known)
    return outcome


async def _settle_one(post: Post, held: Held, letter: Letter, act: Act, outcome: Outcome) -> None:
    try:
        message = revived(held.delivery) if act == "REDRIVEN" else None
        await _record(post, letter, act)
        if message is not None:
            await post.bus.publish(message)
        await held.settle()
    except KeyError:
        outcome.failed[letter.message_id] = "it does not say where it came from; it can only be dropped"
    except BusError as error:
        outcome.failed[letter.message_id] = str(error)
    else:
        outcome.settled.append(letter)


async def _record(post: Post, letter: Letter, act: Act) -> None:
    event = DeadLetterSettled(
        consumer=letter.consumer, act=act, reason=fault_code(letter.reason), body_sha256=bytes.fromhex(letter.sha256)
    )
    await post.bus.publish(post.sender.outgoing(EVENTS.name, f"-.{event.type_name}", event))


async def shown(post: Post, consumers: Sequence[str], most: int, message_id: str) -> list[dict[str, object]]:
    """The letters with this id, with their envelopes where a key that is known here signed them. Never the content."""
    now, found = SystemClock().now(), []
    for consumer in consumers:
        async with post.bus.hold(dead_letters(consumer), most=most, most_bytes=MOST_BYTES) as held:
            for one in held:
                if one.delivery.message_id == message_id:
                    facts = dataclasses.asdict(letter_of(one.delivery, now))
                    found.append(facts | {"envelope": _envelope(one, post.keyring)})
    return found


def _envelope(held: Held, keyring: Keyring) -> dict[str, str | None]:
    try:
        envelope, message, key_id = open_envelope(held.delivery, keyring)
    except Poison as poison:
        return {"verified": None, "why_not": poison.reason_code}
    return {
        "verified": key_id,
        "id": envelope.id,
        "type": envelope.type,
        "source": envelope.source,
        "time": envelope.time.isoformat(),
        "study": envelope.study,
        "fields": ", ".join(sorted(type(message).model_fields)),
    }


# The commands


@dead_letters_app.command("list")
def list_letters(
    config: ConfigFile, service: Service = "audit", consumer: Consumers = None, most: Most = 100, as_json: Json = False
) -> None:
    """List dead letters: whose, why, since when, of which type, from whom. Nothing of it was checked."""
    letters = _at_post(config, service, lambda post: listed(post.bus, _checked(consumer), most))

    def human() -> None:
        for one in letters:
            facts = [one.consumer, one.reason, _aged(one), one.type, one.sender, byte_count(one.size)]
            say(f"{clean(one.message_id)}  {clean('  '.join(facts))}")
        if not letters:
            say("There are no dead letters.")

    show([dataclasses.asdict(one) for one in letters], as_json=as_json, human=human)


@dead_letters_app.command("show")
def show_letter(
    message_id: Annotated[str, typer.Argument(help="The message's id; `list` shows it.")],
    config: ConfigFile,
    service: Service = "audit",
    consumer: Consumers = None,
    most: Most = 10_000,
    operator: Operators = None,
    as_json: Json = False,
) -> None:
    """Show one letter, with the fields of its envelope if its signature is good. Its content is not shown.

    Services' keys are those of the trust document; hospitals' come from enrolment, if --operator names it.
    """

    async def look(post: Post) -> list[dict[str, object]]:
        if operator is not None:
            await _learn_sites(post.keyring, operator)
        return await shown(post, _checked(consumer), most, message_id)

    found = _at_post(config, service, look)
    if not found:
        fail(_not_found([message_id]))
    if as_json:
        print_json(found)
        return
    for facts in found:
        for name, value in _flat(facts):
            say(f"{name:<22} {clean(str(value))}")


@dead_letters_app.command("redrive")
def redrive(
    config: ConfigFile,
    message_ids: Ids = None,
    service: Service = "audit",
    every: All = False,
    sha256: Bodies = None,
    consumer: Consumers = None,
    most: Most = 10_000,
    as_json: Json = False,
) -> None:
    """Send messages again, to where they came from, unchanged. What was done already is not done twice."""
    _act("REDRIVEN", config, service, message_ids, every, sha256, consumer, most, as_json)


@dead_letters_app.command("drop")
def drop(
    config: ConfigFile,
    message_ids: Ids = None,
    service: Service = "audit",
    every: All = False,
    sha256: Bodies = None,
    consumer: Consumers = None,
    most: Most = 10_000,
    as_json: Json = False,
) -> None:
    """Delete dead letters for good."""
    _act("DROPPED", config, service, message_ids, every, sha256, consumer, most, as_json)


def _act(
    act: Act,
    config: Path,
    service: str,
    ids: list[str] | None,
    every: bool,
    bodies: list[str] | None,
    consumer: list[str] | None,
    most: int,
    as_json: bool,
) -> None:
    if bool(ids) == every:
        fail("name the ids of messages, or say --all, and not both", code=USAGE)
    if bodies and every:
        fail("--sha256 goes with ids of messages, not with --all", code=USAGE)
    said = frozenset(one.lower() for one in bodies or ())
    wanted = None if every else frozenset(ids or [])
    outcome = _at_post(config, service, lambda post: settle(post, _checked(consumer), most, wanted, act, said))

    def human() -> None:
        done(f"{act.lower()}: {plural(len(outcome.settled), 'message')}")
        for message_id, why in outcome.failed.items():
            say(f"  {clean(message_id)} stays: {clean(why)}")

    show(dataclasses.asdict(outcome), as_json=as_json, human=human)
    if outcome.missing:
        fail(_not_found(outcome.missing))
    if outcome.failed:
        raise typer.Exit(1)


def _not_found(ids: Sequence[str]) -> str:
    names = ", ".join(clean(one) for one in ids)
    return f"no dead letter has the id {names}; `cohortium dead-letters list` shows them, --most looks further"


def _checked(consumers: list[str] | None) -> tuple[str, ...]:
    for one in consumers or ():
        if one not in CONSUMERS:
            fail(f"--consumer {one}: there is no such consumer; use {', '.join(CONSUMERS)}", code=USAGE)
    return tuple(consumers or CONSUMERS)


def _flat(facts: dict[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", "-" if value is None else value


def _aged(letter: Letter) -> str:
    return "-" if letter.age_s is None else duration(letter.age_s)


def _at_post(config: Path, service: str, work: Callable[[Post], Awaitable[T]]) -> T:
    """Do something with a connection and a signer, and leave with a message where that is impossible."""
    if service not in ROLES:
        fail(f"--service {service}: there is no such service; use {', '.join(ROLES)}", code=USAGE)

    async def inside() -> T:
        module = importlib.import_module(f"cohortium_{service}.settings")
        settings: PlatformSettings = getattr(module, f"{service.capitalize()}Settings").load(config)
        identity = load_identity(settings, service, SystemClock())
        bus = RabbitBus(
            settings.amqp_url,
            settings.namespace,
            connection_name="cohortium-dead-letters",
            user_id=login_of(settings.amqp_url),
        )
        with _reachable():
            try:
                await asyncio.wait_for(bus.connect(), 15)
                return await work(Post(bus, identity.sender, identity.keyring))
            finally:
                await bus.close()

    with friendly():
        return asyncio.run(inside())


@contextmanager
def _reachable() -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise ConfigurationError(
            f"RabbitMQ does not answer; check amqp_url in the settings, or {URL_VARIABLE}"
        ) from None
    except BusError as error:
        raise ConfigurationError(
            f"RabbitMQ refuses: {error}; the login must read the parking queues and publish everywhere "
            f"(put the address in operator.amqp-url into {URL_VARIABLE})"
        ) from None


async def _learn_sites(keyring: Keyring, operator: Path) -> None:
    async with Operator.open(operator) as client:
        for site in await client.sites():
            if site.get("identity_pk"):
                keyring.add(site_key_id(str(site["site_id"])), bytes.fromhex(str(site["identity_pk"])))
