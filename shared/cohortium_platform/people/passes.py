"""A person's pass: what consent signs so that another service knows who asks, without asking consent.

It is good for one service of one federation, for some minutes: a role that was taken away is gone from every service
within that time. It is no session: who holds it can do what the person may, so it is short, and never in a cookie.
"""

import base64
import binascii
from datetime import datetime, timedelta
from typing import Annotated, Final

from pydantic import Field, ValidationError

from cohortium_kit.errors import CohortiumError
from cohortium_messages.consent import Moment, PersonId
from cohortium_messages.governance import TrustDocument
from cohortium_messages.ids import Wire
from cohortium_messages.people import Assignments
from cohortium_protocol.encoding import pae
from cohortium_protocol.errors import BadSignature
from cohortium_protocol.labels import PERSON_PASS
from cohortium_protocol.signing import IdentityKey, verify

PREFIX: Final = "cp1."
LASTS: Final = timedelta(minutes=5)
SKEW: Final = timedelta(minutes=1)
MAX_CHARACTERS: Final = 16 << 10


class PassRefused(CohortiumError):
    """The pass is not good here, or not any more."""


class Pass(Wire):
    """Who asks, in which roles, at which service. `proved_at`: when the person last showed who they are."""

    federation: Annotated[str, Field(max_length=100)]
    service: Annotated[str, Field(max_length=32)]
    person: PersonId
    roles: Assignments
    issued_at: Moment
    ends_at: Moment
    proved_at: Moment


def sign_pass(said: Pass, key: IdentityKey) -> str:
    """The pass as text, signed with consent's key."""
    body = said.model_dump_json().encode()
    return PREFIX + ".".join(_text(part) for part in (body, key.sign(pae(PERSON_PASS, body))))


def read_pass(text: str, trust: TrustDocument, service: str, now: datetime) -> Pass:
    """What a pass says, if it is consent's, for this service of this federation, and good now. Raises `PassRefused`."""
    parts = text.removeprefix(PREFIX).split(".")
    if not text.startswith(PREFIX) or len(text) > MAX_CHARACTERS or len(parts) != 2:
        raise PassRefused("this is neither the operator's token nor a pass; get one with POST /people/pass at consent")
    try:
        body, signature = (_bytes(part) for part in parts)
        verify(trust.services.consent, pae(PERSON_PASS, body), signature)
        said = Pass.model_validate_json(body)
    except (binascii.Error, ValueError, BadSignature, ValidationError):
        raise PassRefused("the pass is not signed by this federation's consent service; sign in there") from None
    if (said.federation, said.service) != (trust.federation, service):
        raise PassRefused(f"the pass is for {said.service} of {said.federation}; get one for {service}")
    if not said.issued_at - SKEW <= now < said.ends_at:
        raise PassRefused("the pass has ended; get a new one with POST /people/pass at consent")
    return said


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    if not text.isascii():
        raise ValueError("not base64")
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
