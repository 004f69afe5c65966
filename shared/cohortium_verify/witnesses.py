"""Whether enough hospitals saw one and the same log: cosignatures on its checkpoints, counted against a quorum."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from cohortium_messages import events
from cohortium_messages.governance import Manifest
from cohortium_messages.ids import SiteId
from cohortium_protocol.errors import LogRefused
from cohortium_protocol.witness import CosignerKey, cosignatures, quorum, witness_name
from cohortium_verify.log import Entry, Root
from cohortium_verify.report import Check, Failure, failed, passed
from cohortium_verify.rules import said

NAME = "witnesses"


def check_witnesses(
    federation: str,
    manifests: Sequence[Manifest],
    entries: Sequence[Entry],
    checkpoints: Sequence[tuple[Root, str]],
    *,
    needed: int | None = None,
) -> Check:
    """The newest checkpoint that `needed` hospitals cosigned holds every release of a model.

    `needed` left out: so many that no fork can hide from them with the study's number of colluding hospitals. 0: the
    reader does not ask. `checkpoints`: each with its note. A hospital that was shown two histories fails it, always.
    """
    members = {member.site_id for member in manifests[-1].members}
    least = quorum(len(members), manifests[-1].collusion) if needed is None else needed
    failures = list(_forks(entries))
    keys = _keys(federation, entries)
    witnessed, most = 0, 0
    for root, note in checkpoints:
        try:
            named = cosignatures(note, root.checkpoint, keys)
        except LogRefused as refused:
            failures.append(Failure(f"{root.file}: {refused}"))
            continue
        signers = {keys[key] for key in keys if key.name in named} & members
        most = max(most, len(signers))
        if len(signers) >= least:
            witnessed = max(witnessed, root.checkpoint.size)
    if least and not witnessed:
        failures.append(
            Failure(
                f"no checkpoint has the cosignatures of {least} of the {len(members)} hospitals, the best has {most}; "
                "ask the operator for the bundle again when they are back, or give --quorum"
            )
        )
    elif least:
        failures += _unwitnessed_releases(entries, witnessed, least)
    if failures:
        return failed(NAME, *failures)
    if not least:
        return passed(NAME, f"not asked for; the best checkpoint has {most} of {len(members)} hospitals")
    later = max((root.checkpoint.size for root, _ in checkpoints), default=0) - witnessed
    notes = (f"{later} entries came after the last witnessed checkpoint",) if later else ()
    return passed(NAME, f"{witnessed} entries are cosigned by {least} or more of {len(members)} hospitals", notes)


def cosigned_at(
    federation: str,
    manifests: Sequence[Manifest],
    entries: Sequence[Entry],
    checkpoints: Sequence[tuple[Root, str]],
    *,
    needed: int | None = None,
) -> list[tuple[int, int]]:
    """The size of each checkpoint that enough hospitals cosigned, and when the last of them did (unix seconds)."""
    members = {member.site_id for member in manifests[-1].members}
    least = quorum(len(members), manifests[-1].collusion) if needed is None else needed
    keys = _keys(federation, entries)
    found: list[tuple[int, int]] = []
    for root, note in checkpoints:
        with contextlib.suppress(LogRefused):
            named = cosignatures(note, root.checkpoint, keys)
            times = [named[key.name] for key, site in keys.items() if site in members and key.name in named]
            if times and len(times) >= least:
                found.append((root.checkpoint.size, max(times)))
    return found


def _keys(federation: str, entries: Sequence[Entry]) -> Mapping[CosignerKey, SiteId]:
    """Every witness key that a hospital announced under its own signature. A key belongs to the first who did: what is
    signed names no witness, so one signature could be shown as two hospitals'."""
    owners: dict[bytes, SiteId] = {}
    for item in said(entries, events.WitnessNamed):
        owners.setdefault(item.message.witness_key, item.message.site_id)
    return {CosignerKey(witness_name(federation, site_id), key): site_id for key, site_id in owners.items()}


def _forks(entries: Sequence[Entry]) -> Iterator[Failure]:
    for item in said(entries, events.ForkDetected):
        seen = item.message
        text = f"site {seen.site_id} was shown two histories: {seen.held_size} and {seen.offered_size} entries"
        yield Failure(f"{text} do not continue each other", item.index)


def _unwitnessed_releases(entries: Sequence[Entry], witnessed: int, least: int) -> Iterator[Failure]:
    for kind in (events.ModelReleased, events.ModelBundled, events.ReleaseSigned):
        for item in said(entries, kind):
            if item.index >= witnessed:
                yield Failure(f"a model was released in no checkpoint that {least} hospitals cosigned", item.index)
