"""Every known login statement in contracts/vectors is what the code makes; they come from a second implementation."""

import json
from pathlib import Path
from typing import Any

import pytest

from cohortium_messages.ids import SiteId
from cohortium_protocol.logins import Audience, make_login, read_login, verify_invited_login, verify_login
from cohortium_protocol.signing import IdentityKey

FILE = Path(__file__).parents[2] / "contracts" / "vectors" / "logins.json"


@pytest.mark.parametrize("case", json.loads(FILE.read_text(encoding="utf-8"))["logins"])
def test_logins(case: dict[str, Any]) -> None:
    audience, site = Audience(case["federation"], case["namespace"]), SiteId(case["site_id"])
    made = make_login(
        audience,
        site,
        IdentityKey.from_seed(bytes.fromhex(case["seed"])),
        issued_at=case["issued_at"],
        ends_at=case["ends_at"],
        nonce=bytes.fromhex(case["nonce"]),
        token=case["token"],
    )
    assert (made.signature.hex(), made.mac.hex()) == (case["signature"], case["mac"])
    assert made.password() == case["password"]
    assert read_login(case["password"]) == made
    verify_login(made, audience, site, bytes.fromhex(case["public"]))
    if case["token"] is not None:
        verify_invited_login(made, audience, site, case["token"])
