"""The offline verifier: what an audit bundle proves, without asking any service.

It depends on the message models and the protocol only, so that a hospital or an outsider can run it, and read it.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from cohortium_cli import verify_log, verify_rules
from cohortium_cli.bundle import Bundle, BundleUnreadable, PartRefused, open_bundle
from cohortium_cli.verify_log import Entry, MerkleTree, Root
from cohortium_cli.verify_report import Check, Failure, VerificationReport, failed, passed, skipped
from cohortium_messages import events
from cohortium_messages.governance import Manifest, TrustDocument
from cohortium_protocol.attest import Statement, verify_statement
from cohortium_protocol.encoding import sha256
from cohortium_protocol.errors import ProtocolError

ATTESTATION = Path("..", "model", "attestation.dsse.json")
"""Where the signed model lies beside the bundle, in a result folder."""


def verify_bundle(
    folder: Path, governance_keys: Sequence[bytes] | None = None, *, known_checkpoints: Sequence[str] = ()
) -> VerificationReport:
    """Check the whole bundle and say what it proves; never raises for what is in the files.

    `governance_keys`: the officers' public keys as the reader got them from the officers. Without them everything is
    checked against the bundle's own, and the report says that this proves nothing about who made the bundle.
    `known_checkpoints`: notes that the reader kept from earlier. A log that was cut short or forked since then cannot
    hold them; nothing inside a bundle can show that it was cut at a checkpoint.
    """
    try:
        return _Verification(open_bundle(folder), governance_keys, known_checkpoints).report()
    except BundleUnreadable as error:
        return VerificationReport(str(folder), "", 0, "", governance_keys is not None, (), str(error))


class _Verification:
    """One pass over one bundle. The parts build on each other; a part that is missing stops what builds on it."""

    def __init__(
        self, bundle: Bundle, governance_keys: Sequence[bytes] | None, known_checkpoints: Sequence[str]
    ) -> None:
        self._bundle = bundle
        self._pinned = governance_keys
        self._known = tuple(known_checkpoints)
        self._checks: list[Check] = []
        self._origin = ""
        self._roots: list[Root] = []

    def report(self) -> VerificationReport:
        """All checks, in the order in which they build on each other."""
        self._run()
        last = max(self._roots, key=lambda root: root.checkpoint.size, default=None)
        return VerificationReport(
            folder=str(self._bundle.folder),
            origin=self._origin,
            tree_size=0 if last is None else last.checkpoint.size,
            root="" if last is None else last.checkpoint.root.hex(),
            keys_pinned=self._pinned is not None,
            checks=tuple(self._checks),
        )

    def _run(self) -> None:
        try:
            trust, manifests, raw = self._bundle.trust(), self._bundle.manifests(), self._bundle.entries()
        except PartRefused as error:
            self._checks.append(failed("parts of the bundle", Failure(str(error))))
            self._checks.append(skipped("everything else", "without this part nothing can be held against anything"))
            return
        self._check_documents(trust, manifests)
        study = manifests[-1].study_id
        self._origin = f"{trust.federation}/audit/{study}"
        keys = verify_log.known_keys(trust.services, manifests)
        entries, failures = verify_log.read_entries(raw, keys, study)
        self._checks.append(_entries_check(raw, failures))
        self._check_tree(MerkleTree(raw), trust, entries)
        self._check_rules(entries, manifests)
        self._checks.append(check_attestation(self._bundle.folder / ATTESTATION, trust, entries))

    def _check_documents(self, trust: TrustDocument, manifests: Sequence[Manifest]) -> None:
        pin = verify_log.pin_of(trust, self._pinned)
        pinned_by = "the ones you gave" if self._pinned is not None else "taken from the bundle itself"
        self._checks.append(verify_log.check_trust(trust, pin, pinned_by=pinned_by))
        self._checks.append(verify_log.check_manifests(manifests, pin))

    def _check_tree(self, tree: MerkleTree, trust: TrustDocument, entries: Sequence[Entry]) -> None:
        self._guarded("checkpoints", lambda: self._read_checkpoints(trust))
        self._checks.append(verify_log.check_roots(tree, self._roots))
        own = [root for root in self._roots if root.file.startswith("checkpoints/")]
        self._guarded("consistency of all checkpoints", lambda: verify_log.check_consistency(self._bundle, own))
        self._guarded(
            "inclusion of model entries",
            lambda: verify_log.check_inclusion(self._bundle, tree, own, entries),
        )

    def _read_checkpoints(self, trust: TrustDocument) -> Check:
        texts = self._bundle.checkpoints()
        known = [(f"the checkpoint you gave ({place + 1})", text) for place, text in enumerate(self._known)]
        self._roots, failures = verify_log.read_checkpoints([*texts, *known], trust.services.audit, self._origin)
        if failures:
            return failed("checkpoints", *failures)
        return passed("checkpoints", f"{len(self._roots)} checkpoints, each signed by the audit service")

    def _check_rules(self, entries: Sequence[Entry], manifests: Sequence[Manifest]) -> None:
        windows = verify_rules.windows_of(entries)
        self._checks += [
            verify_log.check_recorded_manifests(manifests, entries),
            verify_rules.check_authorised(windows),
            verify_rules.check_grants(entries, windows),
            verify_rules.check_cohorts(windows, manifests),
            verify_rules.check_openings(windows),
            verify_rules.check_shares(windows),
            verify_rules.check_site_consent(windows),
            verify_rules.check_lineage(entries, windows),
        ]

    def _guarded(self, name: str, check: Callable[[], Check]) -> None:
        try:
            self._checks.append(check())
        except PartRefused as error:
            self._checks.append(failed(name, Failure(str(error))))


def _entries_check(raw: Sequence[bytes], failures: Sequence[Failure]) -> Check:
    if failures:
        return failed("entries", *failures)
    return passed("entries", f"{len(raw)} entries, each signed by a key that may say it")


def check_attestation(path: Path, trust: TrustDocument, entries: Sequence[Entry]) -> Check:
    """The signed model beside the bundle is the one on record, and its files are the ones that were signed."""
    name = "model bundle"
    outcome = verify_rules.outcome_notes(entries)
    bundled = {item.message.attestation_sha256: item for item in verify_rules.said(entries, events.ModelBundled)}
    if not path.exists():
        fact = "the log names a signed model, and none lies beside the bundle" if bundled else "no model was bundled"
        return passed(name, fact, outcome)
    raw = path.read_bytes()
    record = bundled.get(sha256(raw))
    if record is None:
        return failed(name, Failure("the model's attestation is not the one on record in this log"), notes=outcome)
    try:
        statement = verify_statement(raw, (trust.services.aggregator,), 1)
    except ProtocolError as error:
        return failed(name, Failure(f"the aggregator did not sign the model's attestation ({error})"), notes=outcome)
    failures = _wrong_files(path.parent, statement)
    if failures:
        return failed(name, *failures, notes=outcome)
    extra = sorted(item.name for item in path.parent.iterdir() if item.name not in {*statement.subjects, path.name})
    unsigned = tuple(f"{item} lies beside the model and is not covered by its attestation" for item in extra)
    fact = f"{len(statement.subjects)} files are as the aggregator signed them, and on record (entry {record.index})"
    return passed(name, fact, (*outcome, *unsigned))


def _wrong_files(folder: Path, statement: Statement) -> list[Failure]:
    failures = []
    for name, digest in statement.subjects.items():
        if PurePosixPath(name).name != name:
            failures.append(Failure(f"the attestation names a file outside the model's folder: {name!r}"))
        elif not (folder / name).is_file():
            failures.append(Failure(f"{name} is missing from the model's folder"))
        elif _file_digest(folder / name) != digest:
            failures.append(Failure(f"{name} is not the file that was signed"))
    return failures


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
