"""Who may sign what: trust documents, manifests, grants and registrations."""

from datetime import UTC, datetime
from typing import Any

import pytest
from federation_in_memory import AGGREGATOR_SEAL, GOVERNORS, PIN, Site, digest, manifest_of

from cohortium_messages.governance import (
    GovernanceSignature,
    GrantWithdrawn,
    Manifest,
    ServiceKeys,
    SiteGrant,
    TrustDocument,
)
from cohortium_messages.ids import StudyId
from cohortium_protocol import documents
from cohortium_protocol.documents import GovernancePin
from cohortium_protocol.errors import BadSignature, DocumentRefused, TooFewSignatures, WeakKey
from cohortium_protocol.signing import IdentityKey

SITES = [Site.number(i) for i in range(1, 6)]
SITE, STRANGER = SITES[0], IdentityKey.from_seed(digest("stranger"))
TOKEN, FEDERATION = "t" * 40, "fed.example.org"


def trust(**changes: Any) -> TrustDocument:
    roles = {role: digest(role) for role in ("enrolment", "consent", "scheduler", "aggregator", "audit")}
    values = {
        "federation": FEDERATION,
        "version": 1,
        "issued_at": datetime(2026, 1, 1, tzinfo=UTC),
        "services": ServiceKeys(**roles, aggregator_seal=AGGREGATOR_SEAL.public),
        "governance_keys": tuple(key.public for key in GOVERNORS),
        "threshold": 2,
    }
    return TrustDocument.model_validate(values | changes)


def resigned(manifest: Manifest, **changes: Any) -> Manifest:
    changed = manifest.model_copy(update={**changes, "signatures": ()})
    for key in GOVERNORS[:2]:
        changed = documents.sign_manifest(changed, key)
    return changed


class TestTrust:
    def test_two_of_three_officers(self) -> None:
        document = trust()
        for have, key in enumerate(GOVERNORS[:2]):
            with pytest.raises(TooFewSignatures, match=f"{have} of 2"):
                documents.verify_trust(document, PIN)
            document = documents.sign_trust(document, key)
        documents.verify_trust(document, PIN)
        assert GovernancePin.of(document) == PIN

    def test_one_officer_twice_or_a_stranger_do_not_count(self) -> None:
        document = documents.sign_trust(documents.sign_trust(trust(), GOVERNORS[0]), GOVERNORS[0])
        assert len(document.signatures) == 1
        twice = document.model_copy(update={"signatures": document.signatures * 2})
        with pytest.raises(TooFewSignatures):
            documents.verify_trust(twice, PIN)
        with pytest.raises(TooFewSignatures):
            documents.verify_trust(documents.sign_trust(document, STRANGER), PIN)

    def test_a_document_cannot_lower_the_threshold_it_is_checked_by(self) -> None:
        lowered = documents.sign_trust(trust(threshold=1, governance_keys=(GOVERNORS[0].public,)), GOVERNORS[0])
        with pytest.raises(TooFewSignatures):
            documents.verify_trust(lowered, PIN)

    def test_old_officers_name_new_ones(self) -> None:
        document = trust(version=2, governance_keys=(STRANGER.public, GOVERNORS[0].public))
        for key in GOVERNORS[:2]:
            document = documents.sign_trust(document, key)
        documents.verify_trust(document, PIN)
        assert STRANGER.public in GovernancePin.of(document).keys

    def test_changed_fields_and_unusable_keys_are_refused(self) -> None:
        document = documents.sign_trust(documents.sign_trust(trust(), GOVERNORS[0]), GOVERNORS[1])
        with pytest.raises(TooFewSignatures):
            documents.verify_trust(document.model_copy(update={"version": 2}), PIN)
        for changes in ({"threshold": 4}, {"governance_keys": (GOVERNORS[0].public,) * 2}):
            signed = documents.sign_trust(documents.sign_trust(trust(**changes), GOVERNORS[0]), GOVERNORS[1])
            with pytest.raises(DocumentRefused):
                documents.verify_trust(signed, PIN)


class TestManifest:
    manifest = manifest_of(SITES)

    def test_default_collusion(self) -> None:
        table = {
            3: 1,
            4: 1,
            5: 1,
            6: 1,
            7: 2,
            8: 2,
            10: 3,
            1000: 66,
            12: 3,
            16: 5,
            20: 6,
            32: 10,
            50: 16,
            64: 21,
            100: 33,
            200: 66,
        }
        assert {members: documents.default_collusion(members) for members in table} == table

    def test_an_honest_one_passes(self) -> None:
        documents.verify_manifest(self.manifest, PIN)

    def test_a_service_cannot_add_a_member(self) -> None:
        more = self.manifest.model_copy(update={"members": manifest_of([*SITES, Site.number(9)]).members})
        with pytest.raises(TooFewSignatures):
            documents.verify_manifest(more, PIN)
        forged = GovernanceSignature(key=GOVERNORS[0].public, sig=bytes(64))
        with pytest.raises(TooFewSignatures):
            documents.verify_manifest(self.manifest.model_copy(update={"signatures": (forged,) * 2}), PIN)

    def test_order_repetition_and_weak_keys_are_refused_even_if_signed(self) -> None:
        members = self.manifest.members
        weak = members[4].model_copy(update={"identity_pk": bytes([1]) + bytes(31)})
        same_key = members[4].model_copy(update={"identity_pk": members[0].identity_pk})
        for wrong in (members[::-1], (*members, members[4]), (*members[:4], same_key)):
            with pytest.raises(DocumentRefused):
                documents.verify_manifest(resigned(self.manifest, members=wrong), PIN)
        with pytest.raises(WeakKey):
            documents.verify_manifest(resigned(self.manifest, members=(*members[:4], weak)), PIN)

    @pytest.mark.parametrize("changes", [{"collusion": 4}, {"k_min_floor": 6}])
    def test_thresholds_out_of_reach_are_refused(self, changes: dict[str, int]) -> None:
        with pytest.raises(DocumentRefused):
            documents.verify_manifest(resigned(self.manifest, **changes), PIN)

    def test_the_chain_from_version_1(self) -> None:
        second = resigned(self.manifest, version=2, prev_hash=documents.manifest_hash(self.manifest), k_min_floor=4)
        third = resigned(second, version=3, prev_hash=documents.manifest_hash(second))
        documents.verify_manifest_chain([self.manifest, second, third], PIN)
        for broken in ([], [second, third], [self.manifest, third], [self.manifest, second, second]):
            with pytest.raises(DocumentRefused):
                documents.verify_manifest_chain(broken, PIN)
        for changes in ({"study_id": StudyId("lung")}, {"prev_hash": bytes(32)}, {"version": 5}):
            with pytest.raises(DocumentRefused):
                documents.verify_successor(resigned(second, **changes), self.manifest)

    def test_signatures_are_not_part_of_the_hash(self) -> None:
        assert documents.manifest_hash(self.manifest) == documents.manifest_hash(
            documents.sign_manifest(self.manifest, GOVERNORS[2])
        )


def grant(**changes: Any) -> SiteGrant:
    values = {
        "study_id": "heart",
        "study_digest": digest("study"),
        "site_id": SITE.site_id,
        "not_before": datetime(2026, 1, 1, tzinfo=UTC),
        "not_after": datetime(2027, 1, 1, tzinfo=UTC),
        "max_rounds": 10,
        "approvers": ("A. Officer",),
        "sig": documents.UNSIGNED,
    }
    return SiteGrant.model_validate(values | changes)


class TestGrants:
    def test_the_sites_own_key_signs(self) -> None:
        signed = documents.sign_grant(grant(), SITE.identity)
        documents.verify_grant(signed, SITE.identity.public)
        with pytest.raises(BadSignature):
            documents.verify_grant(signed, STRANGER.public)
        with pytest.raises(BadSignature):
            documents.verify_grant(signed.model_copy(update={"max_rounds": 11}), SITE.identity.public)
        assert documents.grant_digest(signed) == documents.grant_digest(grant())

    def test_a_grant_that_ends_before_it_begins_is_refused(self) -> None:
        backwards = documents.sign_grant(grant(not_after=datetime(2025, 1, 1, tzinfo=UTC)), SITE.identity)
        with pytest.raises(DocumentRefused):
            documents.verify_grant(backwards, SITE.identity.public)

    def test_withdrawal(self) -> None:
        unsigned = GrantWithdrawn(
            study_id=StudyId("heart"),
            study_digest=digest("study"),
            site_id=SITE.site_id,
            at=datetime(2026, 6, 1, tzinfo=UTC),
            sig=documents.UNSIGNED,
        )
        signed = documents.sign_withdrawal(unsigned, SITE.identity)
        documents.verify_withdrawal(signed, SITE.identity.public)
        with pytest.raises(BadSignature):
            documents.verify_withdrawal(unsigned, SITE.identity.public)
        grant_signature = documents.sign_grant(grant(), SITE.identity).sig
        with pytest.raises(BadSignature):
            documents.verify_withdrawal(signed.model_copy(update={"sig": grant_signature}), SITE.identity.public)


class TestRegistration:
    message = documents.make_registration(TOKEN, FEDERATION, SITE.site_id, SITE.identity)

    def test_key_and_token_are_proved(self) -> None:
        documents.verify_registration(self.message, TOKEN, FEDERATION)
        assert TOKEN not in self.message.model_dump_json()

    def test_a_wrong_token_federation_or_key_is_refused(self) -> None:
        with pytest.raises(DocumentRefused):
            documents.verify_registration(self.message, "u" * 40, FEDERATION)
        with pytest.raises(BadSignature):
            documents.verify_registration(self.message, TOKEN, "other.example.org")
        changed = self.message.model_copy(update={"site_id": SITES[1].site_id})
        with pytest.raises(BadSignature):
            documents.verify_registration(changed, TOKEN, FEDERATION)

    def test_an_observer_cannot_use_the_mac_for_a_key_of_its_own(self) -> None:
        mine = documents.make_registration("guess" * 8, FEDERATION, SITE.site_id, STRANGER)
        stolen = mine.model_copy(update={"token_mac": self.message.token_mac})
        with pytest.raises(BadSignature):
            documents.verify_registration(stolen, TOKEN, FEDERATION)

    def test_a_key_of_small_order_is_refused(self) -> None:
        weak = self.message.model_copy(update={"identity_pk": bytes([1]) + bytes(31)})
        with pytest.raises(WeakKey):
            documents.verify_registration(weak, TOKEN, FEDERATION)
