"""Which message may come from whom, and which function handles it."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from cohortium_connector.desk import BrokenProtocol
from cohortium_connector.handlers.consent import ConsentHandlers
from cohortium_connector.handlers.membership import MembershipHandlers
from cohortium_connector.handlers.models import ModelHandlers
from cohortium_connector.handlers.sessions import SessionHandlers
from cohortium_connector.handlers.windows import WindowHandlers
from cohortium_connector.handlers.witness import WitnessHandlers
from cohortium_kit.consumer import Consumer, Received
from cohortium_kit.db import Tx
from cohortium_messages.consent import DocumentsShared
from cohortium_messages.governance import ManifestPublished, RegistrationRefused, SiteRegistered
from cohortium_messages.registry import Message
from cohortium_messages.runs import ModelOffered, ModelUnavailable, RunEnded, StudyOffered
from cohortium_messages.secure_sum import (
    AbortAsked,
    AbortCert,
    EchoCert,
    Receipt,
    Roster,
    SessionKey,
    Survivors,
    WindowClosed,
    WindowOpen,
)
from cohortium_messages.withdrawals import RetireModels
from cohortium_messages.witness import CheckpointOffered, EventsIncluded
from cohortium_protocol.errors import RemoteFault

M = TypeVar("M", bound=Message)
Work = Callable[[Tx, Received[M]], Awaitable[None]]
FaultSink = Callable[[BrokenProtocol], None]

ENROLMENT, SCHEDULER, AGGREGATOR = "service:enrolment", "service:scheduler", "service:aggregator"
AUDIT = "service:audit"
CONSENT = "service:consent"

SENDERS: dict[type[Message], frozenset[str]] = {
    SiteRegistered: frozenset({ENROLMENT}),
    RegistrationRefused: frozenset({ENROLMENT}),
    ManifestPublished: frozenset({ENROLMENT}),
    StudyOffered: frozenset({SCHEDULER}),
    RunEnded: frozenset({SCHEDULER}),
    WindowOpen: frozenset({SCHEDULER}),
    WindowClosed: frozenset({SCHEDULER, AGGREGATOR}),
    Roster: frozenset({AGGREGATOR}),
    SessionKey: frozenset({AGGREGATOR}),
    Receipt: frozenset({AGGREGATOR}),
    Survivors: frozenset({AGGREGATOR}),
    EchoCert: frozenset({AGGREGATOR}),
    AbortAsked: frozenset({AGGREGATOR}),
    AbortCert: frozenset({AGGREGATOR}),
    ModelOffered: frozenset({AGGREGATOR}),
    ModelUnavailable: frozenset({AGGREGATOR}),
    RetireModels: frozenset({SCHEDULER}),
    CheckpointOffered: frozenset({AUDIT}),
    EventsIncluded: frozenset({AUDIT}),
    DocumentsShared: frozenset({CONSENT}),
}
"""Who may say what to a site. Everything else is parked, and its sender reported."""


def guarded(handler: Work[M], senders: frozenset[str], sink: FaultSink) -> Work[M]:
    """The handler behind the sender check; what breaks the protocol is parked and told to `sink`."""

    async def work(tx: Tx, received: Received[M]) -> None:
        try:
            if received.key_id not in senders:
                raise BrokenProtocol("WRONG_SENDER", received.key_id)
            await handler(tx, received)
        except RemoteFault as fault:
            broken = BrokenProtocol(fault.code, received.key_id, getattr(received.message, "window_id", None))
            sink(broken)
            raise broken from fault
        except BrokenProtocol as broken:
            sink(broken)
            raise

    return work


def connect(
    consumer: Consumer,
    membership: MembershipHandlers,
    windows: WindowHandlers,
    sessions: SessionHandlers,
    models: ModelHandlers,
    witness: WitnessHandlers,
    consent: ConsentHandlers,
    sink: FaultSink,
) -> None:
    """Give every message type of `SENDERS` to its handler."""

    def on(kind: type[M], handler: Work[M]) -> None:
        consumer.on(kind, guarded(handler, SENDERS[kind], sink))

    on(SiteRegistered, membership.on_registered)
    on(RegistrationRefused, membership.on_refused)
    on(ManifestPublished, membership.on_manifest)
    on(StudyOffered, membership.on_offer)
    on(RunEnded, membership.on_run_ended)
    on(WindowOpen, windows.on_window_open)
    on(Roster, windows.on_roster)
    on(SessionKey, sessions.on_session_key)
    on(Receipt, windows.on_receipt)
    on(Survivors, windows.on_survivors)
    on(EchoCert, windows.on_echo_cert)
    on(AbortAsked, windows.on_abort_asked)
    on(AbortCert, windows.on_abort_cert)
    on(WindowClosed, windows.on_window_closed)
    on(ModelOffered, models.on_model_offered)
    on(ModelUnavailable, models.on_model_unavailable)
    on(RetireModels, models.on_retire)
    on(CheckpointOffered, witness.on_checkpoint_offered)
    on(EventsIncluded, witness.on_events_included)
    on(DocumentsShared, consent.on_documents)
