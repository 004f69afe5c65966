"""A site's message counts only with a sender that the broker certifies."""

from collections import Counter

import pytest

from cohortium_kit._certified import UNCERTIFIED, certified
from cohortium_kit.bus import Ack, Dead, Delivery, Disposition
from cohortium_kit.penalties import MOST_REFUSED
from cohortium_kit.testing.clock import ManualClock

ME = "11111111-1111-4111-8111-111111111111"
OTHER = "22222222-2222-4222-8222-222222222222"


def delivery(exchange: str, key: str, user: str | None) -> Delivery:
    return Delivery(b"", {}, exchange, key, "m", "t", "c", redelivered=False, delivery_count=0, user_id=user, queue="q")


async def take(_: Delivery) -> Disposition:
    return Ack()


@pytest.mark.parametrize(
    ("exchange", "key", "user", "taken"),
    [
        ("uplink", f"site.{ME}.audit", ME, True),
        ("uplink", f"site.{ME}.audit", OTHER, False),
        ("uplink", f"site.{ME}.audit", None, False),
        ("uplink", f"site.{ME}.audit", "", False),
        ("uplink", f"site.{ME}x.audit", ME, False),
        ("uplink", f"site.{ME}.audit", "operator", True),
        ("services", "audit", None, True),
    ],
)
async def test_who_is_believed(exchange: str, key: str, user: str | None, taken: bool) -> None:
    answer = await certified(take)(delivery(exchange, key, user))
    assert answer == (Ack() if taken else Dead(UNCERTIFIED))


async def test_of_one_site_s_many_few_are_parked() -> None:
    answer = certified(take, ManualClock())
    many = [await answer(delivery("uplink", f"site.{ME}.audit", None)) for _ in range(2000)]
    assert Counter(many) == {Dead(UNCERTIFIED): MOST_REFUSED + 1, Ack(): 2000 - MOST_REFUSED - 1}
    assert await answer(delivery("uplink", f"site.{OTHER}.audit", None)) == Dead(UNCERTIFIED)
