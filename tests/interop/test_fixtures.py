"""Messages of every released version are read for ever, by the code and by the published schemas."""

import json
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from fixture_files import FOLDER, signing_key
from fixture_messages import MESSAGES
from jsonschema import Draft202012Validator

from cohortium_messages.envelope import KEY_ID_HEADER, SIGNATURE_HEADER, Envelope
from cohortium_messages.registry import MESSAGE_TYPES, released_types
from cohortium_messages.schemas import schema_name
from cohortium_protocol.signing import envelope_bytes, verify

CONTRACTS = FOLDER.parents[1]
FILES = sorted(FOLDER.parent.glob("*/*.json"))


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
class TestEachFixture:
    def test_is_read_and_nothing_in_it_is_lost(self, file: Path) -> None:
        body = load(file)["body"]
        envelope = Envelope.model_validate_json(json.dumps(body))
        message = MESSAGE_TYPES[envelope.type].model_validate(envelope.data)
        # Fields that came later have a default and are written too; what the file says must still be said.
        assert written(message.model_dump(mode="json"), like=body["data"]) == body["data"]
        assert file.stem == envelope.type

    def test_has_a_signature_over_its_canonical_bytes(self, file: Path) -> None:
        fixture = load(file)
        key_id, signature = fixture["headers"][KEY_ID_HEADER], bytes.fromhex(fixture["headers"][SIGNATURE_HEADER])
        verify(signing_key(key_id).public, envelope_bytes(key_id, rfc8785.dumps(fixture["body"])), signature)

    def test_fits_the_published_schemas(self, file: Path) -> None:
        body = load(file)["body"]
        message = MESSAGE_TYPES[body["type"]]
        for name, instance in (("envelope", body), (schema_name(message), body["data"])):
            schema = load(CONTRACTS / "schemas" / f"{name}.json")
            Draft202012Validator(schema).validate(instance)

    def test_is_refused_with_a_field_too_many(self, file: Path) -> None:
        body = load(file)["body"]
        with pytest.raises(ValueError, match="unexpected"):
            MESSAGE_TYPES[body["type"]].model_validate({**body["data"], "unexpected": 1})


def test_every_message_type_has_a_fixture() -> None:
    assert {message.type_name for message in MESSAGES} == set(released_types())
    assert set(released_types()) <= {file.stem for file in FILES}, "run: python tests/interop/fixture_files.py"


def written(value: Any, *, like: Any) -> Any:
    """`value` without the keys that `like` does not have, at every depth."""
    if isinstance(value, dict) and isinstance(like, dict):
        return {key: written(value[key], like=part) for key, part in like.items() if key in value}
    if isinstance(value, list) and isinstance(like, list) and len(value) == len(like):
        return [written(item, like=part) for item, part in zip(value, like, strict=True)]
    return value
