"""The stored ledger does what the rules do, through rollbacks at any point, restarts and two processes."""

import asyncio
import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_stage import Q1, Q2, Book, Hospital, part_of, plan_of, run_id, window

from cohortium_connector.ledger.proofs import RunOver
from cohortium_kit.db import Tx
from cohortium_messages.ledger import LedgerEvent, PlanReserved, StepsMoved
from cohortium_privacy import ledger as rules
from cohortium_privacy.ledger_plan import Exhausted, PlanOver, PlanUnknown
from cohortium_privacy.ledger_state import Head, LedgerState

Operation = tuple[str, int, int]
OPERATIONS = st.tuples(
    st.sampled_from(["reserve", "reserve", "train", "upload", "upload", "close", "freeze", "restart", "other"]),
    st.integers(1, 3),
    st.integers(1, 4),
)
FATES = st.sampled_from(["commits", "commits", "commits", "rolls back", "commits with another"])


class RolledBack(Exception):
    """What goes wrong after the ledger and before the commit."""


async def stored(site: Hospital, tx: Tx, operation: Operation) -> object:
    name, number, other = operation
    match name:
        case "reserve":
            blocks = (Q1,) if number % 2 else (Q1, Q2)
            return await site.ledger.reserve(tx, plan_of(number, part_of(0.2 * number, 2, other), blocks=blocks))
        case "train":
            return await site.ledger.commit(tx, run_id(number), "training")
        case "upload":
            return await site.ledger.commit(tx, run_id(number), "training", window(other))
        case "close":
            return await site.ledger.refund(tx, run_id(number), RunOver("RUN_ENDED"))
        case _:
            return await site.ledger.freeze(tx, Q1, "ROWS_LOST")


def by_the_rules(book: Book, operation: Operation) -> object:
    name, number, other = operation
    match name:
        case "reserve":
            blocks = (Q1,) if number % 2 else (Q1, Q2)
            return book.reserve(plan_of(number, part_of(0.2 * number, 2, other), blocks=blocks))
        case "train":
            return book.commit(number, None)
        case "upload":
            return book.commit(number, window(other))
        case "close":
            return book.close(number)
        case _:
            return book.write(rules.freeze(book.state, Q1, "ROWS_LOST"))


def content(state: LedgerState) -> LedgerState:
    """Without the hashes, in which the time of writing is."""
    return replace(state, head=Head(state.head.sequence))


async def play(folder: Path, story: list[tuple[Operation, str]]) -> None:
    book, site, beside = Book(), Hospital(folder), Hospital(folder)
    await site.start()
    await beside.start()
    told: list[LedgerEvent] = []
    for operation, fate in story:
        if operation[0] == "restart":
            told += [message for _, message in site.posted if isinstance(message, LedgerEvent)]
            site = await site.restart(posted=[])
        elif operation[0] == "other":
            site, beside = beside, site
        else:
            await _one(book, site, operation, fate)
        assert content(await site.state()) == content(book.state)
    told += [message for one in (site, beside) for _, message in one.posted if isinstance(message, LedgerEvent)]
    await site.stop()
    await beside.stop()
    moves = [row.entry.fact for row in book.rows if isinstance(row.entry.fact, PlanReserved | StepsMoved)]
    assert len(told) == sum(fact.block == Q1 for fact in moves)


async def _one(book: Book, site: Hospital, operation: Operation, fate: str) -> None:
    async def work(tx: Tx) -> object:
        found = await stored(site, tx, operation)
        if fate == "commits with another":
            await stored(site, tx, operation)
        if fate == "rolls back":
            raise RolledBack
        return found

    posted = len(site.posted)
    try:
        outcome = await site.db.run("story", work)
    except RolledBack:
        del site.posted[posted:]  # they were in the transaction
        return
    except (PlanOver, PlanUnknown, ValueError) as error:
        try:
            by_the_rules(book, operation)
        except type(error):
            return
        raise
    expected = by_the_rules(book, operation)
    assert isinstance(outcome, Exhausted) == isinstance(expected, Exhausted)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(OPERATIONS, FATES), min_size=4, max_size=16))
def test_the_stored_ledger_follows_the_rules(story: list[tuple[Operation, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(play(Path(folder), story))
