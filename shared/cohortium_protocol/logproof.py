"""Proof that a log holds an entry, as one text (C2SP tlog-proof), and what a hospital demands of a task's.

The format's extra data is the entry itself, without which nobody could make the leaf again. It is nobody's word yet:
what is believed of it is what hashes to a leaf of a signed checkpoint, and what its emitter's key signed.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import rfc8785
from pydantic import ValidationError

from cohortium_messages.envelope import Envelope
from cohortium_messages.events import AuditEvent, ReleaseSigned, WindowAuthorised
from cohortium_messages.ids import SiteId
from cohortium_messages.registry import MESSAGE_TYPES
from cohortium_messages.secure_sum import WindowParams
from cohortium_messages.witness import Continuation
from cohortium_protocol import translog
from cohortium_protocol.encoding import sha256
from cohortium_protocol.errors import BadSignature, LogRefused, RemoteFault
from cohortium_protocol.notes import Checkpoint, VerifierKey, open_checkpoint
from cohortium_protocol.signing import envelope_bytes, service_key_id, verify
from cohortium_protocol.witness import MAX_PROOF, Held, LogForked

HEADER: Final = "c2sp.org/tlog-proof@v1"
RELEASE_PROOF: Final = "release.tlog-proof"
"""The file beside a model's release."""
MAX_TEXT: Final = 1 << 20
PLATFORM: Final = "-"
"""The name of the log of what belongs to no study. A study's begins with a letter or digit, so it can never be this."""
_INDEX: Final = re.compile(r"^index (0|[1-9][0-9]{0,18})$")
_EXTRA: Final = "extra "


class UnloggedTask(RemoteFault):
    """The task shows no proof that this hospital's log holds its authorisation."""

    code = "UNLOGGED_TASK"


def log_name(federation: str, log: str) -> str:
    """The origin of a log's checkpoints, and the name of its key: `<federation>/audit/<study>`."""
    return f"{federation}/audit/{log}"


def authorisation_id(window_id: bytes) -> str:
    """The event id of a window's authorisation."""
    return str(UUID(bytes=window_id))


def authorised_window(event_id: str) -> bytes:
    """The window of an authorisation's event id. Raises `LogRefused` for the id of another event."""
    try:
        return UUID(event_id).bytes
    except ValueError:
        raise LogRefused(f"{event_id} is no authorisation") from None


def entry_bytes(event: Mapping[str, Any], key_id: str, signature: bytes) -> bytes:
    """A log's entry, whose hash is the leaf: RFC 8785 bytes of `{"event": …, "key_id": …, "signature": hex}`."""
    return rfc8785.dumps({"event": dict(event), "key_id": key_id, "signature": signature.hex()})


@dataclass(frozen=True, slots=True)
class LogProof:
    """An entry, its place, the hashes that lead from its leaf to the root, and the checkpoint with that root."""

    entry: bytes
    index: int
    hashes: tuple[bytes, ...]
    note: str

    def text(self) -> str:
        """The proof as C2SP tlog-proof writes it."""
        hashes = "".join(f"{base64.b64encode(value).decode()}\n" for value in self.hashes)
        extra = base64.b64encode(self.entry).decode()
        return f"{HEADER}\n{_EXTRA}{extra}\nindex {self.index}\n{hashes}\n{self.note}"

    @classmethod
    def parse(cls, text: str) -> "LogProof":
        """Read a proof. Raises `LogRefused`."""
        if len(text) > MAX_TEXT:
            raise LogRefused("the proof is too long")
        head, separator, note = text.partition("\n\n")
        header, _, rest = head.partition("\n")
        extra, _, rest = rest.partition("\n")
        place, *lines = rest.split("\n")
        index = _INDEX.match(place)
        if header != HEADER or not separator or index is None or not extra.startswith(_EXTRA):
            raise LogRefused("not a proof with its entry")
        if len(lines) > MAX_PROOF:
            raise LogRefused("the proof has too many hashes")
        try:
            entry = base64.b64decode(extra.removeprefix(_EXTRA), validate=True)
            hashes = tuple(base64.b64decode(line, validate=True) for line in lines)
        except (binascii.Error, ValueError):
            raise LogRefused("the proof is not base64") from None
        if any(len(value) != 32 for value in hashes):
            raise LogRefused("a hash of the proof has not 32 bytes")
        return cls(entry, int(index[1]), hashes, note)

    def check(self, key: VerifierKey) -> Checkpoint:
        """The checkpoint of the log of this key that holds the entry. Raises `LogRefused`."""
        checkpoint = open_checkpoint(self.note, key)
        leaf = translog.leaf_hash(self.entry)
        translog.verify_inclusion(leaf, self.index, checkpoint.size, self.hashes, checkpoint.root)
        return checkpoint

    def event(self, key_id: str, public_key: bytes) -> tuple[Envelope, AuditEvent]:
        """What this key said in the entry. Raises `LogRefused` if it is another's, changed, or no event."""
        try:
            whole = json.loads(self.entry)
            body = rfc8785.dumps(whole["event"])
            signature = bytes.fromhex(whole["signature"])
            if whole["key_id"] != key_id or rfc8785.dumps(whole) != self.entry:
                raise LogRefused(f"the entry is not one of {key_id}")
            verify(public_key, envelope_bytes(key_id, body), signature)
            envelope = Envelope.model_validate_json(body)
            message = MESSAGE_TYPES[envelope.type].model_validate(envelope.data)
        except BadSignature:
            raise LogRefused(f"the entry is not signed by {key_id}") from None
        except (ValidationError, ValueError, KeyError, TypeError, RecursionError):
            raise LogRefused("the entry is no event of a known form") from None
        if not isinstance(message, AuditEvent):
            raise LogRefused("the entry is no audit event")
        return envelope, message


@dataclass(frozen=True, slots=True)
class Task:
    """What a hospital was asked to do, and for whom it asks."""

    params: WindowParams
    params_hash: bytes
    site_id: SiteId


def check_task(proof: str, task: Task, key: VerifierKey, scheduler_pk: bytes) -> LogProof:
    """The proof that the log of this key holds the authorisation of exactly this task, for this site.

    `key` is that of the study's log. Raises `UnloggedTask`.
    """
    try:
        found = LogProof.parse(proof)
        found.check(key)
        envelope, event = found.event(service_key_id("scheduler"), scheduler_pk)
    except LogRefused as refused:
        raise UnloggedTask(refused.detail) from None
    if not isinstance(event, WindowAuthorised) or envelope.study != task.params.study_id:
        raise UnloggedTask("the entry authorises no window of this study")
    params = task.params
    said = (event.run_id, event.window_id, event.round, event.purpose, event.params_hash)
    if said != (params.run_id, params.window_id, params.round, params.purpose, task.params_hash):
        raise UnloggedTask("the entry authorises another window, or other parameters")
    if not any(permit.permitted and permit.site_id == task.site_id for permit in event.permits):
        raise UnloggedTask("the entry permits other sites, and not this one")
    return found


def check_release_proof(
    proof: str, attestation: bytes, release: bytes, aggregator_pk: bytes, key: VerifierKey
) -> LogProof:
    """The proof that the log of this key holds this release of the attested model. Raises `LogRefused`."""
    found = LogProof.parse(proof)
    found.check(key)
    _, event = found.event(service_key_id("aggregator"), aggregator_pk)
    wanted = sha256(attestation), sha256(release)
    if not isinstance(event, ReleaseSigned) or (event.attestation_sha256, event.release_sha256) != wanted:
        raise LogRefused("the entry is no release of this model")
    return found


class HeldElsewhere(UnloggedTask):
    """The task does not show how its checkpoint continues the one that this hospital holds: it must be shown anew."""


def check_continues(
    checkpoint: Checkpoint, held: Held, seen: Mapping[int, bytes], shown: Iterable[Continuation]
) -> bool:
    """Whether a task's checkpoint is newer than what a witness holds; False for one that it has seen.

    `seen`: roots that it accepted before. Raises `LogForked` where the log's key signed two roots of one size,
    `HeldElsewhere` where nothing leads from what is held to the checkpoint, `UnloggedTask` where what leads there is
    false: whoever sent the task may have made that up, so it proves nothing against the log.
    """
    known = {**seen, held.size: held.root}
    if checkpoint.size in known and checkpoint.size:
        if known[checkpoint.size] != checkpoint.root:
            raise LogForked(f"two roots of {checkpoint.size} leaves")
        return False
    if checkpoint.size < held.size:
        raise HeldElsewhere(f"{checkpoint.size} leaves were never seen here, and {held.size} are")
    hashes = _hashes_from(held.size, shown)
    try:
        translog.verify_consistency(held.size, checkpoint.size, hashes, held.root, checkpoint.root)
    except LogRefused:
        raise UnloggedTask(f"{checkpoint.size} leaves do not continue the {held.size} that are held") from None
    return True


def _hashes_from(size: int, shown: Iterable[Continuation]) -> Sequence[bytes]:
    if size == 0:
        return ()
    for one in shown:
        if one.from_size == size:
            return one.hashes
    raise HeldElsewhere(f"nothing shows how the checkpoint continues the {size} leaves that are held")


def study_log(federation: str, study: str, audit_pk: bytes) -> VerifierKey:
    """The key that a study's checkpoints are checked with."""
    return VerifierKey(log_name(federation, study), audit_pk)
