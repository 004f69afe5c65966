"""Statements about model bundles: a threshold of the expected keys, over exactly these bytes."""

import base64
import json

import pytest
from federation_in_memory import digest

from cohortium_protocol.attest import Statement, add_signature, sign_statement, verify_statement
from cohortium_protocol.errors import AttestationRefused
from cohortium_protocol.signing import IdentityKey

KEYS = [IdentityKey.from_seed(digest(f"key {i}")) for i in range(3)]
PUBLIC = [key.public for key in KEYS]
STATEMENT = Statement(
    {"weights.safetensors": digest("weights"), "card.md": digest("card")},
    "https://cohortium.example/model-bundle/1",
    {"study": "heart", "round": 7, "sites": 4},
)


def test_two_of_three() -> None:
    envelope = add_signature(sign_statement(STATEMENT, KEYS[:1]), KEYS[2])
    assert verify_statement(envelope, PUBLIC, 2) == STATEMENT
    with pytest.raises(AttestationRefused):
        verify_statement(envelope, PUBLIC, 3)


def test_one_key_counts_once_however_often_it_is_listed_or_signs() -> None:
    envelope = add_signature(sign_statement(STATEMENT, KEYS[:1]), KEYS[0])
    with pytest.raises(AttestationRefused):
        verify_statement(envelope, [PUBLIC[0], PUBLIC[0], PUBLIC[1]], 2)


def test_a_stranger_does_not_count() -> None:
    with pytest.raises(AttestationRefused):
        verify_statement(sign_statement(STATEMENT, [KEYS[2]]), PUBLIC[:2], 1)
    with pytest.raises(AttestationRefused):
        verify_statement(sign_statement(STATEMENT, KEYS), PUBLIC, 0)


def test_the_payload_is_an_in_toto_statement() -> None:
    envelope = json.loads(sign_statement(STATEMENT, KEYS[:1]))
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    payload = json.loads(base64.b64decode(envelope["payload"]))
    assert payload["_type"] == "https://in-toto.io/Statement/v1"
    assert payload["subject"][0] == {"name": "card.md", "digest": {"sha256": digest("card").hex()}}


def test_an_edited_payload_is_refused() -> None:
    envelope = json.loads(sign_statement(STATEMENT, KEYS[:1]))
    payload = base64.b64decode(envelope["payload"]).replace(b'"round":7', b'"round":8')
    envelope["payload"] = base64.b64encode(payload).decode()
    with pytest.raises(AttestationRefused):
        verify_statement(json.dumps(envelope).encode(), PUBLIC, 1)


@pytest.mark.parametrize(
    "envelope",
    [b"", b"[]", b"{}", b"\xff", b'{"payload":1,"payloadType":"x","signatures":[]}', b"[" * 100_000, bytes(5 << 20)],
)
def test_what_is_no_envelope_is_refused(envelope: bytes) -> None:
    with pytest.raises(AttestationRefused):
        verify_statement(envelope, PUBLIC, 1)


@pytest.mark.parametrize(
    "payload",
    [
        b"x",
        b"{}",
        b"[]",
        b'{"_type":"other"}',
        json.dumps(
            json.loads(STATEMENT.to_bytes()) | {"subject": [{"name": "a", "digest": {"sha256": "00"}}]}
        ).encode(),
        json.dumps(
            json.loads(STATEMENT.to_bytes())
            | {
                "subject": [
                    {"name": "a", "digest": {"sha256": "00" * 32}},
                    {"name": "a", "digest": {"sha256": "11" * 32}},
                ]
            }
        ).encode(),
    ],
)
def test_what_is_no_statement_is_refused(payload: bytes) -> None:
    with pytest.raises(AttestationRefused):
        Statement.parse(payload)
