"""Whether enough hospitals saw the log that holds a model's release: `release.witnesses.json` beside its proof.

The proof's checkpoint carries the hospitals' cosignatures. With which keys they cosign, they said in the study's log,
each under its identity key; who the hospitals are, the officers signed. Both lie in this file, so that a reader with
the trust document alone can count.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Final, Literal

import rfc8785
from pydantic import Field, ValidationError

from cohortium_messages.envelope import Envelope
from cohortium_messages.events import WitnessNamed
from cohortium_messages.governance import MAX_MEMBERS, Manifest
from cohortium_messages.ids import Wire
from cohortium_protocol.documents import GovernancePin, verify_manifest
from cohortium_protocol.errors import BadSignature, LogRefused, ProtocolError
from cohortium_protocol.logproof import LogProof
from cohortium_protocol.notes import Checkpoint
from cohortium_protocol.signing import envelope_bytes, site_key_id, verify
from cohortium_protocol.witness import CosignerKey, cosignatures, quorum, witness_name
from cohortium_verify.not_loaded import QuorumMissed

WITNESSES: Final = "release.witnesses.json"
MAX_WITNESSES_BYTES: Final = 8 << 20


class ReleaseWitnesses(Wire):
    """Who may witness a release. `announcements`: entries of the study's log, as they were hashed, in which hospitals
    name their witness keys."""

    format: Literal["cohortium/release-witnesses/1"] = "cohortium/release-witnesses/1"
    manifest: Manifest
    announcements: Annotated[
        tuple[Annotated[str, Field(min_length=2, max_length=16 << 10)], ...], Field(max_length=MAX_MEMBERS)
    ]


def read_witnesses(content: bytes, pin: GovernancePin, study: str) -> ReleaseWitnesses:
    """The file, if the officers signed its membership and it is the study's. Raises `QuorumMissed`."""
    if len(content) > MAX_WITNESSES_BYTES:
        raise QuorumMissed(f"{WITNESSES} is too large")
    try:
        found = ReleaseWitnesses.model_validate_json(content)
        verify_manifest(found.manifest, pin)
    except ValidationError as error:
        raise QuorumMissed(f"{WITNESSES} is not of its form: {error.errors()[0]['msg']}") from None
    except ProtocolError as error:
        raise QuorumMissed(f"the officers did not sign the membership in {WITNESSES} ({error})") from None
    if found.manifest.study_id != study:
        raise QuorumMissed(f"{WITNESSES} names members of {found.manifest.study_id}, and the model is of {study}")
    return found


def check_quorum(
    proof: LogProof,
    checkpoint: Checkpoint,
    witnesses: ReleaseWitnesses,
    manifest: Manifest,
    federation: str,
    needed: int | None = None,
) -> tuple[str, ...]:
    """The hospitals that cosigned the checkpoint, by id. Raises `QuorumMissed`.

    `manifest`: the newest membership that the reader knows. `needed` left out: so many that no fork of the log can hide
    from them with the study's number of colluding hospitals; 0: the reader does not ask.
    """
    members: dict[str, bytes] = {member.site_id: member.identity_pk for member in manifest.members}
    least = quorum(len(members), manifest.collusion) if needed is None else needed
    keys = _announced(witnesses.announcements, members)
    cosigners = {CosignerKey(witness_name(federation, site), key): site for key, site in keys.items()}
    try:
        named = cosignatures(proof.note, checkpoint, cosigners)
    except LogRefused as refused:
        raise QuorumMissed(f"a cosignature under the release's checkpoint is false ({refused})") from None
    found = tuple(sorted({site for key, site in cosigners.items() if key.name in named}))
    if len(found) < least:
        raise QuorumMissed(
            f"{len(found)} of {len(members)} hospitals cosigned the checkpoint that holds the release, and {least} "
            "must; fetch the model again (`cohortium model export`) when more of them are back"
        )
    return found


def _announced(entries: Iterable[str], members: Mapping[str, bytes]) -> dict[bytes, str]:
    """Each witness key and the member that named it under its own signature. A key counts for the first one only: what
    is cosigned names no witness, so one signature could be shown as two hospitals'."""
    found: dict[bytes, str] = {}
    for entry in entries:
        named = _named(entry, members)
        if named is not None:
            found.setdefault(named.witness_key, named.site_id)
    return found


def _named(entry: str, members: Mapping[str, bytes]) -> WitnessNamed | None:
    """The announcement in an entry of a member; None for what counts for nobody."""
    try:
        whole = json.loads(entry)
        body = rfc8785.dumps(whole["event"])
        envelope = Envelope.model_validate_json(body)
        if envelope.type != WitnessNamed.type_name:
            return None
        named = WitnessNamed.model_validate(envelope.data)
        key = members.get(named.site_id)
        if key is None or whole["key_id"] != site_key_id(named.site_id):
            return None
        verify(key, envelope_bytes(whole["key_id"], body), bytes.fromhex(whole["signature"]))
    except (BadSignature, ValidationError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return named
