"""The audit bundle of one study: everything an outsider needs to check the log, as one ZIP archive.

    trust.json  manifests/  entries.jsonl  checkpoints/  proofs/consistency.json  proofs/inclusion.json  README.txt

A log only grows, so the parts are read one after the other without a lock: all of them up to one checkpoint.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

from cohortium_audit.domain import LogName
from cohortium_audit.store import logs
from cohortium_kit.db import Database
from cohortium_kit.errors import CohortiumError
from cohortium_messages.events import ModelBundled, ModelReleased, ReleaseSigned
from cohortium_messages.governance import Manifest, TrustDocument
from cohortium_protocol import translog

PAGE = 1000
PROVEN = (ModelReleased.type_name, ModelBundled.type_name, ReleaseSigned.type_name)
"""Events whose inclusion is proven in the bundle itself. For any other one the verifier has all entries."""

README = """\
The audit log of study {study}, up to its checkpoint of {size} entries.

Check it with:  cohortium verify .  --governance-key HEX  (once for each officer whose key you have from the officer)

trust.json                the services' keys, signed by the governance officers
manifests/                who the members of the study are, signed by the governance officers
entries.jsonl             every entry, one a line: {{"event": CloudEvent, "key_id": ..., "signature": hex}}, RFC 8785
checkpoints/              every signed state of the log (C2SP tlog-checkpoint); origin {origin}
proofs/consistency.json   RFC 9162 proofs from each checkpoint to the next
proofs/inclusion.json     RFC 9162 proofs that the entries about released models are in the last checkpoint
platform/                 proofs (C2SP tlog-proof) that the federation's own log holds what it noted of this one

consent.json              the signed documents that permissions rest on. `cohortium audit export` adds it; by hand it is
                          the answer of the consent service's /studies/{study}/papers, with the token or pass of here

A leaf of the tree is SHA-256(0x00 || line without its line end). A signature covers
LE64(3) || LE64(n1) || "cohortium/envelope/1" || LE64(n2) || key_id || LE64(n3) || RFC 8785 bytes of event.
"""


class LogDamaged(CohortiumError):
    """The stored entries do not hash to the checkpoint that was signed over them. The database was changed."""


@dataclass(frozen=True, slots=True)
class BundleParts:
    """What a bundle holds beside the entries, all up to the last of `checkpoints`."""

    log: LogName
    origin: str
    trust: TrustDocument
    manifests: Sequence[Manifest]
    checkpoints: Sequence[logs.SignedCheckpoint]
    proven: Sequence[int]
    platform: Sequence[str] = ()
    """Proofs that the platform's log holds what was noted of this log."""

    @property
    def size(self) -> int:
        """How many entries the bundle holds."""
        return self.checkpoints[-1].size


async def write_bundle(db: Database, parts: BundleParts, file: Path) -> None:
    """Write the archive. Raises `LogDamaged` if the entries do not hash to the last checkpoint.

    Entries are read page by page, so the archive may be larger than the memory; of the tree 64 bytes an entry stay.
    """
    tree = translog.Tree.of()
    with ZipFile(file, "w", ZIP_DEFLATED) as archive:
        with archive.open("entries.jsonl", "w", force_zip64=True) as lines:
            for start in range(0, parts.size, PAGE):
                async with db.reading("bundle_entries") as tx:
                    page = await logs.entries(tx, parts.log, start, min(start + PAGE, parts.size))
                await asyncio.to_thread(_add_page, tree, lines, page)
        if tree.root() != parts.checkpoints[-1].root:
            raise LogDamaged(f"log {parts.log} does not hash to its checkpoint of {parts.size} entries")
        await asyncio.to_thread(_add_rest, archive, parts, tree)


def _add_page(tree: translog.Tree, lines: Any, page: Sequence[bytes]) -> None:
    for data in page:
        tree.append(translog.leaf_hash(data))
        lines.write(data + b"\n")


def _add_rest(archive: ZipFile, parts: BundleParts, tree: translog.Tree) -> None:
    consistency = [
        {"from_size": old.size, "to_size": new.size, "hashes": _hex(tree.consistency(old.size, new.size))}
        for old, new in pairwise(parts.checkpoints)
    ]
    inclusion = [
        {"index": index, "size": parts.size, "hashes": _hex(tree.inclusion(index, parts.size))}
        for index in parts.proven
    ]
    archive.writestr("proofs/consistency.json", _json(consistency))
    archive.writestr("proofs/inclusion.json", _json(inclusion))
    archive.writestr("trust.json", _json(parts.trust.model_dump(mode="json")))
    for manifest in parts.manifests:
        archive.writestr(f"manifests/{manifest.version:06}.json", _json(manifest.model_dump(mode="json")))
    for checkpoint in parts.checkpoints:
        archive.writestr(f"checkpoints/{checkpoint.size:012}.txt", checkpoint.note)
    for number, proof in enumerate(parts.platform):
        archive.writestr(f"platform/{number:06}.tlog-proof", proof)
    readme = README.format(study=parts.log, size=parts.size, origin=parts.origin)
    archive.writestr("README.txt", readme)


def _hex(hashes: Sequence[bytes]) -> list[str]:
    return [value.hex() for value in hashes]


def _json(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"
