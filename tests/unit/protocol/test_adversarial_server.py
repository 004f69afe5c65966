"""A server that lies, function by function: each lie ends in its named refusal."""

from dataclasses import replace

import numpy as np
import pytest
from federation_in_memory import (
    AGGREGATOR_SEAL,
    MODEL_7,
    MODEL_8,
    Federation,
    Site,
    grid_spec,
    integer_spec,
    manifest_of,
    params_of,
)

from cohortium_messages.secure_sum import AbortCert, DealtBox, EchoCert, Ready, Roster, Survivors, Vote
from cohortium_protocol import opening, survivors, upload, window
from cohortium_protocol.errors import (
    BadSignature,
    BaseModelRefused,
    BoxRefused,
    EchoMismatch,
    HeaderRefused,
    Malformed,
    NotAMember,
    NotASurvivor,
    OwnEntryChanged,
    OwnHeaderChanged,
    QuorumMissing,
    RosterRefused,
    TooFewSurvivors,
    VectorRefused,
    WeakKey,
    WrongWindow,
)
from cohortium_protocol.keys import WindowKeys
from cohortium_protocol.plan import ChunkPlan
from cohortium_protocol.survivors import SurvivorSet

N, C = 7, 2


@pytest.fixture
def federation() -> Federation:
    """Seven sites, of which two may collude: t = 5, k_min = 4. All have uploaded."""
    made = Federation.of(N, integer_spec(20), collusion=C)
    for index in made.view.indices:
        made.send_integers(index, np.arange(20) * index)
    return made


def shown(federation: Federation, frozen: SurvivorSet, index: int) -> Survivors:
    return opening.make_survivors(federation.view, frozen, federation.headers, index)


class TestRoster:
    spec = grid_spec(100)

    def parts(self) -> tuple[list[Site], list[Ready]]:
        sites = [Site.number(i) for i in range(1, 8)]
        self.manifest = manifest_of(sites, collusion=C)
        self.params = params_of(self.manifest, self.spec)
        return sites, [
            window.make_ready(self.params, site.site_id, MODEL_7, site.keys, site.identity) for site in sites
        ]

    def verify(self, roster: Roster, own: Ready) -> None:
        window.verify_roster(roster, self.params, self.manifest, own)

    def roster(self, readies: list[Ready], **changes: object) -> Roster:
        made = window.make_roster(self.params, self.manifest, readies)
        return made.model_copy(update=changes)

    def test_an_honest_roster_passes_in_any_order_of_arrival(self) -> None:
        _, readies = self.parts()
        self.verify(self.roster(readies[::-1]), readies[3])

    def test_a_site_outside_the_manifest_is_refused(self) -> None:
        _, readies = self.parts()
        sybil = Site.number(9)
        forged = window.make_ready(self.params, sybil.site_id, MODEL_7, sybil.keys, sybil.identity)
        with pytest.raises(NotAMember):
            self.verify(
                self.roster(readies[:6]).model_copy(update={"entries": (*readies[:6], forged), "n": 7, "t": 5}),
                readies[0],
            )

    def test_a_members_entry_with_keys_of_the_server_is_refused(self) -> None:
        _, readies = self.parts()
        own_keys = WindowKeys.generate()
        forged = readies[1].model_copy(update={"mask_pk": own_keys.mask_pk, "seal_pk": own_keys.seal_pk})
        entries = (readies[0], forged, *readies[2:])
        with pytest.raises(BadSignature):
            self.verify(self.roster(readies, entries=entries), readies[0])

    @pytest.mark.parametrize("changes", [{"t": 4}, {"c": 1}, {"k_min": 3}, {"n": 6}])
    def test_other_thresholds_are_refused(self, changes: dict[str, int]) -> None:
        _, readies = self.parts()
        with pytest.raises(RosterRefused):
            self.verify(self.roster(readies, **changes), readies[0])

    def test_a_roster_without_us_or_with_an_older_entry_of_ours_is_refused(self) -> None:
        sites, readies = self.parts()
        with pytest.raises(OwnEntryChanged):
            self.verify(self.roster(readies[:6]), readies[6])
        site = sites[6]
        newer = window.make_ready(self.params, site.site_id, MODEL_7, WindowKeys.generate(), site.identity)
        with pytest.raises(OwnEntryChanged):
            self.verify(self.roster(readies), newer)

    def test_unsorted_or_repeated_entries_and_repeated_keys_are_refused(self) -> None:
        sites, readies = self.parts()
        with pytest.raises(RosterRefused):
            self.verify(self.roster(readies, entries=tuple(readies[::-1])), readies[0])
        with pytest.raises(RosterRefused):
            self.verify(self.roster(readies, entries=(*readies[:6], readies[5])), readies[0])
        copied = window.make_ready(self.params, sites[6].site_id, MODEL_7, sites[5].keys, sites[6].identity)
        with pytest.raises(RosterRefused):
            self.verify(self.roster(readies, entries=(*readies[:6], copied)), readies[0])

    def test_different_models_in_a_synchronous_window_are_refused(self) -> None:
        sites, readies = self.parts()
        other = window.make_ready(self.params, sites[6].site_id, MODEL_8, sites[6].keys, sites[6].identity)
        with pytest.raises(BaseModelRefused):
            self.verify(self.roster(readies, entries=(*readies[:6], other)), readies[0])
        buffered = params_of(self.manifest, self.spec, kind="buffered")
        mixed = [
            window.make_ready(buffered, site.site_id, base, site.keys, site.identity)
            for site, base in zip(sites, [MODEL_7, MODEL_8] * 4, strict=False)
        ]
        assert window.make_roster(buffered, self.manifest, mixed).n == 7

    def test_a_base_model_off_the_list_is_refused(self) -> None:
        sites, _ = self.parts()
        with pytest.raises(BaseModelRefused):
            window.make_ready(self.params, sites[0].site_id, bytes(32), sites[0].keys, sites[0].identity)

    def test_a_public_key_of_small_order_is_refused(self) -> None:
        sites, readies = self.parts()
        weak = readies[6].model_copy(update={"mask_pk": bytes(32)})
        weak = weak.model_copy(update={"sig": sites[6].identity.sign(window.ready_bytes(weak))})
        with pytest.raises(WeakKey):
            window.verify_ready(weak, self.params, self.manifest)

    def test_another_manifest_window_or_parameter_set_is_refused(self) -> None:
        sites, readies = self.parts()
        roster = self.roster(readies)
        with pytest.raises(WrongWindow):
            window.verify_roster(roster, self.params, manifest_of(sites, collusion=1), readies[0])
        with pytest.raises(WrongWindow):
            window.verify_roster(roster, params_of(self.manifest, self.spec, round=4), self.manifest, readies[0])
        with pytest.raises(WrongWindow):
            self.verify(roster.model_copy(update={"window_id": bytes(16)}), readies[0])


class TestTwoRosters:
    def test_nothing_of_one_roster_counts_in_the_other(self, federation: Federation) -> None:
        few = window.make_roster(federation.params, federation.manifest, federation.readies[:5])
        view = window.view_roster(few, federation.params, federation.manifest)
        plan = ChunkPlan.of(federation.params.vector)
        with pytest.raises(WrongWindow):
            opening.check_header(view, federation.headers[1], 0, plan.vec_len)
        site = federation.site(1)
        seeds = upload.pair_seeds(federation.view, 0, 1, site.keys)
        others = upload.pair_seeds(view, 0, 1, site.keys)
        assert not set(seeds.values()) & set(others.values())


class TestSurvivors:
    def test_split_survivor_sets_gather_no_quorum(self, federation: Federation) -> None:
        first, _ = federation.freeze([1, 2, 3, 4, 5])
        second, _ = federation.freeze([1, 2, 3, 6, 7])
        echoes = {}
        for index in federation.view.indices:
            frozen = first if index <= 3 else second
            checked = federation.check(index, shown(federation, frozen, index))
            echoes[index] = survivors.build_echo(federation.view, checked, federation.site(index).identity)
        with pytest.raises(EchoMismatch):
            opening.check_echo(federation.view, first, echoes[4])
        with pytest.raises(QuorumMissing):
            opening.make_echo_cert(federation.view, first, [echoes[i] for i in (1, 2, 3)])
        votes = tuple(Vote(index=i, sig=echoes[i].sig) for i in range(1, 6))
        forged = EchoCert(
            window_id=federation.view.window_id,
            step=0,
            survivors_hash=first.digest,
            bitmap=first.bitmap,
            header_hashes=first.header_hashes,
            echoes=votes,
        )
        with pytest.raises(BadSignature):
            survivors.verify_echo_cert(federation.view, forged)
        with pytest.raises(QuorumMissing):
            survivors.verify_echo_cert(federation.view, forged.model_copy(update={"echoes": votes[:3]}))

    def test_a_vote_counts_once(self, federation: Federation) -> None:
        frozen, _ = federation.freeze([1, 2, 3, 4])
        cert = federation.certificate(frozen, range(1, 6))
        repeated = cert.model_copy(update={"echoes": (*cert.echoes[:4], cert.echoes[0])})
        with pytest.raises(Malformed):
            survivors.verify_echo_cert(federation.view, repeated)

    def test_a_shrunken_set_is_refused(self, federation: Federation) -> None:
        frozen, _ = federation.freeze([1, 2, 3, 4])
        message = shown(federation, frozen, 7)
        shrunk = message.model_copy(
            update={"bitmap": b"\x07", "header_hashes": message.header_hashes[:3], "boxes": message.boxes[:3]}
        )
        with pytest.raises(TooFewSurvivors):
            federation.check(7, shrunk)
        with pytest.raises(TooFewSurvivors):
            federation.freeze([1, 2, 3])

    def test_a_bitmap_that_does_not_fit_is_refused(self, federation: Federation) -> None:
        frozen, _ = federation.freeze([1, 2, 3, 4])
        message = shown(federation, frozen, 7)
        for bitmap in (b"\x8f", b"\x0f\x00", b"\x1f"):
            with pytest.raises(Malformed):
                federation.check(7, message.model_copy(update={"bitmap": bitmap}))

    def test_a_header_that_we_did_not_send_is_refused(self, federation: Federation) -> None:
        frozen, _ = federation.freeze([1, 2, 3, 4])
        message = shown(federation, frozen, 2)
        hashes = (message.header_hashes[0], bytes(32), *message.header_hashes[2:])
        with pytest.raises(OwnHeaderChanged):
            federation.check(2, message.model_copy(update={"header_hashes": hashes}))
        del federation.headers[2]
        with pytest.raises(OwnHeaderChanged):
            federation.check(2, message)

    def test_a_header_hash_of_another_that_is_wrong_is_refused(self, federation: Federation) -> None:
        frozen, _ = federation.freeze([1, 2, 3, 4])
        message = shown(federation, frozen, 2)
        hashes = (bytes(32), *message.header_hashes[1:])
        with pytest.raises(BoxRefused, match="dealer 1"):
            federation.check(2, message.model_copy(update={"header_hashes": hashes}))


class TestBoxes:
    def message(self, federation: Federation) -> Survivors:
        frozen, _ = federation.freeze([1, 2, 3, 4])
        return shown(federation, frozen, 7)

    def swapped(self, message: Survivors, box: DealtBox) -> Survivors:
        return message.model_copy(update={"boxes": (box, *message.boxes[1:])})

    def test_a_box_for_another_receiver_is_refused(self, federation: Federation) -> None:
        other = shown(federation, federation.freeze([1, 2, 3, 4])[0], 6)
        with pytest.raises(BoxRefused, match="dealer 1"):
            federation.check(7, self.swapped(self.message(federation), other.boxes[0]))

    def test_a_box_of_another_dealer_is_refused(self, federation: Federation) -> None:
        message = self.message(federation)
        stolen = message.boxes[1].model_copy(update={"dealer": 1})
        with pytest.raises(BoxRefused, match="dealer 1"):
            federation.check(7, self.swapped(message, stolen))

    def test_a_box_that_its_dealer_signed_but_made_for_another_place_is_refused(self, federation: Federation) -> None:
        message = self.message(federation)
        header, dealer = federation.headers[1], federation.site(1)
        # The dealer itself lies: it signs a box whose content is meant for another step.
        federation.step = 1
        wrong = upload.prepare_upload(federation.view, 1, 1, dealer.keys).boxes[5]
        sig = dealer.identity.sign(upload.box_bytes(upload.header_hash(header), 7, wrong))
        with pytest.raises(BoxRefused, match="another place"):
            federation.check(7, self.swapped(message, DealtBox(dealer=1, box=wrong, sig=sig)))

    def test_missing_or_extra_boxes_are_refused(self, federation: Federation) -> None:
        message = self.message(federation)
        for boxes in (message.boxes[1:], (*message.boxes, message.boxes[0])):
            with pytest.raises(Malformed):
                federation.check(7, message.model_copy(update={"boxes": boxes}))


class TestReplay:
    def test_messages_of_an_older_window_are_refused(self, federation: Federation) -> None:
        frozen, _ = federation.freeze([1, 2, 3, 4])
        old = shown(federation, frozen, 7)
        cert = federation.certificate(frozen, range(1, 6))
        later = Federation.of(N, integer_spec(20), collusion=C, window_name="later")
        with pytest.raises(WrongWindow):
            later.check(7, old)
        with pytest.raises(WrongWindow):
            survivors.verify_echo_cert(later.view, cert)
        with pytest.raises(WrongWindow):
            opening.check_header(later.view, federation.headers[1], 0, federation.codec.plan.vec_len)
        relabelled = old.model_copy(update={"window_id": later.view.window_id})
        with pytest.raises(BoxRefused):
            later.check(7, relabelled)
        with pytest.raises(EchoMismatch):
            survivors.verify_echo_cert(later.view, cert.model_copy(update={"window_id": later.view.window_id}))

    def test_messages_of_another_step_are_refused(self, federation: Federation) -> None:
        frozen, _ = federation.freeze([1, 2, 3, 4])
        with pytest.raises(BoxRefused):
            federation.check(7, shown(federation, frozen, 7).model_copy(update={"step": 1}))
        with pytest.raises(WrongWindow):
            opening.check_header(federation.view, federation.headers[1], 1, federation.codec.plan.vec_len)

    def test_a_certificate_for_another_set_opens_nothing(self, federation: Federation) -> None:
        first, _ = federation.freeze([1, 2, 3, 4])
        second, _ = federation.freeze([1, 2, 3, 4, 5])
        cert = federation.certificate(second, range(1, 6))
        checked = federation.shown(7, first)
        with pytest.raises(EchoMismatch):
            survivors.build_unmask(
                federation.view, checked, cert, federation.site(7).identity, federation.params.aggregator_seal_pk
            )


class TestLateUpload:
    def test_the_certificate_frees_the_update_and_the_upload_stays_masked(self, federation: Federation) -> None:
        frozen, headers = federation.freeze([1, 2, 3, 4, 5, 6])
        cert = federation.certificate(frozen, range(1, 6))
        assert survivors.frees_update(federation.view, cert, 7)
        assert not survivors.frees_update(federation.view, cert, 6)
        shares = [
            opening.check_unmask(federation.view, frozen, federation.unmask(i, frozen, cert), AGGREGATOR_SEAL)
            for i in federation.view.indices
        ]
        assert all(7 not in opened.own for opened in shares)
        # Even with every share the server cannot open the set that has the late site in it.
        late, _ = federation.freeze([1, 2, 3, 4, 5, 6, 7])
        with pytest.raises(EchoMismatch):
            opening.reconstruct(federation.view, late, federation.headers, shares)
        relabelled = [replace(opened, survivors_hash=late.digest) for opened in shares]
        with pytest.raises(NotASurvivor):
            opening.reconstruct(federation.view, late, headers, relabelled)

    def test_a_forged_certificate_frees_nothing(self, federation: Federation) -> None:
        frozen, _ = federation.freeze([1, 2, 3, 4, 5, 6])
        cert = federation.certificate(frozen, range(1, 6))
        with pytest.raises(QuorumMissing):
            survivors.frees_update(federation.view, cert.model_copy(update={"echoes": cert.echoes[:4]}), 7)


class TestAbort:
    def test_n_minus_t_plus_1_plus_c_promises_free_the_updates(self, federation: Federation) -> None:
        view = federation.view
        votes = [survivors.build_abort_vote(view, 0, i, federation.site(i).identity) for i in view.indices]
        for vote in votes:
            opening.check_abort_vote(view, 0, vote)
        cert = opening.make_abort_cert(view, 0, votes[:5])
        survivors.verify_abort_cert(view, cert)
        with pytest.raises(QuorumMissing):
            opening.make_abort_cert(view, 0, [*votes[:4], votes[0]])
        with pytest.raises(QuorumMissing):
            survivors.verify_abort_cert(view, AbortCert(window_id=view.window_id, step=0, votes=cert.votes[:4]))
        with pytest.raises(BadSignature):
            survivors.verify_abort_cert(view, cert.model_copy(update={"step": 1}))
        with pytest.raises(WrongWindow):
            survivors.verify_abort_cert(view, cert.model_copy(update={"window_id": bytes(16)}))


class TestHeaders:
    """What sites may do wrong to the server, for completeness of `check_header`."""

    def test_each_changed_field_is_refused(self, federation: Federation) -> None:
        header, plan = federation.headers[3], federation.codec.plan
        opening.check_header(federation.view, header, 0, plan.vec_len)
        changes = {"vec_root": bytes(32), "self_commit": bytes(32), "edges_root": bytes(32), "index": 2}
        for field, value in changes.items():
            with pytest.raises(BadSignature):
                opening.check_header(federation.view, header.model_copy(update={field: value}), 0, plan.vec_len)
        with pytest.raises(HeaderRefused):
            opening.check_header(federation.view, header, 0, plan.vec_len + 1)
        changed = header.model_copy(update={"edge_commits": (bytes(32), *header.edge_commits[1:])})
        with pytest.raises(HeaderRefused):
            opening.check_header(federation.view, changed, 0, plan.vec_len)
        changed = header.model_copy(update={"boxes": header.boxes[::-1]})
        with pytest.raises(BoxRefused, match="dealer 3"):
            opening.check_header(federation.view, changed, 0, plan.vec_len)
        with pytest.raises(NotAMember):
            opening.check_header(federation.view, header.model_copy(update={"index": 8}), 0, plan.vec_len)

    def test_other_chunks_than_the_signed_ones_are_refused(self, federation: Federation) -> None:
        plan, header = federation.codec.plan, federation.headers[3]
        digests = [upload.sha256(chunk) for chunk in federation.chunks[3]]
        opening.check_vector(header, digests, plan)
        with pytest.raises(VectorRefused):
            opening.check_vector(header, [bytes(32)], plan)
        with pytest.raises(VectorRefused):
            opening.check_vector(header, [*digests, bytes(32)], plan)
