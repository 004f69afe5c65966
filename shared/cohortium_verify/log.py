"""What the cryptography of an audit bundle proves: who signed what, and that the log is one that only ever grew."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

import rfc8785
from pydantic import ValidationError

from cohortium_messages import events
from cohortium_messages.emitters import SITE, may_say
from cohortium_messages.envelope import Envelope
from cohortium_messages.events import AuditEvent
from cohortium_messages.governance import Manifest, ServiceKeys, TrustDocument
from cohortium_messages.ids import StudyId
from cohortium_messages.registry import MESSAGE_TYPES, Message
from cohortium_protocol import documents, notes, translog
from cohortium_protocol.documents import GovernancePin
from cohortium_protocol.errors import BadSignature, ProtocolError
from cohortium_protocol.notes import Checkpoint, VerifierKey
from cohortium_protocol.signing import envelope_bytes, service_key_id, site_key_id, verify
from cohortium_verify.bundle import Bundle, BundleError, PartRefused
from cohortium_verify.report import Check, Failure, failed, passed

LEAST_SIGNATURES = 2
"""Of several pinned governance keys at least so many must agree, whatever a document says of itself."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One verified log entry: its emitter's key signed it, and may say this."""

    index: int
    key_id: str
    envelope: Envelope
    message: AuditEvent
    digest: bytes = b""
    """SHA-256 of the body that was signed."""


@dataclass(frozen=True, slots=True)
class Root:
    """A checkpoint that the log's key signed."""

    file: str
    checkpoint: Checkpoint


def pin_of(trust: TrustDocument, governance_keys: Sequence[bytes] | None, threshold: int = 0) -> GovernancePin:
    """What to hold the documents to: the caller's keys, or, for want of any, those of the bundle itself. `threshold`:
    how many of them the caller asks for at least."""
    if governance_keys is None:
        return GovernancePin.of(trust)
    keys = frozenset(governance_keys)
    return GovernancePin(keys, max(threshold, trust.threshold, min(LEAST_SIGNATURES, len(keys))))


def check_trust(trust: TrustDocument, pin: GovernancePin, *, pinned_by: str) -> Check:
    """Enough officers signed the services' keys."""
    name = "trust document"
    try:
        documents.verify_trust(trust, pin)
    except ProtocolError as error:
        return failed(name, Failure(f"the trust document is not signed as it must be ({error})"))
    signers = {signature.key for signature in trust.signatures} & pin.keys
    return passed(name, f"{len(signers)} governance officers signed the services' keys; their keys are {pinned_by}")


def check_manifests(manifests: Sequence[Manifest], pin: GovernancePin) -> Check:
    """Every membership is signed by officers, and each names the one before."""
    name = "membership"
    try:
        documents.verify_manifest_chain(manifests, pin)
    except ProtocolError as error:
        return failed(name, Failure(f"the chain of manifests does not hold ({error})"))
    members = len(manifests[-1].members)
    return passed(
        name, f"{len(manifests)} manifests of study {manifests[-1].study_id}, each signed; {members} members now"
    )


def known_keys(services: ServiceKeys, manifests: Sequence[Manifest]) -> dict[str, frozenset[bytes]]:
    """Which keys may speak for which key id: the trust document's for services, the manifests' for sites."""
    keys = {
        service_key_id(role): frozenset({getattr(services, role)})
        for role in ("enrolment", "consent", "scheduler", "aggregator", "audit")
    }
    for manifest in manifests:
        for member in manifest.members:
            key_id = site_key_id(member.site_id)
            keys[key_id] = keys.get(key_id, frozenset()) | {member.identity_pk}
    return keys


def read_entries(
    raw: Sequence[bytes], keys: Mapping[str, frozenset[bytes]], study: StudyId | None
) -> tuple[list[Entry], list[Failure]]:
    """Every entry that its emitter's key signed and that its emitter may say, and a failure for every other one. No
    study: of the platform's log."""
    entries: list[Entry] = []
    failures: list[Failure] = []
    seen: dict[tuple[str, str], int] = {}
    for index, data in enumerate(raw):
        try:
            entry = _read_entry(index, data, keys, study)
        except _EntryRefused as error:
            failures.append(Failure(str(error), index))
            continue
        first = seen.setdefault((entry.key_id, entry.envelope.id), index)
        if first != index:
            failures.append(Failure(f"the same event is entry {first} already", index))
            continue
        entries.append(entry)
    return entries, failures


class _EntryRefused(BundleError):
    """This line is no entry that its emitter can have made."""


def _read_entry(index: int, data: bytes, keys: Mapping[str, frozenset[bytes]], study: StudyId | None) -> Entry:
    try:
        whole = json.loads(data)
        body = rfc8785.dumps(whole["event"])
        key_id, signature = str(whole["key_id"]), bytes.fromhex(whole["signature"])
        canonical = rfc8785.dumps(whole) == data and whole.keys() == {"event", "key_id", "signature"}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _EntryRefused("it is not a log entry: not JSON of event, key_id and signature") from None
    if not canonical:
        raise _EntryRefused("it is not written in canonical JSON, so it is not what was signed")
    _check_signature(key_id, body, signature, keys)
    try:
        envelope = Envelope.model_validate_json(body)
        model = MESSAGE_TYPES[envelope.type]
        message = model.model_validate(envelope.data)
    except (ValidationError, KeyError):
        raise _EntryRefused(f"{key_id} signed it, but it is no event of a known form") from None
    if any(moment.tzinfo is None for moment in _moments(envelope, message)):
        raise _EntryRefused(f"{key_id} signed it with a time that names no time zone")
    if not isinstance(message, AuditEvent):
        raise _EntryRefused(f"{envelope.type} is a message, not an audit event")
    _check_emitter(key_id, message, envelope, study)
    return Entry(index, key_id, envelope, message, hashlib.sha256(body).digest())


def _moments(envelope: Envelope, message: Message) -> Iterator[datetime]:
    yield envelope.time
    if isinstance(message, events.GrantStarted):
        yield message.not_before
        yield message.not_after


def _check_signature(key_id: str, body: bytes, signature: bytes, keys: Mapping[str, frozenset[bytes]]) -> None:
    candidates = keys.get(key_id)
    if candidates is None:
        raise _EntryRefused(f"it is signed by {key_id}, which neither the trust document nor a manifest names")
    for public_key in candidates:
        try:
            verify(public_key, envelope_bytes(key_id, body), signature)
        except BadSignature:
            continue
        return
    told = f"its signature is not one of {key_id}: the entry was changed, or somebody else signed it"
    if not key_id.startswith(f"{SITE}:"):
        told += ", or that service has another key since (verify the bundle that was exported before)"
    raise _EntryRefused(told)


def _check_emitter(key_id: str, message: AuditEvent, envelope: Envelope, study: StudyId | None) -> None:
    kind, _, name = key_id.partition(":")
    if not may_say(key_id, type(message)):
        raise _EntryRefused(f"{key_id} may not say {envelope.type}")
    if kind == SITE and getattr(message, "site_id", name) != name:
        raise _EntryRefused(f"{key_id} speaks of another site")
    if envelope.study != study:
        there, here = (name or "the platform" for name in (envelope.study, study))
        raise _EntryRefused(f"it belongs to the log of {there}, not of {here}")


def read_checkpoints(
    texts: Sequence[tuple[str, str]], audit_pk: bytes, origin: str
) -> tuple[list[Root], list[Failure]]:
    """The checkpoints by ascending size, and a failure for every note that the log's key did not sign."""
    key = VerifierKey(origin, audit_pk)
    roots: list[Root] = []
    failures: list[Failure] = []
    for file, text in texts:
        try:
            roots.append(Root(file, notes.open_checkpoint(text, key)))
        except ProtocolError as error:
            failures.append(Failure(f"{file} is not a checkpoint of {origin} signed by the audit service ({error})"))
    return sorted(roots, key=lambda root: root.checkpoint.size), failures


class MerkleTree:
    """The tree over the entries as they lie in the bundle."""

    def __init__(self, raw: Sequence[bytes]) -> None:
        self.leaves = [translog.leaf_hash(data) for data in raw]
        self._tree = translog.Tree.of(self.leaves)

    @property
    def size(self) -> int:
        return len(self.leaves)

    def root(self, size: int) -> bytes:
        """The root over the first `size` entries."""
        return self._tree.root(size)


def check_roots(tree: MerkleTree, own: Sequence[Root], given: Sequence[Root]) -> Check:
    """The entries hash to the root of every checkpoint: nothing was changed, dropped, inserted or put elsewhere.

    `own`: the bundle's checkpoints. `given`: the reader's; each is held against the entries by itself, since one of
    another history says nothing of the next.
    """
    name = "entries against checkpoints"
    if not own and not given:
        return failed(name, Failure("no checkpoint signed by the audit service is left to check the entries against"))
    good, failures = 0, []
    for root in own:
        failure = _against(tree, root, good)
        if failure is not None:
            failures.append(failure)
            break  # the entries are not those of the log: later checkpoints would say the same
        good = root.checkpoint.size
    vouched = good
    for root in given:
        failure = _of_another_history(tree, root, good) or _older(tree, root) or _against(tree, root, vouched)
        if failure is None:
            vouched = max(vouched, root.checkpoint.size)
        else:
            failures.append(failure)
    if not failures and vouched < tree.size:
        text = f"the last checkpoint covers {vouched} of {tree.size} entries; nothing vouches for the others"
        failures.append(Failure(text, vouched))
    if failures:
        return failed(name, *failures)
    return passed(name, f"{tree.size} entries hash to the root of the last checkpoint, {tree.root(tree.size).hex()}")


def _against(tree: MerkleTree, root: Root, good: int) -> Failure | None:
    """Why the entries are not those of this checkpoint; the first `good` ones are vouched for by another."""
    size = root.checkpoint.size
    if size > tree.size:
        return Failure(
            f"{root.file} is of {size} entries, the bundle holds {tree.size}: the rest was cut off", tree.size
        )
    if tree.root(size) == root.checkpoint.root:
        return None
    where = f"one of the entries {good} to {size - 1}" if size > good + 1 else f"entry {good}"
    return Failure(
        f"{where} is not what the log had when it signed {root.file}: changed, dropped, inserted or moved", good
    )


def _older(tree: MerkleTree, root: Root) -> Failure | None:
    """A checkpoint that the reader kept may be newer than a bundle that was fetched before it."""
    size = root.checkpoint.size
    if size <= tree.size:
        return None
    return Failure(
        f"{root.file} is of {size} entries, the bundle holds {tree.size}: the bundle is older than that, or its end "
        "was cut off; fetch a newer one",
        tree.size,
    )


def check_seen(tree: MerkleTree, where: str, seen: Mapping[int, bytes]) -> Check:
    """Every state of the log that a hospital cosigned, as it wrote them down, is a state of this log."""
    name = "seen by this hospital"
    if not seen:
        return passed(name, f"the witness of {where} has cosigned nothing of this log: nothing to hold it against")
    known = {size: root for size, root in seen.items() if size <= tree.size}
    for size, root in sorted(known.items()):
        if tree.root(size) != root:
            text = (
                f"this hospital cosigned another history of {size} entries than this bundle's: the log forked. Keep "
                "the bundle and witness/ of the spool, together they prove it, and tell the other hospitals"
            )
            return failed(name, Failure(text))
    if max(seen) <= tree.size:
        return passed(name, f"{len(known)} states that this hospital cosigned, the last of {max(seen)} entries")
    text = (
        f"this hospital cosigned {max(seen)} entries, and the bundle holds {tree.size}: it is older than what you saw"
    )
    if known:
        text += f", and continues what you saw up to {max(known)}"
    return failed(name, Failure(f"{text}; fetch a newer one", tree.size))


def _of_another_history(tree: MerkleTree, root: Root, good: int) -> Failure | None:
    """A checkpoint that does not fit, of entries that the log's key has signed otherwise: nobody else changed them."""
    size = root.checkpoint.size
    if size > good or tree.root(size) == root.checkpoint.root:
        return None
    return Failure(
        f"{root.file} does not fit: the log signed another history of {size} entries than this bundle's, "
        "whose own checkpoints fit"
    )


def check_consistency(bundle: Bundle, roots: Sequence[Root]) -> Check:
    """Each checkpoint's log is a beginning of the next one's, by the proofs that the log itself gave."""
    name = "consistency of all checkpoints"
    proofs = {(proof.from_size, proof.to_size): proof.hashes for proof in bundle.consistency()}
    for old, new in pairwise(roots):
        failure = _inconsistent(old, new, proofs)
        if failure is not None:
            return failed(name, failure)
    return passed(name, f"{len(roots)} checkpoints are states of one log that only grew")


def _inconsistent(old: Root, new: Root, proofs: Mapping[tuple[int, int], tuple[bytes, ...]]) -> Failure | None:
    first, second = old.checkpoint, new.checkpoint
    if first.size == second.size:
        if first.root == second.root:
            return None
        return Failure(f"the log signed two histories of {first.size} entries: {old.file} and {new.file}", 0)
    if first.size == 0:
        return None
    proof = proofs.get((first.size, second.size))
    if proof is None:
        return Failure(f"the proof from {first.size} to {second.size} entries is missing", first.size)
    try:
        translog.verify_consistency(first.size, second.size, list(proof), first.root, second.root)
    except ProtocolError:
        return Failure(f"{new.file} does not continue the log of {old.file}: history was rewritten", 0)
    return None


def check_inclusion(bundle: Bundle, tree: MerkleTree, roots: Sequence[Root], entries: Sequence[Entry]) -> Check:
    """The entries that release models are in the last checkpoint, by proofs that stand without the other entries."""
    name = "inclusion of model entries"
    if not roots:
        return failed(name, Failure("without a checkpoint there is nothing to be included in"))
    last = roots[-1].checkpoint
    released = events.ModelReleased | events.ModelBundled | events.ReleaseSigned
    wanted = {entry.index for entry in entries if isinstance(entry.message, released)}
    shown = set()
    for proof in bundle.inclusion():
        try:
            if proof.size != last.size or proof.index >= tree.size:
                raise PartRefused(
                    "proofs/inclusion.json", f"a proof is not for the last checkpoint of {last.size} entries"
                )
            leaf = tree.leaves[proof.index]
            translog.verify_inclusion(leaf, proof.index, proof.size, list(proof.hashes), last.root)
        except ProtocolError:
            return failed(name, Failure("the proof does not lead from this entry to the root", proof.index))
        shown.add(proof.index)
    missing = sorted(wanted - shown)
    if missing:
        return failed(name, Failure("it releases a model, and its proof of inclusion is missing", missing[0]))
    return passed(name, f"{len(shown)} proofs lead to the root of the last checkpoint")


def check_recorded_manifests(manifests: Sequence[Manifest], entries: Sequence[Entry]) -> Check:
    """The manifests of the bundle are those that the log recorded, all of them and no other."""
    name = "recorded memberships"
    by_version = {manifest.version: documents.manifest_hash(manifest) for manifest in manifests}
    recorded = set()
    for index, message in _of(entries, events.ManifestRecorded):
        if by_version.get(message.version) != message.manifest_hash:
            return failed(name, Failure(f"manifest {message.version} of the bundle is not the recorded one", index))
        recorded.add(message.version)
    missing = sorted(by_version.keys() - recorded)
    if missing:
        return failed(name, Failure(f"manifest {missing[0]} is in the bundle and never was recorded in the log"))
    return passed(name, f"all {len(recorded)} manifests are the ones on record")


def _of(entries: Sequence[Entry], kind: type[events.ManifestRecorded]) -> Iterator[tuple[int, events.ManifestRecorded]]:
    for entry in entries:
        if isinstance(entry.message, kind):
            yield entry.index, entry.message
