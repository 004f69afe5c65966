"""What gives charged steps back: certificates of the secure sum, and nothing that only looks like one."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
from federation_in_memory import Federation, integer_spec
from ledger_stage import ORDER, Q1, Hospital, commit, part_of, plan_of, refund, reserve, run_id, statements, window

from cohortium_connector.ledger.errors import ProofRefused
from cohortium_connector.ledger.proofs import Aborted, Excluded, Proof, RunOver
from cohortium_connector.ledger.service import Committed
from cohortium_messages.ledger import LedgerEvent
from cohortium_messages.secure_sum import AbortCert, EchoCert, Vote
from cohortium_privacy.ledger_state import spent
from cohortium_protocol.survivors import abort_quorum, build_abort_vote


@pytest.fixture
def members() -> Federation:
    """Four sites, c = 1; all have uploaded."""
    federation = Federation.of(4, integer_spec(8))
    for index in federation.view.indices:
        federation.send_integers(index, np.full(8, index, dtype=np.int64))
    return federation


@pytest.fixture
async def member(members: Federation, tmp_path: Path) -> AsyncIterator[Hospital]:
    """The hospital that is site 1 there, with one use in that window."""
    site = members.site(1)
    hospital = Hospital(tmp_path / "member", site.site_id, site.identity)
    await hospital.start()
    await reserve(hospital, plan_of(1, part_of(0.1, 3)))
    await commit(hospital, 1, members.view.window_id)
    yield hospital
    await hospital.stop()


def abort_cert(members: Federation, votes: int) -> AbortCert:
    cast = [build_abort_vote(members.view, 0, index, members.site(index).identity) for index in range(1, votes + 1)]
    return AbortCert(
        window_id=members.view.window_id, step=0, votes=tuple(Vote(index=one.index, sig=one.sig) for one in cast)
    )


def echo_cert(members: Federation, *survivors: int) -> EchoCert:
    frozen, _ = members.freeze(survivors)
    return members.certificate(frozen, members.view.indices)


async def charged(hospital: Hospital) -> float:
    return spent(await hospital.state(), Q1, ORDER)


@pytest.mark.parametrize("kind", ["abort", "echo"])
async def test_a_certificate_frees_the_use_once(member: Hospital, members: Federation, kind: str) -> None:
    proof: Proof = (
        Aborted(members.view, abort_cert(members, abort_quorum(members.view)))
        if kind == "abort"
        else Excluded(members.view, echo_cert(members, 2, 3, 4))
    )
    await refund(member, 1, RunOver("RUN_ENDED"))
    assert await charged(member) == 0.1
    assert await refund(member, 1, proof) == 1
    assert await refund(member, 1, proof) == 0
    assert await charged(member) == 0
    told = statements(member, LedgerEvent)[-1]
    assert (told.state, told.reason) == ("RELEASED_BACK", "ABORT_CERT" if kind == "abort" else "ECHO_CERT")


async def test_a_certificate_of_a_plan_that_goes_on_lets_it_try_again(member: Hospital, members: Federation) -> None:
    assert await refund(member, 1, Excluded(members.view, echo_cert(members, 2, 3, 4))) == 2
    assert await charged(member) == pytest.approx(0.3)
    assert await commit(member, 1, window(5)) == Committed(run_id(1), "training", 2)
    assert [one.state for one in statements(member, LedgerEvent)][-3:] == ["RELEASED_BACK", "RESERVED", "COMMITTED"]


Forgery = Callable[[Federation], Aborted | Excluded]
FORGED: dict[str, Forgery] = {
    "a set that holds this site": lambda m: Excluded(m.view, echo_cert(m, 1, 2, 3)),
    "too few promises": lambda m: Aborted(m.view, abort_cert(m, abort_quorum(m.view) - 1)),
    "a promise counted twice": lambda m: Aborted(
        m.view, abort_cert(m, 1).model_copy(update={"votes": abort_cert(m, 1).votes * abort_quorum(m.view)})
    ),
    "a promise of another site's key": lambda m: Aborted(m.view, _swapped(abort_cert(m, abort_quorum(m.view)))),
    "promises of another window": lambda m: Aborted(
        m.view, abort_cert(Federation.of(4, integer_spec(8), window_name="other"), abort_quorum(m.view))
    ),
    "another step": lambda m: Aborted(m.view, abort_cert(m, abort_quorum(m.view)).model_copy(update={"step": 1})),
    "a set changed after it was confirmed": lambda m: Excluded(
        m.view, echo_cert(m, 1, 2, 3).model_copy(update={"bitmap": bytes([0b1110])})
    ),
}


def _swapped(cert: AbortCert) -> AbortCert:
    first, second, *rest = cert.votes
    votes = (Vote(index=first.index, sig=second.sig), Vote(index=second.index, sig=first.sig), *rest)
    return cert.model_copy(update={"votes": votes})


@pytest.mark.parametrize("forgery", FORGED)
async def test_what_proves_nothing_gives_nothing_back(member: Hospital, members: Federation, forgery: str) -> None:
    rows = (await member.state()).head.sequence
    with pytest.raises(ProofRefused, match="stay charged"):
        await refund(member, 1, FORGED[forgery](members))
    assert (await member.state()).head.sequence == rows


async def test_a_roster_with_another_key_for_this_site_proves_nothing(tmp_path: Path, members: Federation) -> None:
    stranger = Hospital(tmp_path / "stranger", members.site(1).site_id, members.site(2).identity)
    await stranger.start()
    await reserve(stranger, plan_of(1, part_of(0.1, 3)))
    await commit(stranger, 1, members.view.window_id)
    with pytest.raises(ProofRefused, match="another key"):
        await refund(stranger, 1, Excluded(members.view, echo_cert(members, 2, 3, 4)))
    await stranger.stop()


async def test_a_valid_certificate_of_another_window_frees_nothing(member: Hospital) -> None:
    other = Federation.of(4, integer_spec(8), window_name="other")
    proof = Aborted(other.view, abort_cert(other, abort_quorum(other.view)))
    assert await refund(member, 1, proof) == 0
