"""The chain: what cannot be replayed cannot have been written, and what was changed cannot be replayed."""

import json
from dataclasses import replace

import pytest
import rfc8785
from ledger_stage import KEY, NOW, Q1, Q2, SITE, Book, part_of, plan_of, run_id, window

from cohortium_messages.ids import SiteId
from cohortium_messages.ledger import (
    AccountOpened,
    LedgerEntry,
    LedgerFact,
    LedgerStatement,
    PlanClosed,
    PlanReserved,
    StepsMoved,
)
from cohortium_messages.secure_sum import AbortCert, EchoCert
from cohortium_privacy.chain import (
    UNSIGNED,
    extend,
    proof_digest,
    replay,
    seal,
    sign_statement,
    unseal,
    verify_statement,
)
from cohortium_privacy.ledger_state import TRANSITIONS, EntryRefused, LedgerState
from cohortium_protocol.errors import BadSignature
from cohortium_protocol.signing import IdentityKey

OTHER_SITE = SiteId("00000000-0000-4000-8000-00000000000b")


@pytest.fixture
def book() -> Book:
    """Two blocks, one use begun locally, one in a window, one freed."""
    book = Book()
    book.reserve(plan_of(1, part_of(0.1, 5), blocks=(Q1, Q2)))
    book.commit(1, window(1))
    book.commit(1, window(2))
    book.refund(1, window(1))
    book.commit(1, None)
    return book


def test_rows_alone_give_the_state_again(book: Book) -> None:
    assert book.replayed() == book.state
    assert book.state.head.sequence == len(book.rows)


def test_every_row_names_the_one_before(book: Book) -> None:
    hashes = [bytes(32), *(row.entry_hash for row in book.rows)]
    assert [row.entry.prev_hash for row in book.rows] == hashes[:-1]
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize("place", range(3))
def test_a_missing_swapped_or_repeated_row_is_found(book: Book, place: int) -> None:
    rows = book.rows
    for changed in (
        rows[:place] + rows[place + 1 :],
        [*rows[:place], rows[place + 1], rows[place], *rows[place + 2 :]],
        [*rows[: place + 1], rows[place], *rows[place + 1 :]],
    ):
        book.rows = changed
        with pytest.raises(EntryRefused, match="does not follow"):
            book.replayed()


def test_a_changed_byte_is_found_wherever_it_is(book: Book) -> None:
    row = book.rows[1]
    for position in range(0, len(row.text), 7):
        text = bytearray(row.text)
        text[position] ^= 1
        with pytest.raises(BadSignature):
            unseal(bytes(text), row.sig, KEY.public)


def test_a_row_of_another_key_or_site_is_refused(book: Book) -> None:
    row = book.rows[0]
    with pytest.raises(EntryRefused, match="entry 1 is not signed by this site's key"):
        replay(LedgerState(), row.text, row.sig, SITE, IdentityKey.generate().public)
    with pytest.raises(EntryRefused, match="another site"):
        replay(LedgerState(), row.text, row.sig, OTHER_SITE, KEY.public)


def test_a_well_signed_row_that_is_no_entry_is_refused() -> None:
    text = rfc8785.dumps({"sequence": 1})
    entry = seal(LedgerEntry.model_construct(), KEY)  # signs what it is given
    assert entry.sig != KEY.sign(text)
    with pytest.raises(EntryRefused, match="entry 1: "):
        replay(LedgerState(), entry.text, entry.sig, SITE, KEY.public)


def test_the_hash_of_a_row_covers_its_signature(book: Book) -> None:
    """What is told outside must not be a hash of what one could guess."""
    row = book.rows[0]
    other = seal(row.entry, IdentityKey.generate())
    assert other.text == row.text
    assert other.entry_hash != row.entry_hash


def test_text_is_canonical(book: Book) -> None:
    for row in book.rows:
        assert rfc8785.dumps(json.loads(row.text)) == row.text
        assert unseal(row.text, row.sig, KEY.public).entry == row.entry


def _last(book: Book, kind: type[LedgerFact]) -> LedgerFact:
    return next(row.entry.fact for row in reversed(book.rows) if isinstance(row.entry.fact, kind))  # type: ignore[arg-type]


LIES: dict[str, dict[str, object]] = {
    "a second account of a block": {},
    "a second reservation": {},
    "another use than the next": {"first_step": 4},
    "two uses in one": {"steps": 2},
    "another price": {"rdp": 0.05},
    "another attempt": {"attempt": 9},
    "another study": {"study_id": "lung"},
    "an unknown plan": {"run_id": run_id(7)},
    "a window that was freed": {"window_id": window(1), "reason": "UPLOADED"},
    "a window that has a use": {"window_id": window(2), "reason": "UPLOADED"},
    "an upload without a window": {"reason": "UPLOADED"},
    "a use that was never released": {"state": "RESERVED", "reason": "RETRY"},
    "a refund without a proof": {"state": "RELEASED_BACK", "reason": "ABORT_CERT", "window_id": window(2)},
    "a refund of another window": {
        "state": "RELEASED_BACK",
        "reason": "ECHO_CERT",
        "window_id": window(3),
        "proof": bytes(32),
    },
    "a release of what is in an upload": {"state": "RELEASED_BACK", "reason": "NEVER_STARTED", "first_step": 1},
    "a commitment that calls itself a refund": {"reason": "ABORT_CERT"},
}


@pytest.mark.parametrize("lie", LIES)
def test_what_could_not_happen_cannot_be_written_either(book: Book, lie: str) -> None:
    base = _last(book, StepsMoved)
    if lie == "a second account of a block":
        base = _last(book, AccountOpened)
    elif lie == "a second reservation":
        base = _last(book, PlanReserved)
    else:
        # An honest next row, which the lie then changes.
        honest = {"first_step": 2, "steps": 1, "attempt": 2, "state": "COMMITTED", "reason": "STARTED"}
        base = base.model_copy(update=honest)
        extend(book.state, (base,), SITE, KEY, NOW)
    with pytest.raises(EntryRefused):
        extend(book.state, (base.model_copy(update=LIES[lie]),), SITE, KEY, NOW)


def test_a_plan_with_something_reserved_does_not_close(book: Book) -> None:
    closed = PlanClosed(block=Q1, study_id="heart", run_id=run_id(1), part="training", reason="RUN_ENDED")
    with pytest.raises(EntryRefused, match="cannot close"):
        extend(book.state, (closed,), SITE, KEY, NOW)


def test_steps_move_as_the_table_says(book: Book) -> None:
    book.commit(1, window(4))
    book.close(1)
    book.refund(1, window(2))
    held: dict[tuple[str, int], str] = {}
    seen = set()
    for row in book.rows:
        fact = row.entry.fact
        if isinstance(fact, PlanReserved | StepsMoved):
            for step in range(fact.first_step, fact.first_step + fact.steps):
                before = held.get((fact.block, step))
                assert before is None or fact.state in TRANSITIONS[before]  # type: ignore[index]
                seen.add((before, fact.state))
                held[fact.block, step] = fact.state
    moves = {(before, after) for before, states in TRANSITIONS.items() for after in states}
    assert seen == moves | {(None, "RESERVED")}


class TestStatements:
    def statement(self, **changes: object) -> LedgerStatement:
        values: dict[str, object] = {
            "site_id": SITE,
            "study_id": "heart",
            "study_digest": bytes(32),
            "run_id": run_id(1),
            "part": "training",
            "state": "RESERVED",
            "reason": "PLANNED",
            "first_step": 0,
            "steps": 5,
            "attempt": 1,
            "order": 7,
            "rdp": 0.5,
            "head": bytes(32),
            "sig": UNSIGNED,
        }
        return LedgerStatement.model_validate(values | changes)

    def test_a_signed_statement_is_the_sites_and_says_what_was_signed(self) -> None:
        signed = sign_statement(self.statement(), KEY)
        verify_statement(signed, KEY.public)
        with pytest.raises(BadSignature):
            verify_statement(signed.model_copy(update={"rdp": 0.1}), KEY.public)
        with pytest.raises(BadSignature):
            verify_statement(signed, IdentityKey.generate().public)

    def test_a_statement_has_no_place_for_a_block_or_a_limit(self) -> None:
        for field in ("block", "limit", "epsilon_max", "patients", "sequence"):
            with pytest.raises(ValueError, match="Extra inputs"):
                self.statement(**{field: 1})


def test_certificates_of_different_kinds_never_have_one_name() -> None:
    abort = AbortCert(window_id=window(1), step=0, votes=())
    echo = EchoCert.model_construct(window_id=window(1), step=0)
    assert proof_digest(abort) != proof_digest(echo)
    assert proof_digest(abort) != proof_digest(replace_window(abort))


def replace_window(cert: AbortCert) -> AbortCert:
    return cert.model_copy(update={"window_id": window(2)})


def test_a_chain_of_another_beginning_is_not_taken_up(book: Book) -> None:
    elsewhere = replace(book.state, head=replace(book.state.head, entry_hash=bytes(32)))
    _, rows = extend(elsewhere, (), SITE, KEY, NOW)
    assert rows == ()
    row = book.rows[-1]
    with pytest.raises(EntryRefused, match="does not follow"):
        replay(elsewhere, row.text, row.sig, SITE, KEY.public)
