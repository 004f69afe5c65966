"""The server's half with honest and with faulty sites."""

from dataclasses import replace

import numpy as np
import pytest
from federation_in_memory import AGGREGATOR_SEAL, Federation, integer_spec

from cohortium_messages.secure_sum import Unmask
from cohortium_protocol import opening, survivors, upload
from cohortium_protocol.errors import (
    BadSignature,
    DealerFault,
    EchoMismatch,
    HeaderRefused,
    IntegrityFault,
    OutOfOrder,
    TooFewShares,
    UnmaskRefused,
    WrongWindow,
)
from cohortium_protocol.keys import seal
from cohortium_protocol.masking import MaskPlan
from cohortium_protocol.opening import OpenedShares
from cohortium_protocol.plan import ChunkPlan
from cohortium_protocol.survivors import SurvivorSet
from cohortium_protocol.upload import SiteMasker

N = 6
VALUES = {index: np.arange(700) * index - 7 for index in range(1, N + 1)}


@pytest.fixture
def federation() -> Federation:
    """Six sites, t = 4, k_min = 3; site 6 has not uploaded."""
    made = Federation.of(N, integer_spec(700, chunk_bytes=2048))
    for index in range(1, N):
        made.send_integers(index, VALUES[index])
    return made


def opened_shares(federation: Federation) -> tuple[SurvivorSet, dict[int, OpenedShares]]:
    frozen, _ = federation.freeze(range(1, N))
    cert = federation.certificate(frozen, federation.view.indices)
    answers = {index: federation.unmask(index, frozen, cert) for index in federation.view.indices}
    return frozen, {
        index: opening.check_unmask(federation.view, frozen, answer, AGGREGATOR_SEAL)
        for index, answer in answers.items()
    }


def test_a_site_that_never_uploaded_helps_to_open(federation: Federation) -> None:
    frozen, headers = federation.freeze(range(1, N))
    cert = federation.certificate(frozen, [3, 4, 5, 6])
    answers = [federation.unmask(index, frozen, cert) for index in (2, 4, 5, 6)]
    words = federation.open(frozen, headers, answers)
    codec = federation.codec
    assert codec.check_tail(words[-1], 5).weight == 5
    opened = np.concatenate([codec.decode_chunk(k, part)[1] for k, part in enumerate(words)])
    assert opened.tolist() == sum(VALUES[i] for i in range(1, N)).tolist()


class TestNeverBothMasks:
    def test_over_all_answers_of_all_sites_for_every_set(self, federation: Federation) -> None:
        view = federation.view
        federation.send_integers(6, VALUES[6])

        def dealt(dealer: int, receiver: int) -> bytes:
            if dealer == receiver:
                return federation.prepared[dealer].own_box
            sealed = federation.headers[dealer].boxes[view.others(dealer).index(receiver)].box
            return federation.site(receiver).keys.seal.open(sealed)

        for members in ([1, 2, 3], [1, 3, 4, 6], [2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]):
            frozen, _ = federation.freeze(members)
            cert = federation.certificate(frozen, view.indices)
            for receiver in view.indices:
                answer = federation.unmask(receiver, frozen, cert)
                content = AGGREGATOR_SEAL.open(answer.sealed)[32:]
                sent = {content[at : at + 32] for at in range(0, len(content), 32)}
                for dealer in view.indices:
                    box = dealt(dealer, receiver)[32:]
                    slots = [box[at : at + 32] in sent for at in range(0, len(box), 32)]
                    assert slots[0] == (dealer in members)
                    for other, present in zip(view.others(dealer), slots[1:], strict=True):
                        assert present == (dealer in members and other not in members)
                    # A site whose self seed opens keeps its pair seeds with survivors, and one whose pair seeds open
                    # keeps its self seed.
                    assert len(sent) == len(members) * (1 + N - len(members))


class TestFaultySites:
    def test_wrong_shares_of_a_few_do_not_stop_the_opening(self, federation: Federation) -> None:
        frozen, shares = opened_shares(federation)
        wrong = shares[2]
        no_element = dict.fromkeys(wrong.pairs, b"\xff" * 32)
        shares[2] = replace(wrong, own=dict.fromkeys(wrong.own, bytes(32)), pairs=no_element)
        headers = {index: federation.headers[index] for index in frozen.members}
        masks = opening.reconstruct(federation.view, frozen, headers, list(shares.values()))
        words = opening.unmask_chunk(federation.codec.plan, masks, 1, [federation.chunks[i][1] for i in range(1, N)])
        federation.codec.check_tail(words, 5)

    def test_a_dealer_whose_shares_miss_its_commitment_is_named(self, federation: Federation) -> None:
        frozen, shares = opened_shares(federation)
        spoilt = [
            replace(opened, own={**opened.own, 3: bytes([opened.index]) * 31 + b"\0"}) for opened in shares.values()
        ]
        headers = {index: federation.headers[index] for index in frozen.members}
        with pytest.raises(DealerFault) as caught:
            opening.reconstruct(federation.view, frozen, headers, spoilt)
        assert (caught.value.dealer, caught.value.code) == (3, "DEALER_FAULT")

    def test_fewer_than_t_distinct_sites_open_nothing(self, federation: Federation) -> None:
        frozen, shares = opened_shares(federation)
        headers = {index: federation.headers[index] for index in frozen.members}
        with pytest.raises(TooFewShares):
            opening.reconstruct(federation.view, frozen, headers, [shares[1], shares[2], shares[3], shares[3]])

    def test_a_pair_with_two_seeds_is_left_out_and_flagged(self, federation: Federation) -> None:
        header = federation.headers[2]
        lied = header.model_copy(
            update={"edge_commits": (*header.edge_commits[:2], bytes(32), *header.edge_commits[3:])}
        )
        headers = {**{i: federation.headers[i] for i in range(1, N)}, 2: lied}
        assert opening.edge_conflicts(headers) == {2, 4}
        with pytest.raises(HeaderRefused):
            opening.freeze_survivors(federation.view, 0, headers)
        del headers[2], headers[4]
        assert opening.freeze_survivors(federation.view, 0, headers).members == (1, 3, 5)


class TestUnmaskMessages:
    def resealed(self, federation: Federation, frozen: SurvivorSet, content: bytes) -> Unmask:
        sealed = seal(AGGREGATOR_SEAL.public, content)
        return Unmask(
            window_id=federation.view.window_id,
            step=0,
            survivors_hash=frozen.digest,
            index=2,
            sealed=sealed,
            sig=federation.site(2).identity.sign(survivors.unmask_bytes(frozen.digest, 2, sealed)),
        )

    def test_each_fault_has_its_name(self, federation: Federation) -> None:
        frozen, _ = federation.freeze(range(1, N))
        cert = federation.certificate(frozen, federation.view.indices)
        good = federation.unmask(2, frozen, cert)
        content = AGGREGATOR_SEAL.open(good.sealed)
        view = federation.view
        faults = [
            (good.model_copy(update={"window_id": bytes(16)}), WrongWindow),
            (good.model_copy(update={"step": 1}), WrongWindow),
            (good.model_copy(update={"survivors_hash": bytes(32)}), EchoMismatch),
            (good.model_copy(update={"index": 3}), BadSignature),
            (good.model_copy(update={"sealed": good.sealed[:-1] + b"x"}), BadSignature),
            (self.resealed(federation, frozen, content[:-32]), UnmaskRefused),
            (self.resealed(federation, frozen, content + bytes(32)), UnmaskRefused),
            (self.resealed(federation, frozen, content[:-1]), UnmaskRefused),
            (self.resealed(federation, frozen, bytes(32) + content[32:]), UnmaskRefused),
        ]
        for message, fault in faults:
            with pytest.raises(fault):
                opening.check_unmask(view, frozen, message, AGGREGATOR_SEAL)
        with pytest.raises(UnmaskRefused):
            opening.check_unmask(view, frozen, good, federation.site(1).keys.seal)


class TestMasks:
    def test_a_canary_shows_one_flipped_mask(self, federation: Federation) -> None:
        frozen, shares = opened_shares(federation)
        headers = {index: federation.headers[index] for index in frozen.members}
        masks = opening.reconstruct(federation.view, frozen, headers, list(shares.values()))
        plan, last = federation.codec.plan, [federation.chunks[i][-1] for i in range(1, N)]
        k = plan.chunk_count - 1
        federation.codec.check_tail(opening.unmask_chunk(plan, masks, k, last), 5)
        flipped = MaskPlan((*masks.plus, masks.minus[-1]), masks.minus[:-1])
        for wrong in (flipped, MaskPlan(masks.plus, masks.minus[1:]), MaskPlan((), ())):
            with pytest.raises(IntegrityFault):
                federation.codec.check_tail(opening.unmask_chunk(plan, wrong, k, last), 5)
        with pytest.raises(IntegrityFault):
            federation.codec.check_tail(opening.unmask_chunk(plan, masks, k, last), 4)

    def test_a_chunk_is_masked_once(self, federation: Federation) -> None:
        plan = ChunkPlan.of(federation.params.vector)
        masker = SiteMasker(plan, federation.prepared[1].masks)
        words = federation.codec.encode_chunk(VALUES[1], 0)
        masker.mask_chunk(0, words.copy())
        with pytest.raises(OutOfOrder):
            masker.mask_chunk(0, words.copy())
        with pytest.raises(OutOfOrder):
            masker.vec_root()

    def test_two_uploads_of_one_step_share_no_self_seed(self, federation: Federation) -> None:
        first, second = (upload.prepare_upload(federation.view, 0, 1, federation.site(1).keys) for _ in range(2))
        assert first.self_commit != second.self_commit
        assert first.edge_commits == second.edge_commits
