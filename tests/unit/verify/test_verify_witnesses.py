"""Cosignatures against a quorum: what is counted once, whoever shows it twice."""

from pathlib import Path
from typing import cast

from cohortium_messages.envelope import Envelope
from cohortium_messages.events import WitnessNamed
from cohortium_messages.ids import SiteId
from cohortium_protocol.notes import Checkpoint, sign_checkpoint
from cohortium_protocol.signing import IdentityKey
from cohortium_protocol.witness import cosign, witness_name
from cohortium_verify.bundle import open_bundle
from cohortium_verify.log import Entry, Root
from cohortium_verify.witnesses import check_witnesses

FEDERATION = "fl.example.org"
CHECKPOINT = Checkpoint(f"{FEDERATION}/audit/heart", 2, b"\7" * 32)
LOG = IdentityKey.from_seed(b"\1" * 32)
KEY = IdentityKey.from_seed(b"\2" * 32)


def named(index: int, site_id: SiteId, key: IdentityKey) -> Entry:
    message = WitnessNamed(site_id=site_id, witness_key=key.public)
    return Entry(index, f"site:{site_id}", cast("Envelope", None), message)


def lines(site_ids: list[SiteId], key: IdentityKey) -> str:
    return "".join(cosign(CHECKPOINT, witness_name(FEDERATION, site_id), key, 7) for site_id in site_ids)


def passes(result: Path, entries: list[Entry], note: str, needed: int) -> bool:
    seen = [(Root("checkpoints/2.txt", CHECKPOINT), note)]
    return check_witnesses(FEDERATION, open_bundle(result).manifests(), entries, seen, needed=needed).state == "passed"


def test_one_key_under_two_names_is_one_witness(result: Path) -> None:
    """What is signed names no witness: with one key, a signature fits under any name."""
    sites = [member.site_id for member in open_bundle(result).manifests()[-1].members][:2]
    entries = [named(place, site_id, KEY) for place, site_id in enumerate(sites)]
    note = sign_checkpoint(CHECKPOINT, LOG) + lines(sites, KEY)
    assert passes(result, entries, note, 1)
    assert not passes(result, entries, note, 2)


def test_a_line_that_comes_twice_and_two_keys_of_one_hospital_are_one_witness(result: Path) -> None:
    site = open_bundle(result).manifests()[-1].members[0].site_id
    entries = [named(0, site, KEY), named(1, site, LOG)]
    note = sign_checkpoint(CHECKPOINT, LOG) + lines([site, site], KEY) + lines([site], LOG)
    assert passes(result, entries, note, 1)
    assert not passes(result, entries, note, 2)


def test_a_hospital_that_left_the_study_does_not_count(result: Path) -> None:
    site = SiteId("00000000-0000-4000-8000-000000000000")
    note = sign_checkpoint(CHECKPOINT, LOG) + lines([site], KEY)
    assert not passes(result, [named(0, site, KEY)], note, 1)
