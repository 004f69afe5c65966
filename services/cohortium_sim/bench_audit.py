"""What the audit log costs: `python -m cohortium_sim.bench_audit`, part of `make bench`.

The tree alone in memory; the service's own appends in its database, in batches; a checkpoint with ten hospitals'
cosignatures; the offline verifier on the whole bundle. Every figure is of this machine, in this run. Processor seconds
are of one core, whatever else the machine does; the rest is by the clock on the wall.
"""

import argparse
import asyncio
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any
from uuid import UUID
from zipfile import ZipFile

from cohortium_audit.bundle import BundleParts, write_bundle
from cohortium_audit.domain import Entry, LogName, leaf_data, log_of
from cohortium_audit.handlers import Directory, Handlers
from cohortium_audit.store import logs
from cohortium_cli.federation import FederationFiles, FederationSpec, create_federation
from cohortium_kit.clock import SystemClock
from cohortium_kit.db import Database, Tx
from cohortium_kit.envelopes import Sender
from cohortium_kit.migrate import drop_schema, migrate
from cohortium_messages.envelope import SIGNATURE_HEADER, Envelope, Place
from cohortium_messages.events import AuditEvent, SharesGiven, WitnessNamed
from cohortium_messages.governance import Manifest, Member
from cohortium_messages.ids import RunId, SiteId, StudyId
from cohortium_platform.identity import read_key
from cohortium_protocol.documents import FIRST, GovernancePin, sign_manifest
from cohortium_protocol.notes import Checkpoint, VerifierKey, open_checkpoint
from cohortium_protocol.signing import EnvelopeSigner, IdentityKey, Keyring, site_key_id
from cohortium_protocol.translog import Node, Tree, leaf_hash
from cohortium_protocol.witness import CosignerKey, cosign, cosignatures, witness_name
from cohortium_sim.bench import machine
from cohortium_verify.verification import verify_bundle

STUDY, FEDERATION = StudyId("bench"), "bench.example"
RUN = RunId("00000000-0000-4000-8000-0000000000aa")
SITES = 10
BATCH = 256
SCHEMA = "bench_audit"


@dataclass(frozen=True, slots=True)
class Hospital:
    """A site that emits events and cosigns checkpoints."""

    site_id: SiteId
    key: IdentityKey
    witness: IdentityKey


def timed(times: int, work: Callable[[], object]) -> float:
    """Processor seconds of one call, over so many."""
    began = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - began) / times


def tree_figures(leaves: int) -> dict[str, float]:
    """Appends a second and proofs of a tree in memory, without signing or storing anything."""
    levels: list[list[bytes]] = [[] for _ in range(64)]

    def get(node: Node) -> bytes:
        return levels[node.level][node.index]

    def put(node: Node, digest: bytes) -> None:
        levels[node.level].append(digest)

    tree = Tree(0, get, put)
    data = [b"%d" % number for number in range(leaves)]
    began = time.process_time()
    for one in data:
        tree.append(leaf_hash(one))
    appending = time.process_time() - began
    places = cycle(range(0, leaves, max(1, leaves // 2000)))
    inclusion = timed(1000, lambda: tree.inclusion(next(places), leaves))
    sizes = cycle(range(1, leaves + 1, max(1, leaves // 2000)))
    consistency = timed(1000, lambda: tree.consistency(next(sizes), leaves))
    return {
        "leaves": leaves,
        "appends_per_processor_s": round(leaves / appending),
        "inclusion_proof_us": round(inclusion * 1e6, 1),
        "consistency_proof_us": round(consistency * 1e6, 1),
    }


def hospitals() -> list[Hospital]:
    """Ten of them, in the order of their ids."""
    ids = [SiteId(str(UUID(int=number, version=4))) for number in range(1, SITES + 1)]
    return [Hospital(site_id, IdentityKey.generate(), IdentityKey.generate()) for site_id in sorted(ids)]


def membership(files: FederationFiles, sites: Sequence[Hospital]) -> Manifest:
    """The study's manifest, signed by the officers."""
    members = tuple(
        Member(site_id=site.site_id, name=f"Hospital {place}", identity_pk=site.key.public)
        for place, site in enumerate(sites)
    )
    manifest = Manifest(
        study_id=STUDY,
        version=1,
        prev_hash=FIRST,
        study_digest=bytes(32),
        members=members,
        collusion=1,
        k_min_floor=3,
    )
    for officer in files.officers:
        manifest = sign_manifest(manifest, officer)
    return manifest


def entries(sites: Sequence[Hospital], count: int) -> Iterator[Entry]:
    """Signed events of the hospitals, as the service hands them to the log."""
    clock = SystemClock()
    senders = [Sender(f"/site/{s.site_id}", EnvelopeSigner(site_key_id(s.site_id), s.key), clock) for s in sites]
    places = [Place(bytes([turn] * 8)) for turn in range(len(sites))]
    for number in range(count):
        turn = number % len(sites)
        site, sender = sites[turn], senders[turn]
        message: AuditEvent = (
            WitnessNamed(site_id=site.site_id, witness_key=site.witness.public)
            if number < len(sites)
            else SharesGiven(
                run_id=RUN,
                window_id=number.to_bytes(16, "big"),
                site_id=site.site_id,
                survivors_hash=bytes(32),
            )
        )
        outgoing = sender.outgoing("uplink", "site", message, study=STUDY, place=places[turn])
        places[turn] = Place(places[turn].series, places[turn].number + 1, hashlib.sha256(outgoing.body).digest())
        signature = bytes.fromhex(outgoing.headers[SIGNATURE_HEADER])
        envelope = Envelope.model_validate_json(outgoing.body)
        data = leaf_data(outgoing.body, site_key_id(site.site_id), signature)
        yield Entry(log_of(envelope), envelope.id, site_key_id(site.site_id), envelope.type, envelope.time, data)


async def log_figures(folder: Path, database: str | None, count: int) -> dict[str, Any]:
    """The service's appends, a cosigned checkpoint, and the verifier over the bundle."""
    files = create_federation(
        FederationSpec(folder / "federation", FEDERATION, "memory://", "bench", now=datetime.now(UTC))
    )
    sites = hospitals()
    key = read_key(files.directory / "secrets" / "audit.key")
    db = Database(database or f"sqlite:///{folder / 'audit.db'}", schema=SCHEMA)
    try:
        await migrate(db, "cohortium_audit")
        pin = GovernancePin.of(files.trust)
        handlers = Handlers(directory=Directory(Keyring({})), governance=pin, key=key, federation=FEDERATION)
        recorded = list(entries(sites, count))
        began, worked = time.perf_counter(), time.process_time()
        for first in range(0, count, BATCH):
            await db.run("append_events", partial(_append, handlers, recorded[first : first + BATCH]))
        appending, working = time.perf_counter() - began, time.process_time() - worked
        log = LogName(STUDY)
        signed = await db.run("checkpoint", lambda tx: handlers.checkpoint(tx, log))
        assert signed is not None  # noqa: S101 - the log has entries
        checkpoint = Checkpoint(handlers.origin(log), signed.size, signed.root)
        at = int(time.time())
        lines = [cosign(checkpoint, witness_name(FEDERATION, s.site_id), s.witness, at) for s in sites]
        note = signed.note + "".join(lines)
        parts = BundleParts(
            log=log,
            origin=handlers.origin(log),
            trust=files.trust,
            manifests=[membership(files, sites)],
            checkpoints=[logs.SignedCheckpoint(signed.size, signed.root, note)],
            proven=[],
        )
        await write_bundle(db, parts, folder / "bundle.zip")
    finally:
        if database is not None:
            await drop_schema(db)
        await db.close()
    return {
        "events": count,
        "database": "PostgreSQL" if database else "SQLite",
        "appends_per_s": round(count / appending),
        "appends_per_processor_s": round(count / working),
        "checkpoint_bytes_with_10_cosignatures": len(note.encode()),
        "checkpoint_verified_ms": round(_checkpoint_seconds(note, checkpoint, files, sites) * 1e3, 2),
        **_verified(folder, files),
    }


async def _append(handlers: Handlers, batch: Sequence[Entry], tx: Tx) -> None:
    await handlers.append(tx, batch)


def _checkpoint_seconds(note: str, checkpoint: Checkpoint, files: FederationFiles, sites: Sequence[Hospital]) -> float:
    """The log's signature and those of ten witnesses."""
    log_key = VerifierKey(checkpoint.origin, files.trust.services.audit)
    keys = [CosignerKey(witness_name(FEDERATION, site.site_id), site.witness.public) for site in sites]
    return timed(100, lambda: (open_checkpoint(note, log_key), cosignatures(note, checkpoint, keys)))


def _verified(folder: Path, files: FederationFiles) -> dict[str, Any]:
    with ZipFile(folder / "bundle.zip") as archive:
        archive.extractall(folder / "bundle")
    began, worked = time.perf_counter(), time.process_time()
    report = verify_bundle(folder / "bundle", [officer.public for officer in files.officers])
    seconds, working = time.perf_counter() - began, time.process_time() - worked
    states = {check.name: check.state for check in report.checks}
    # No run was recorded, so there is no manifest event and no model: what is timed is the cryptography of every entry.
    for name in ("entries", "entries against checkpoints", "witnesses"):
        if states.get(name) != "passed":
            raise SystemExit(f"the bench's own bundle is not proven: {name}")
    return {"verify_s": round(seconds, 2), "verify_processor_s": round(working, 2)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="cohortium_sim.bench_audit", description=__doc__)
    parser.add_argument("--leaves", type=int, default=1_000_000, help="leaves of the tree in memory")
    parser.add_argument("--events", type=int, default=100_000, help="events through the service's own append")
    parser.add_argument("--database", help="PostgreSQL's URL; left out, SQLite")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="cohortium-bench-") as folder:
        figures = {
            "tree": tree_figures(options.leaves),
            "log": asyncio.run(log_figures(Path(folder), options.database, options.events)),
            **machine(),
        }
    text = json.dumps(figures, indent=1)
    if options.json is not None:
        options.json.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
