"""Which message travels where: exchange, key, who may publish it, who reads it.

One table, from which `contracts/asyncapi.yaml` is written. Tests hold it to the topology (every key reaches the queue
of the reader named here) and to the registry (every message type has its place, and no place names an unknown one).
"""

from dataclasses import dataclass
from typing import Literal

from cohortium_messages import consent, ledger, preflight, runs, witness
from cohortium_messages import events as ev
from cohortium_messages import governance as gov
from cohortium_messages import oversight as ov
from cohortium_messages import people as pe
from cohortium_messages import secure_sum as sums
from cohortium_messages import withdrawals as wd
from cohortium_messages.registry import Message
from cohortium_messages.topology import (
    BULK,
    ENTRIES,
    ENTRIES_STREAM,
    EVENTS,
    SERVICE_NAMES,
    SERVICES,
    TASKS,
    UPLINK,
    Exchange,
)

Party = Literal["site", "enrolment", "consent", "scheduler", "aggregator", "audit", "integrator"]

Frame = Literal["UploadFrame", "ModelFrame", "StepFrame", "ResultFrame", "LogEntry"]
"""A binary frame, whose layout is in `contracts/protocol.md`; `LogEntry` is what `cohortium_messages.entries` tells."""


@dataclass(frozen=True, slots=True)
class Channel:
    """What one party publishes under one key; `{site}`, `{partition}`, `{study}` and `{type}` in it stand for values.

    `consumers` are the parties whose queues the key reaches.
    """

    name: str
    exchange: Exchange
    key: str
    publisher: Party
    consumers: tuple[Party, ...]
    messages: tuple[type[Message], ...] = ()
    frame: Frame | None = None


def _to_service(sender: Party, receiver: Party, *messages: type[Message]) -> Channel:
    return Channel(f"services.{receiver}.from.{sender}", SERVICES, receiver, sender, (receiver,), messages)


def _to_site(sender: Party, *messages: type[Message]) -> Channel:
    return Channel(f"tasks.from.{sender}", TASKS, "site.{site}.control", sender, ("site",), messages)


def _from_site(receiver: Party, *messages: type[Message]) -> Channel:
    return Channel(f"uplink.{receiver}", UPLINK, f"site.{{site}}.{receiver}", "site", (receiver,), messages)


def _events(emitter: Party, *messages: type[Message]) -> Channel:
    return Channel(f"events.from.{emitter}", EVENTS, "{study}.{type}", emitter, ("audit",), messages)


_KEYRING = (gov.SiteRegistered, gov.SiteRevoked, gov.ManifestPublished)
"""What every service must know of the sites: enrolment tells each of the others."""

FROM_SITES = (
    _from_site("enrolment", gov.RegisterSite, preflight.PreflightProbe, preflight.PreflightReport),
    _from_site("consent", gov.GrantGiven, gov.GrantWithdrawn, ledger.LedgerEvent, consent.DocumentsShared),
    _from_site("scheduler", sums.Ready, runs.TaskRefused, preflight.PreflightReport),
    _from_site(
        "aggregator",
        sums.UploadHeader,
        sums.ReceiptAsked,
        sums.Echo,
        sums.Unmask,
        sums.AbortVote,
        sums.SessionLeft,
        runs.ModelWanted,
    ),
    _from_site(
        "audit",
        ev.TaskTaken,
        ev.TaskDeclined,
        ev.UploadSealed,
        ev.SharesGiven,
        ledger.LedgerRecorded,
        ev.ConsentSnapshot,
        ev.WitnessNamed,
        ev.ForkDetected,
        wd.WorkWiped,
        ev.FaultSeen,
        witness.CheckpointCosigned,
        witness.CheckpointElsewhere,
        witness.InclusionAsked,
    ),
    Channel("uplink.presence", UPLINK, "site.{site}.presence", "site", ("scheduler",), (runs.Presence,)),
    Channel("uplink.chunks", UPLINK, "site.{site}.chunks.{partition}", "site", ("aggregator",), frame="UploadFrame"),
    Channel("uplink.steps", UPLINK, "site.{site}.steps.{partition}", "site", ("aggregator",), frame="StepFrame"),
)

TO_SITES = (
    _to_site("enrolment", gov.SiteRegistered, gov.RegistrationRefused, gov.ManifestPublished),
    _to_site("consent", consent.DocumentsShared),
    _to_site("scheduler", runs.StudyOffered, sums.WindowOpen, runs.RunEnded, sums.WindowClosed, wd.RetireModels),
    _to_site(
        "aggregator",
        sums.Roster,
        sums.SessionKey,
        sums.Receipt,
        sums.Survivors,
        sums.EchoCert,
        sums.AbortAsked,
        sums.AbortCert,
        sums.WindowClosed,
        runs.ModelOffered,
        runs.ModelUnavailable,
    ),
    _to_site("audit", witness.CheckpointOffered, witness.EventsIncluded),
    Channel("bulk", BULK, "site.{site}.bulk", "aggregator", ("site",), frame="ModelFrame"),
    Channel("echoes", BULK, "site.{site}.results", "enrolment", ("site",), (preflight.PreflightEcho,)),
    Channel("results", BULK, "site.{site}.results", "aggregator", ("site",), frame="ResultFrame"),
)

AMONG_SERVICES = (
    _to_service("enrolment", "consent", *_KEYRING),
    _to_service("enrolment", "scheduler", *_KEYRING),
    _to_service("enrolment", "aggregator", *_KEYRING),
    _to_service("enrolment", "audit", *_KEYRING),
    _to_service(
        "scheduler",
        "consent",
        gov.AuthoriseAsked,
        wd.WithdrawalTraced,
        wd.WithdrawalFollowed,
        wd.EffectStarted,
        wd.EffectRefused,
        wd.EffectDone,
    ),
    _to_service(
        "consent",
        "scheduler",
        gov.GrantRecorded,
        gov.GrantEnded,
        gov.Authorised,
        wd.WithdrawalNoticed,
        wd.EffectOrdered,
    ),
    _to_service("scheduler", "audit", witness.ProofAsked),
    _to_service("aggregator", "audit", witness.ProofAsked),
    _to_service("audit", "scheduler", witness.EventProven),
    _to_service("audit", "aggregator", witness.EventProven),
    _to_service("consent", "aggregator", gov.GrantRecorded, gov.GrantEnded),
    _to_service("scheduler", "aggregator", runs.RunStarted, runs.SessionOpened, runs.RunEnded, wd.RetireModels),
    _to_service("aggregator", "scheduler", runs.SessionClosed, wd.RunPrepared, wd.ModelsRetired),
)

_ANY_SERVICE = (ov.ConfigurationChanged, ev.FaultSeen, ev.DeadLetterSettled)

FACTS = (
    _events(
        "enrolment",
        ev.SiteEnrolled,
        ev.SiteRevocation,
        ev.ManifestRecorded,
        ev.BrokerRefusal,
        ev.BrokerCut,
        ov.PreflightRecorded,
        *_ANY_SERVICE,
    ),
    _events(
        "consent",
        ev.GrantStarted,
        ev.GrantStopped,
        ev.ConsentActRecorded,
        wd.WithdrawalRecorded,
        wd.WithdrawalEffective,
        wd.WithdrawalExtended,
        wd.WithdrawalDecided,
        wd.WithdrawalProven,
        wd.WithdrawalOverdue,
        wd.WithdrawalClosed,
        pe.AuthLogin,
        pe.AuthFailed,
        pe.AuthFailedAgain,
        pe.AuthSteppedUp,
        pe.AuthRoleChanged,
        ov.Expired,
        *_ANY_SERVICE,
    ),
    _events(
        "scheduler",
        ev.StudySubmitted,
        ev.RunStateChanged,
        ev.WindowAuthorised,
        ev.CohortFixed,
        ev.WindowEnded,
        wd.RetrainingStarted,
        *_ANY_SERVICE,
    ),
    _events(
        "aggregator",
        ev.CohortFixed,
        ev.AggregateOpened,
        ev.StrictSessionSummed,
        ev.WindowEnded,
        ev.ModelReleased,
        ev.ModelBundled,
        ev.ReleaseSigned,
        ev.ModelEvaluated,
        wd.ModelCarried,
        wd.ModelRetired,
        wd.SumSetAside,
        *_ANY_SERVICE,
    ),
    _events("audit", ev.StudyCheckpointed, ov.StudyCosigned, ev.BundleExported, ov.LogReviewed, *_ANY_SERVICE),
    Channel("entries", ENTRIES, ENTRIES_STREAM, "audit", ("integrator",), frame="LogEntry"),
)

CHANNELS: tuple[Channel, ...] = (*FROM_SITES, *TO_SITES, *AMONG_SERVICES, *FACTS)

PARTIES: tuple[Party, ...] = ("site", *SERVICE_NAMES)  # type: ignore[assignment]
