"""Passwords, one-time tokens and authenticators: known answers, and what is refused."""

import pytest

from cohortium_platform.people.passwords import (
    PasswordRefused,
    check_password,
    hashed,
    matches,
    totp_address,
    totp_code,
    totp_step,
)

SECRET = b"12345678901234567890"


@pytest.mark.parametrize(
    ("moment", "code"),
    [(59, "287082"), (1111111109, "081804"), (1234567890, "005924"), (20000000000, "353130")],
)
def test_codes_are_those_of_rfc_6238(moment: int, code: str) -> None:
    assert totp_code(SECRET, moment // 30) == code
    assert totp_step(SECRET, code, moment, 0) == moment // 30


def test_a_code_counts_once_and_not_for_long() -> None:
    step, now = 1000, 30_000.0
    code = totp_code(SECRET, step)
    assert totp_step(SECRET, code, now, 0) == totp_step(SECRET, code, now + 30, 0) == step
    assert totp_step(SECRET, code, now - 30, 0) == step, "a clock may be half a minute off"
    assert totp_step(SECRET, code, now + 60, 0) is None
    assert totp_step(SECRET, code, now, step) is None, "a code that was used is used up"
    assert totp_step(SECRET, "éééééé", now, 0) is None


def test_a_hash_is_argon2id_and_typed_characters_are_the_same_on_every_keyboard() -> None:
    kept = hashed("p\u00e4ssword sentence")
    assert kept.startswith("$argon2id$v=19$m=8,t=1,p=1$"), "the cost that the fixture asks for"
    assert matches(kept, "pa\u0308ssword sentence")
    assert not matches(kept, "password sentence")
    assert not matches("not a hash", "x")
    assert hashed("p\u00e4ssword sentence") != kept


@pytest.mark.parametrize("weak", ["short", "x" * 129, "aaaaaaaaaaaaaaaa", "my-id-is p-0001 ok"])
def test_weak_passwords_are_refused(weak: str) -> None:
    with pytest.raises(PasswordRefused):
        check_password(weak, "p-0001")
    check_password("a fine long sentence", "p-0001")


def test_an_authenticator_reads_its_address() -> None:
    address = totp_address(SECRET, "p-0001", "hospitals.example")
    assert address.startswith("otpauth://totp/hospitals.example%3Ap-0001?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ&")
