"""A service closes a kept connection just when the next question is on its way: a reading one is asked again."""

import httpx
import pytest
from cli_stage import RUN_ID, run_status

from cohortium_cli.operator import SERVICES, Operator, OperatorError


class Closing:
    """A service that closes the connection instead of its first `times` answers."""

    def __init__(self, times: int) -> None:
        self.asked = 0
        self._times = times

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        if self.asked <= self._times:
            raise httpx.RemoteProtocolError("Server disconnected without sending a response.", request=request)
        return httpx.Response(200, json=run_status())


def operator_of(service: Closing) -> Operator:
    client = httpx.AsyncClient(transport=httpx.MockTransport(service), base_url="http://service")
    return Operator(dict.fromkeys(SERVICES, client))


async def test_a_question_is_asked_again() -> None:
    service = Closing(1)
    async with operator_of(service) as operator:
        assert (await operator.run(RUN_ID)).run_id == RUN_ID
    assert service.asked == 2


async def test_once() -> None:
    service = Closing(2)
    async with operator_of(service) as operator:
        with pytest.raises(OperatorError, match="does not answer"):
            await operator.run(RUN_ID)
    assert service.asked == 2


async def test_an_order_is_not_given_twice() -> None:
    service = Closing(1)
    async with operator_of(service) as operator:
        with pytest.raises(OperatorError, match="does not answer"):
            await operator.stop(RUN_ID)
    assert service.asked == 1
