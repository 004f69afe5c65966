"""A site's message counts only with a sender that the broker certifies."""

import pytest

from cohortium_kit._certified import UNCERTIFIED, certified
from cohortium_kit.bus import Ack, Dead, Delivery, Disposition

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
