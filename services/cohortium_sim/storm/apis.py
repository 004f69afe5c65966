"""HTTP APIs whose routes are made when they are first asked for something.

Making one takes longer than most of what a life of a part does, FastAPI remembers each for good, and of the six parts
that have one people ask two.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import APIRouter, FastAPI

from cohortium_sim.storm.replacing import replaced


@contextmanager
def apis_when_asked() -> Iterator[None]:
    """Routes that are added inside are made at the first request to an application that has them."""
    add, include, call = APIRouter.add_api_route, APIRouter.include_router, FastAPI.__call__

    def add_later(self: APIRouter, *args: Any, **options: Any) -> None:
        _waiting(self).append(lambda: add(self, *args, **options))

    def include_too(self: APIRouter, router: APIRouter, **options: Any) -> None:
        include(self, router, **options)
        _waiting(self).append(lambda: make(router))

    def make(router: APIRouter) -> None:
        waiting = _waiting(router)
        while waiting:
            waiting.pop(0)()

    async def made(self: FastAPI, *request: Any) -> None:
        make(self.router)
        await call(self, *request)

    with (
        replaced(APIRouter, add_api_route=add_later, include_router=include_too),
        replaced(FastAPI, __call__=made),
    ):
        yield


def _waiting(router: APIRouter) -> list[Callable[[], None]]:
    """What is still to be made of a router; it has the list itself, for a router has no hash."""
    waiting: list[Callable[[], None]] = router.__dict__.setdefault("_of_the_storm", [])
    return waiting
