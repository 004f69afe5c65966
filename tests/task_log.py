"""A study's log as the audit service keeps it, in memory: what a task must show before a hospital works on it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cohortium_kit.clock import SystemClock
from cohortium_kit.envelopes import Sender
from cohortium_messages.envelope import SIGNATURE_HEADER
from cohortium_messages.events import AuditEvent, WindowAuthorised
from cohortium_messages.governance import Permit
from cohortium_messages.ids import SiteId, StudyId
from cohortium_messages.secure_sum import WindowParams
from cohortium_messages.witness import Continuation, Logged
from cohortium_protocol.logproof import LogProof, authorisation_id, entry_bytes, log_name
from cohortium_protocol.notes import Checkpoint, sign_checkpoint
from cohortium_protocol.signing import EnvelopeSigner, IdentityKey
from cohortium_protocol.translog import Tree, leaf_hash
from cohortium_protocol.window import params_hash


@dataclass
class TaskLog:
    """`tree` may be replaced by another history of the log; `sizes` are those that hospitals may hold."""

    federation: str
    study: str
    audit: IdentityKey
    scheduler: IdentityKey
    """Who speaks in the log, as `role`."""
    tree: Tree = field(default_factory=Tree.of)
    sizes: list[int] = field(default_factory=list)
    role: str = "scheduler"

    def event(self, params: WindowParams, sites: Sequence[SiteId], **changes: Any) -> WindowAuthorised:
        values: dict[str, Any] = {
            "run_id": params.run_id,
            "window_id": params.window_id,
            "round": params.round,
            "purpose": params.purpose,
            "params_hash": params_hash(params),
            "permits": tuple(Permit(site_id=site, permitted=True) for site in sites),
        }
        return WindowAuthorised(**(values | changes))

    def add(self, event: AuditEvent, event_id: str | None = None) -> tuple[bytes, int]:
        """Record an event: the entry and its place."""
        key_id = f"service:{self.role}"
        sender = Sender(f"/{self.role}", EnvelopeSigner(key_id, self.scheduler), SystemClock())
        out = sender.outgoing("events", "-", event, message_id=event_id, study=StudyId(self.study))
        signature = bytes.fromhex(out.headers[SIGNATURE_HEADER])
        entry = entry_bytes(json.loads(out.body), key_id, signature)
        return entry, self.tree.append(leaf_hash(entry))

    def note(self, size: int, key: IdentityKey | None = None) -> str:
        checkpoint = Checkpoint(log_name(self.federation, self.study), size, self.tree.root(size))
        return sign_checkpoint(checkpoint, key or self.audit)

    def prove(self, entry: bytes, index: int, *, size: int | None = None, key: IdentityKey | None = None) -> Logged:
        """The proof in a checkpoint of `size`, and how it continues the ones before."""
        size = self.tree.size if size is None else size
        hashes = tuple(self.tree.inclusion(index, size))
        continues = tuple(
            Continuation(from_size=old, hashes=tuple(self.tree.consistency(old, size)))
            for old in self.sizes[-16:]
            if old < size
        )
        self.sizes.append(size)
        return Logged(proof=LogProof(entry, index, hashes, self.note(size, key)).text(), continues=continues)

    def authorise(self, params: WindowParams, sites: Sequence[SiteId], **changes: Any) -> Logged:
        """Record a window's authorisation; what its task shows."""
        entry, index = self.add(self.event(params, sites, **changes), authorisation_id(params.window_id))
        return self.prove(entry, index)
