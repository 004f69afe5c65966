"""Whether a released model still stands: what a fresher copy of its study's log says of it."""

from collections.abc import Sequence
from pathlib import Path

from cohortium_messages import events
from cohortium_messages.governance import TrustDocument
from cohortium_messages.withdrawals import ModelRetired
from cohortium_protocol.documents import GovernancePin
from cohortium_protocol.notes import Checkpoint
from cohortium_verify import log
from cohortium_verify.bundle import open_bundle
from cohortium_verify.not_loaded import LogNotFresh, ModelIsRetired, ModelIsSuperseded
from cohortium_verify.rules import said
from cohortium_verify.verification import verify_bundle


def check_stands(
    folder: Path, trust: TrustDocument, pin: GovernancePin, release: events.ReleaseSigned, at: Checkpoint
) -> None:
    """Nothing in this audit bundle retires the model or releases a later one of its study. `at`: the checkpoint that
    the release was proven in.

    Raises `LogNotFresh` for a bundle that does not verify or is of another history, `ModelIsRetired`,
    `ModelIsSuperseded`.
    """
    report = verify_bundle(folder, tuple(pin.keys))
    if not report.verified:
        wrong = report.unreadable or next(check.fact for check in report.checks if check.state != "passed")
        raise LogNotFresh(f"the audit bundle {folder} does not verify: {wrong}")
    bundle = open_bundle(folder)
    raw = bundle.entries()
    tree = log.MerkleTree(raw)
    if report.origin != at.origin:
        raise LogNotFresh(f"the audit bundle {folder} is of {report.origin}, and the model of {at.origin}")
    if tree.size < at.size:
        raise LogNotFresh(f"the audit bundle {folder} has {tree.size} entries, fewer than the {at.size} of the release")
    if tree.root(at.size) != at.root:
        raise LogNotFresh(f"the audit bundle {folder} is another history of the log that the release was proven in")
    manifests = bundle.manifests()
    entries, _ = log.read_entries(raw, log.known_keys(trust.services, manifests), manifests[-1].study_id)
    check_not_taken_back(entries, release)


def check_not_taken_back(entries: Sequence[log.Entry], release: events.ReleaseSigned) -> None:
    """No entry retires this release's model or releases a later one. Raises as `check_stands`."""
    for one in said(entries, ModelRetired):
        if (one.message.run_id, one.message.model) == (release.run_id, release.model):
            raise ModelIsRetired(
                f"entry {one.index} of the log retires this model, after withdrawal {one.message.withdrawal.hex()}"
            )
    releases = list(said(entries, events.ReleaseSigned))
    mine = [one.index for one in releases if one.message == release]
    if not mine:
        raise LogNotFresh("the audit bundle does not hold the release of this model")
    later = [one for one in releases if one.index > mine[0] and one.message.run_id != release.run_id]
    if later:
        newest = later[-1]
        raise ModelIsSuperseded(
            f"entry {newest.index} of the log releases a later model of this study, of run {newest.message.run_id}"
        )
