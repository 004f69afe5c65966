"""Pages of a list, by keyset: the next page begins behind the last thing told, whatever was added in between."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import sqlalchemy as sa
from fastapi import Query

from cohortium_kit.db import Tx
from cohortium_kit.errors import CohortiumError
from cohortium_messages.paging import MOST_ON_A_PAGE, Page

T = TypeVar("T")
V = TypeVar("V")

Limit = Annotated[int, Query(ge=1, le=MOST_ON_A_PAGE)]
"""How many things a page holds at the most."""


class CursorUnknown(CohortiumError):
    """The page asked for begins behind something that is not on record."""


def page_of(found: Sequence[T], limit: int, view: Callable[[T], V], cursor: Callable[[V], str]) -> Page[V]:
    """The page of what was found, of which one more than `limit` was asked for: that one only tells that there is
    more."""
    items = tuple(view(one) for one in found[:limit])
    return Page(items=items, next=cursor(items[-1]) if len(found) > limit else None)


async def behind(
    tx: Tx,
    moment: sa.Column[Any],
    key: sa.Column[Any],
    cursor: str | bytes,
    *,
    newest_first: bool = False,
) -> sa.ColumnElement[bool]:
    """What comes behind the row with this key, in the order of `moment` and then of `key`; newest first, in the
    opposite order of both. Raises `CursorUnknown` for a key of no row."""
    at = await tx.scalar(sa.select(moment).where(key == cursor))
    if at is None:
        raise CursorUnknown("nothing on record has the id given with `after`; begin again without it")
    if newest_first:
        return sa.or_(moment < at, sa.and_(moment == at, key < cursor))
    return sa.or_(moment > at, sa.and_(moment == at, key > cursor))
