"""The offline verifier: what an audit bundle proves, without asking any service.

It depends on the message models, the protocol and the privacy rules only, so that a hospital or an outsider can run it,
and read it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from cohortium_messages.governance import Manifest, TrustDocument
from cohortium_protocol.documents import GovernancePin
from cohortium_verify import (
    agreed,
    chains,
    cohorts,
    consent,
    lineage,
    log,
    model,
    order,
    platform,
    privacy,
    release,
    rules,
    sessions,
    withdrawals,
    witnesses,
)
from cohortium_verify.bundle import Bundle, BundleUnreadable, PartRefused, open_bundle
from cohortium_verify.kept import KnownCheckpoint, OwnAnchors
from cohortium_verify.log import Entry, MerkleTree, Root
from cohortium_verify.report import Check, Failure, VerificationReport, failed, passed, skipped

ATTESTATION = Path("..", "model", "attestation.dsse.json")
"""Where the signed model lies beside the bundle, in a result folder."""


def verify_bundle(
    folder: Path,
    governance_keys: Sequence[bytes] | None = None,
    *,
    known_checkpoints: Sequence[KnownCheckpoint] = (),
    quorum: int | None = None,
    own: OwnAnchors | None = None,
) -> VerificationReport:
    """Check the whole bundle and say what it proves; never raises for what is in the files.

    `governance_keys`: the officers' public keys as the reader got them from the officers. Without them everything is
    checked against the bundle's own, and the report says that this proves nothing about who made the bundle.
    `known_checkpoints`: notes that the reader kept from earlier. A log that was cut short or forked since then cannot
    hold them; nothing inside a bundle can show that it was cut at a checkpoint.
    `quorum`: how many hospitals must have cosigned; left out, what the study's number of colluding hospitals asks for.
    `own`: what the hospital that reads has by itself; `governance_keys` come in place of its keys.
    """
    try:
        return _Verification(open_bundle(folder), governance_keys, known_checkpoints, quorum, own).report()
    except BundleUnreadable as error:
        pinned = governance_keys is not None or own is not None
        return VerificationReport(str(folder), "", 0, "", pinned, (), str(error))


class _Verification:
    """One pass over one bundle. The parts build on each other; a part that is missing stops what builds on it."""

    def __init__(
        self,
        bundle: Bundle,
        governance_keys: Sequence[bytes] | None,
        known_checkpoints: Sequence[KnownCheckpoint],
        quorum: int | None,
        own: OwnAnchors | None,
    ) -> None:
        self._bundle = bundle
        self._pinned = governance_keys
        self._keys_of, self._threshold = "the ones you gave", 0
        if governance_keys is None and own is not None:
            self._pinned, self._threshold, self._keys_of = own.keys, own.threshold, f"those of {own.where}"
        self._known = (*known_checkpoints, *(() if own is None else own.notes))
        self._own = own
        self._quorum = quorum
        self._checks: list[Check] = []
        self._origin = ""
        self._roots: list[Root] = []
        self._cosigned: list[tuple[int, int]] = []

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
            keys_of=self._keys_of,
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
        keys = log.known_keys(trust.services, manifests)
        entries, failures = log.read_entries(raw, keys, study)
        self._checks.append(_entries_check(raw, failures))
        unread = skipped(chains.CHAINS, "what cannot be read leaves gaps") if failures else None
        self._checks.append(unread or chains.check_chains(entries))
        tree = MerkleTree(raw)
        self._check_tree(tree, trust, entries)
        self._guarded("platform log", lambda: platform.check_platform(self._bundle, trust, study, tree))
        self._guarded("witnesses", lambda: self._witnesses(trust, manifests, entries))
        self._check_rules(entries, manifests)
        self._guarded("consent documents", lambda: self._consent(trust, manifests, entries))
        self._guarded(
            cohorts.NAME, lambda: cohorts.check_cohorts(self._bundle.papers(), entries, rules.windows_of(entries))
        )
        self._guarded(
            agreed.NAME, lambda: agreed.check_agreed(self._bundle.papers(), entries, rules.windows_of(entries))
        )
        self._checks.append(model.check_model(self._bundle.folder / ATTESTATION, trust, entries))
        roles = release.roles_of(trust, self._pin(trust), manifests)
        self._checks.append(release.check_releases(self._bundle.folder / ATTESTATION, roles, entries))
        self._checks.append(release.check_proof(self._bundle.folder / ATTESTATION, trust, study, tree))
        self._checks.append(privacy.check_privacy(self._bundle.folder / ATTESTATION, trust, entries))

    def _pin(self, trust: TrustDocument) -> GovernancePin:
        return log.pin_of(trust, self._pinned, self._threshold)

    def _check_documents(self, trust: TrustDocument, manifests: Sequence[Manifest]) -> None:
        pin = self._pin(trust)
        pinned_by = self._keys_of if self._pinned is not None else "taken from the bundle itself"
        self._checks.append(log.check_trust(trust, pin, pinned_by=pinned_by))
        self._checks.append(log.check_manifests(manifests, pin))

    def _check_tree(self, tree: MerkleTree, trust: TrustDocument, entries: Sequence[Entry]) -> None:
        self._guarded("checkpoints", lambda: self._read_checkpoints(trust))
        own = [root for root in self._roots if root.file.startswith("checkpoints/")]
        self._checks.append(log.check_roots(tree, own, [root for root in self._roots if root not in own]))
        if self._own is not None:
            self._checks.append(log.check_seen(tree, self._own.where, self._own.seen))
        self._guarded("consistency of all checkpoints", lambda: log.check_consistency(self._bundle, own))
        self._guarded(
            "inclusion of model entries",
            lambda: log.check_inclusion(self._bundle, tree, own, entries),
        )

    def _read_checkpoints(self, trust: TrustDocument) -> Check:
        texts = self._bundle.checkpoints()
        known = [(one.name, one.note) for one in self._known]
        self._roots, failures = log.read_checkpoints([*texts, *known], trust.services.audit, self._origin)
        if failures:
            return failed("checkpoints", *failures)
        return passed("checkpoints", f"{len(self._roots)} checkpoints, each signed by the audit service")

    def _witnesses(self, trust: TrustDocument, manifests: Sequence[Manifest], entries: Sequence[Entry]) -> Check:
        notes = dict(self._bundle.checkpoints())
        seen = [(root, notes[root.file]) for root in self._roots if root.file in notes]
        given = trust.federation, manifests, entries, seen
        self._cosigned = witnesses.cosigned_at(*given, needed=self._quorum)
        return witnesses.check_witnesses(*given, needed=self._quorum)

    def _consent(self, trust: TrustDocument, manifests: Sequence[Manifest], entries: Sequence[Entry]) -> Check:
        pin, windows = self._pin(trust), rules.windows_of(entries)
        study = release.study_beside(self._bundle.folder / ATTESTATION)
        governed = frozenset({study.digest()} if study is not None and study.governance == "required" else ())
        papers = self._bundle.papers()
        return consent.check_consent(papers, pin, manifests, entries, windows, governed=governed)

    def _check_rules(self, entries: Sequence[Entry], manifests: Sequence[Manifest]) -> None:
        windows = rules.windows_of(entries)
        self._checks += [
            log.check_recorded_manifests(manifests, entries),
            rules.check_authorised(windows),
            rules.check_grants(entries, windows),
            order.check_order(entries, windows, self._cosigned),
            rules.check_cohorts(windows, manifests),
            rules.check_openings(windows),
            rules.check_shares(windows),
            rules.check_site_consent(windows),
            sessions.check_sessions(entries, windows),
            lineage.check_lineage(entries, windows),
            withdrawals.check_withdrawals(entries, windows),
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
