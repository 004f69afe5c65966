"""Lists that can grow are told in pages: every service answers, and every caller asks, in this one way."""

from typing import Annotated, Final, Generic, TypeVar

from pydantic import Field

from cohortium_messages.ids import Wire

MOST_ON_A_PAGE: Final = 200
USUAL_ON_A_PAGE: Final = 50

T = TypeVar("T")


class Page(Wire, Generic[T]):
    """A part of a list. `next`: what to ask for with `after`; None on the last page."""

    items: Annotated[tuple[T, ...], Field(max_length=MOST_ON_A_PAGE)]
    next: str | None
