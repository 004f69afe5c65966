"""Whoever drops out and when: the opened sum is the integer sum of the survivors, or nothing opens."""

import numpy as np
from federation_in_memory import Federation, integer_spec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cohortium_protocol.errors import QuorumMissing, TooFewShares, TooFewSurvivors
from examples import examples

SETTINGS = settings(max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.too_slow])


def values_of(index: int, federation: Federation) -> np.ndarray:
    """Powers of a base above n, so that a site that is missing or counted twice shows."""
    rng = np.random.default_rng(index)
    values = rng.integers(-1000, 1000, federation.params.vector.dimension)
    values[0] = 1 << index
    values[-1] = -(1 << index)
    return values


@SETTINGS
@given(data=st.data(), n=st.integers(3, 20), ring_bits=st.sampled_from([32, 64]))
def test_the_sum_of_the_survivors_opens_or_nothing_does(data: st.DataObject, n: int, ring_bits: int) -> None:
    federation = Federation.of(n, integer_spec(700, ring_bits))
    everyone = list(federation.view.indices)
    drops = st.sets(st.sampled_from(everyone), max_size=data.draw(st.integers(0, n)))
    uploaded = sorted(set(everyone) - data.draw(drops, label="before upload"))
    echoing = sorted(set(everyone) - data.draw(drops, label="before echo"))
    unmasking = sorted(set(everyone) - data.draw(drops, label="before unmask"))
    for index in uploaded:
        federation.send_integers(index, values_of(index, federation))
    try:
        frozen, headers = federation.freeze(uploaded)
        cert = federation.certificate(frozen, echoing)
        answers = [federation.unmask(index, frozen, cert) for index in unmasking]
        words = federation.open(frozen, headers, answers)
    except TooFewSurvivors:
        assert len(uploaded) < federation.view.k_min
        return
    except QuorumMissing:
        assert len(echoing) < federation.view.t
        return
    except TooFewShares:
        assert len(unmasking) < federation.view.t
        return
    codec = federation.codec
    assert codec.check_tail(words[-1], len(uploaded)).weight == len(uploaded)
    opened = np.concatenate([codec.decode_chunk(k, part)[1] for k, part in enumerate(words)])
    assert opened.tolist() == sum(values_of(index, federation) for index in uploaded).tolist()


@SETTINGS
@given(n=st.integers(3, 12), steps=st.integers(2, 3), data=st.data())
def test_each_step_of_a_session_has_masks_of_its_own(n: int, steps: int, data: st.DataObject) -> None:
    federation = Federation.of(n, integer_spec(20))
    sent = []
    for step in range(steps):
        federation.step = step
        members = sorted(data.draw(st.sets(st.integers(1, n), min_size=federation.view.k_min)))
        for index in members:
            federation.send_integers(index, values_of(index, federation))
        sent.append(federation.chunks[members[0]])
        frozen, headers = federation.freeze(members)
        cert = federation.certificate(frozen, federation.view.indices)
        answers = [federation.unmask(index, frozen, cert) for index in federation.view.indices]
        words = federation.open(frozen, headers, answers)
        opened = federation.codec.decode_chunk(0, words[0])[1]
        assert opened.tolist() == sum(values_of(index, federation) for index in members).tolist()
    assert len({chunk for chunks in sent for chunk in chunks}) == len(sent)
