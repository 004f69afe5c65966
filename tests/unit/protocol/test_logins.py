"""A site's login statement: what it binds, and that it has one text only."""

import base64
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cohortium_messages.ids import SiteId
from cohortium_protocol.errors import BadSignature, DocumentRefused
from cohortium_protocol.logins import (
    PASSWORD_CHARACTERS,
    PREFIX,
    Audience,
    LoginStatement,
    make_login,
    read_login,
    verify_invited_login,
    verify_login,
)
from cohortium_protocol.signing import IdentityKey

SITE = SiteId("11111111-1111-4111-8111-111111111111")
OTHER = SiteId("22222222-2222-4222-8222-222222222222")
HERE = Audience("hospitals.example", "cohortium")
KEY = IdentityKey.from_seed(bytes(range(32)))
TOKEN = "t" * 43


def statement(**changes: Any) -> LoginStatement:
    values: dict[str, Any] = {"issued_at": 1_800_000_000, "ends_at": 1_800_003_600, "nonce": bytes(16), "token": TOKEN}
    return make_login(HERE, SITE, KEY, **{**values, **changes})


def test_what_was_made_is_read_and_verified() -> None:
    made = statement()
    password = made.password()
    assert len(password) == PASSWORD_CHARACTERS
    assert set(password) <= set(string.ascii_letters + string.digits + "-_.")
    assert read_login(password) == made
    verify_login(made, HERE, SITE, KEY.public)
    verify_invited_login(made, HERE, SITE, TOKEN)


@pytest.mark.parametrize(
    ("audience", "site"),
    [
        (Audience("other.example", "cohortium"), SITE),
        (Audience("hospitals.example", "other"), SITE),
        (Audience("hospitals.examplec", "ohortium"), SITE),
        (HERE, OTHER),
    ],
)
def test_it_is_of_no_use_anywhere_else(audience: Audience, site: SiteId) -> None:
    with pytest.raises(BadSignature):
        verify_login(statement(), audience, site, KEY.public)
    with pytest.raises(BadSignature):
        verify_invited_login(statement(), audience, site, TOKEN)


@pytest.mark.parametrize("field", ["issued_at", "ends_at", "nonce"])
def test_its_times_and_nonce_are_bound(field: str) -> None:
    made = statement()
    changed = {"issued_at": 1, "ends_at": 1 << 40, "nonce": bytes([1]) * 16}[field]
    forged = LoginStatement(**{name: getattr(made, name) for name in made.__slots__} | {field: changed})
    with pytest.raises(BadSignature):
        verify_login(forged, HERE, SITE, KEY.public)
    with pytest.raises(BadSignature):
        verify_invited_login(forged, HERE, SITE, TOKEN)


def test_another_key_another_token_and_none() -> None:
    with pytest.raises(BadSignature):
        verify_login(statement(), HERE, SITE, IdentityKey.from_seed(bytes(32)).public)
    with pytest.raises(BadSignature):
        verify_invited_login(statement(), HERE, SITE, "u" * 43)
    with pytest.raises(BadSignature):
        verify_invited_login(statement(token=None), HERE, SITE, TOKEN)


def test_a_registered_site_sends_no_mac() -> None:
    assert statement(token=None).mac == bytes(32)
    verify_login(statement(token=None), HERE, SITE, KEY.public)


def test_one_statement_has_one_text() -> None:
    """Base64 leaves bits over at the end of some lengths; another text for the same bytes is refused."""
    password = statement().password()
    whole = base64.urlsafe_b64decode(password[len(PREFIX) :] + "=" * (-len(password[len(PREFIX) :]) % 4))
    texts = [password[:-1] + letter for letter in string.ascii_letters + string.digits + "-_"]
    same = []
    for text in texts:
        raw = text[len(PREFIX) :]
        if base64.urlsafe_b64decode(raw + "=" * (-len(raw) % 4)) == whole and text != password:
            same.append(text)
    for text in same:
        with pytest.raises(DocumentRefused):
            read_login(text)


@pytest.mark.parametrize(
    "text",
    ["", "guest", PREFIX, "x" * PASSWORD_CHARACTERS, PREFIX + "=" * (PASSWORD_CHARACTERS - 4), PREFIX + "é" * 171],
)
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(DocumentRefused):
        read_login(text)


@given(st.text(max_size=300))
def test_no_text_breaks_the_reader(text: str) -> None:
    for one in (text, PREFIX + text, statement().password() + text[:1]):
        try:
            read = read_login(one)
        except DocumentRefused:
            continue
        assert read.password() == one
