"""How much trouble one sender may make before it is not heard for a while."""

from hypothesis import given
from hypothesis import strategies as st

from cohortium_kit.bus import Outgoing
from cohortium_kit.penalties import (
    MOST_REFUSED,
    MOST_SENDERS,
    NO_SITE,
    SILENCE_S,
    WITHIN_S,
    Penalties,
    Verdict,
    site_to_blame,
)
from cohortium_kit.testing.deliveries import delivered


def test_a_sender_is_silenced_after_too_many_and_heard_again_later() -> None:
    penalties = Penalties()
    assert [penalties.refused("a", 1.0) for _ in range(MOST_REFUSED)] == [Verdict.RECORD] * MOST_REFUSED
    assert not penalties.silenced("a", 1.0)
    assert penalties.refused("a", 2.0) is Verdict.RECORD_SILENCE
    assert penalties.silenced("a", 2.0)
    assert not penalties.silenced("b", 2.0)
    assert penalties.refused("a", 3.0) is Verdict.FORGET
    assert not penalties.silenced("a", 2.0 + SILENCE_S)
    assert penalties.refused("a", 2.0 + SILENCE_S) is Verdict.RECORD


def test_mistakes_now_and_then_are_no_trouble() -> None:
    penalties, step = Penalties(), WITHIN_S / MOST_REFUSED
    assert all(penalties.refused("a", number * step) is Verdict.RECORD for number in range(10 * MOST_REFUSED))


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 2)), max_size=400))
def test_a_sender_is_recorded_at_most_so_often_whatever_it_sends(steps: list[tuple[str, float]]) -> None:
    penalties, now = Penalties(), 0.0
    recorded: dict[str, int] = {}
    for sender, wait_s in steps:
        now += wait_s
        if penalties.refused(sender, now) is not Verdict.FORGET:
            recorded[sender] = recorded.get(sender, 0) + 1
    most = (MOST_REFUSED + 1) * (1 + now / SILENCE_S)
    assert all(count <= most for count in recorded.values())


def test_names_that_nobody_uses_again_are_forgotten() -> None:
    penalties = Penalties()
    for number in range(MOST_SENDERS + 10):
        penalties.refused(str(number), 0.0)
    assert len(penalties._senders) == MOST_SENDERS


def test_a_refusal_that_could_not_be_recorded_is_counted_when_it_comes_again() -> None:
    penalties = Penalties()
    for _ in range(MOST_REFUSED):
        penalties.refused("a", 1.0)
    assert penalties.refused("a", 1.0) is Verdict.RECORD_SILENCE
    penalties.take_back("a")
    assert not penalties.silenced("a", 1.0)
    assert penalties.refused("a", 2.0) is Verdict.RECORD_SILENCE
    penalties.take_back("nobody")


def test_who_is_to_blame_is_whose_routing_key_it_is() -> None:
    site = "00000000-0000-4000-8000-000000000001"

    def blamed(exchange: str, key: str) -> str | None:
        return site_to_blame(delivered(Outgoing(exchange, key, b"", "one", "x"), "q"))

    assert blamed("uplink", f"site.{site}.audit") == f"site:{site}"
    assert blamed("uplink", f"site.{site}.chunks.0") == f"site:{site}"
    assert blamed("uplink", f"site.{site}x.audit") == NO_SITE
    assert blamed("uplink", "site.Anybody.audit") == NO_SITE
    assert blamed("services", "audit") is None
    assert blamed("tasks", f"site.{site}.control") is None
