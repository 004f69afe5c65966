"""Signed envelopes: every check, in its order, with its code."""

import json
from dataclasses import replace
from typing import Any

import pytest
import rfc8785

from cohortium_kit.bus import Delivery, Outgoing
from cohortium_kit.envelopes import Sender, open_envelope
from cohortium_kit.errors import Poison
from cohortium_kit.testing.clock import START, ManualClock
from cohortium_kit.testing.deliveries import delivered
from cohortium_kit.testing.signing import HmacSigner, HmacVerifier
from cohortium_messages.envelope import KEY_ID_HEADER, MAX_CONTROL_BYTES, SIGNATURE_HEADER
from cohortium_messages.ids import Bytes16, StudyId, Wire
from cohortium_messages.registry import Message


class Bed(Wire):
    ward: str
    load: float


class Admitted(Message, type_name="cohortium.kittest.admitted.v1"):
    beds: tuple[Bed, ...] = ()
    digest: Bytes16 = b"\0" * 16


SIGNER = HmacSigner("site-1")
VERIFIER = HmacVerifier.of(SIGNER)
SENDER = Sender("/site/1", SIGNER, ManualClock())
MESSAGE = Admitted(beds=(Bed(ward="icu", load=0.1),), digest=b"\xff" * 16)


def signed(body: bytes, message_id: str = "12345678") -> Delivery:
    """A body of any kind under a good signature."""
    headers = {KEY_ID_HEADER: SIGNER.key_id, SIGNATURE_HEADER: SIGNER.sign(body).hex()}
    return delivered(Outgoing("uplink", "site.1", body, message_id, "any", headers), "inbox")


def envelope(**changes: Any) -> bytes:
    fields = json.loads(SENDER.outgoing("uplink", "k", MESSAGE, message_id="12345678").body)
    return rfc8785.dumps({name: value for name, value in {**fields, **changes}.items() if value is not ...})


def test_message_comes_back_as_it_was_sent() -> None:
    outgoing = SENDER.outgoing("uplink", "site.1", MESSAGE, correlation_id="run-1", study=StudyId("heart"))
    opened, message, key_id = open_envelope(delivered(outgoing, "inbox"), VERIFIER)
    assert message == MESSAGE
    assert key_id == "site-1"
    assert (opened.id, opened.type, opened.source) == (outgoing.message_id, "cohortium.kittest.admitted.v1", "/site/1")
    assert (opened.time, opened.correlationid, opened.study) == (START, "run-1", "heart")
    assert (outgoing.type, outgoing.correlation_id, outgoing.exchange) == (opened.type, "run-1", "uplink")


def test_body_is_canonical_and_the_same_for_the_same_message() -> None:
    one, two = (SENDER.outgoing("uplink", "k", MESSAGE, message_id="12345678") for _ in range(2))
    assert one == two
    assert one.body == rfc8785.dumps(json.loads(one.body))
    assert SENDER.outgoing("uplink", "k", MESSAGE).message_id != SENDER.outgoing("uplink", "k", MESSAGE).message_id


@pytest.mark.parametrize(
    ("delivery", "code"),
    [
        (signed(b" " * (MAX_CONTROL_BYTES + 1)), "too_large"),
        (replace(signed(envelope()), headers={}), "unsigned"),
        (replace(signed(envelope()), headers={KEY_ID_HEADER: "site-1"}), "unsigned"),
        (replace(signed(envelope()), body=envelope() + b" "), "bad_signature"),
        (replace(signed(envelope()), headers={KEY_ID_HEADER: "site-1", SIGNATURE_HEADER: "zz"}), "bad_signature"),
        (replace(signed(envelope()), headers={KEY_ID_HEADER: "site-2", SIGNATURE_HEADER: "00"}), "bad_signature"),
        (signed(b"\xff\xfe"), "not_json"),
        (signed(b"{"), "not_json"),
        (signed(b""), "not_json"),
        (signed(b"[]"), "bad_schema:"),
        (signed(envelope(extra=1)), "bad_schema:extra"),
        (signed(envelope(source=...)), "bad_schema:source"),
        (signed(envelope(type="cohortium.kittest.unheard_of.v1")), "unknown_type"),
        (signed(envelope(data={"beds": [{"ward": "icu", "load": "many"}]})), "bad_schema:data.beds.0.load"),
        (signed(envelope(data={"digest": "00"})), "bad_schema:data.digest"),
        (signed(envelope(data={"surprise": 1})), "bad_schema:data.surprise"),
        (signed(envelope(), message_id="87654321"), "bad_schema:id"),
        (signed(b"[" * 100_000), "not_json"),
        (signed(envelope().replace(b"0.1", b"NaN")), "bad_schema:data.beds.0.load"),
    ],
)
def test_every_fault_has_its_code(delivery: Delivery, code: str) -> None:
    with pytest.raises(Poison) as fault:
        open_envelope(delivery, VERIFIER)
    assert fault.value.reason_code == code


def test_reason_never_quotes_a_value() -> None:
    with pytest.raises(Poison) as fault:
        open_envelope(signed(envelope(data={"beds": "Mrs Smith"})), VERIFIER)
    assert "Smith" not in str(fault.value)


def test_message_too_large_to_be_read_is_not_sent() -> None:
    with pytest.raises(ValueError, match="bytes"):
        SENDER.outgoing("uplink", "k", Admitted(beds=(Bed(ward="x" * (MAX_CONTROL_BYTES + 1), load=0),)))
