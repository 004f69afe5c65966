"""Hospitals as witnesses of their studies' logs: the audit service asks, a connector cosigns or says what it holds. And
proofs that an event is in a log, for whoever may not act before it is.

The texts inside are those of C2SP (tlog-witness, tlog-cosignature, tlog-proof): any witness of that standard could be
asked.
"""

from typing import Annotated

from pydantic import Field

from cohortium_messages.ids import Bytes32, SiteIdField, StudyIdField, Wire
from cohortium_messages.registry import Message

Leaves = Annotated[int, Field(ge=0, le=(1 << 53) - 1)]
MAX_LINE = 600
MOST_ASKED = 32
"""Events in one question after them: the answer is some 50 kB for a log of a million entries."""
EventId = Annotated[str, Field(min_length=8, max_length=64, pattern=r"^[0-9A-Za-z-]+$")]


class Continuation(Wire):
    """RFC 9162 consistency: how a log of `from_size` leaves became the one of a proof's checkpoint."""

    from_size: Leaves
    hashes: Annotated[tuple[Bytes32, ...], Field(max_length=63)]


class ContinuationFor(Continuation):
    """`sites`: the hospitals that may hold the checkpoint of `from_size` leaves."""

    sites: Annotated[tuple[SiteIdField, ...], Field(min_length=1, max_length=200)]


class Logged(Wire):
    """`proof`: C2SP tlog-proof of one event, with its entry as extra data. `continues`: how its checkpoint continues
    those that the hospital that is asked may hold as a witness."""

    proof: Annotated[str, Field(min_length=32, max_length=1 << 20)]
    continues: Annotated[tuple[Continuation, ...], Field(max_length=16)] = ()


class EventProven(Message, type_name="cohortium.log.event_proven.v1"):
    """Audit to the emitter of an event that others must see proven: it is in the study's log, here is the proof."""

    study_id: StudyIdField
    event_id: EventId
    logged: Logged
    """Without a continuation: each hospital is shown its own."""
    continues: Annotated[tuple[ContinuationFor, ...], Field(max_length=400)] = ()


class ProofAsked(Message, type_name="cohortium.log.proof_asked.v1"):
    """The emitter to audit: the proof of this event of mine did not come. One that is not recorded yet is answered when
    it is."""

    study_id: StudyIdField
    event_id: EventId


class InclusionAsked(Message, type_name="cohortium.log.inclusion_asked.v1"):
    """A site to audit: prove that the study's log holds these events of mine. What cannot be proven yet is left out of
    the answer, and asked for again."""

    study_id: StudyIdField
    site_id: SiteIdField
    event_ids: Annotated[tuple[EventId, ...], Field(min_length=1, max_length=MOST_ASKED)]


class Included(Wire):
    """RFC 9162 inclusion of one event; its leaf is for the site to make, from what it signed."""

    event_id: EventId
    index: Leaves
    hashes: Annotated[tuple[Bytes32, ...], Field(max_length=63)]


class EventsIncluded(Message, type_name="cohortium.log.events_included.v1"):
    """Audit to a site: where its events are in the study's log of `size` leaves, a checkpoint that the site cosigned.
    It needs no root and no signature: the site holds the root, and believes nothing else."""

    study_id: StudyIdField
    size: Leaves
    events: Annotated[tuple[Included, ...], Field(min_length=1, max_length=MOST_ASKED)]


class CheckpointOffered(Message, type_name="cohortium.witness.offered.v1"):
    """Audit asks a site to cosign a checkpoint of a study's log; `request` is the body of `add-checkpoint`."""

    study_id: StudyIdField
    request: Annotated[str, Field(min_length=8, max_length=32 << 10)]


class CheckpointCosigned(Message, type_name="cohortium.witness.cosigned.v1"):
    """The site has saved that it saw the checkpoint of `size` leaves, and signs it with its witness key."""

    study_id: StudyIdField
    site_id: SiteIdField
    size: Leaves
    root: Bytes32
    witness_key: Bytes32
    line: Annotated[str, Field(max_length=MAX_LINE)]


class CheckpointElsewhere(Message, type_name="cohortium.witness.elsewhere.v1"):
    """The request starts from another size than the site holds: ask again from `size`."""

    study_id: StudyIdField
    site_id: SiteIdField
    size: Leaves
