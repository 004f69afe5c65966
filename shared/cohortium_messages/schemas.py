"""JSON Schemas (draft 2020-12) of everything that crosses a border, made from the models."""

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from cohortium_messages.consent import ConsentFile
from cohortium_messages.envelope import Envelope
from cohortium_messages.events import AuditEvent
from cohortium_messages.governance import Invitation, Manifest, SiteGrant, TrustDocument
from cohortium_messages.model_schema import ModelSchema
from cohortium_messages.papers import StudyPapers
from cohortium_messages.privacy_test import PrivacyTest
from cohortium_messages.registry import Message, released_types
from cohortium_messages.result import Result
from cohortium_messages.study import Study

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

Mode = Literal["validation", "serialization"]

DOCUMENTS: Final[Mapping[str, tuple[type[BaseModel], Mode]]] = {
    "study": (Study, "validation"),  # people write it: what has a default may be left out
    "result": (Result, "serialization"),
    "envelope": (Envelope, "serialization"),
    "documents/trust": (TrustDocument, "serialization"),
    "documents/manifest": (Manifest, "serialization"),
    "documents/invitation": (Invitation, "serialization"),
    "documents/grant": (SiteGrant, "serialization"),
    "documents/consent_file": (ConsentFile, "serialization"),
    "documents/study_papers": (StudyPapers, "serialization"),
    "documents/model_schema": (ModelSchema, "serialization"),
    "documents/privacy_test": (PrivacyTest, "validation"),
}


class _PlainSchema(GenerateJsonSchema):
    """Without titles that only repeat a field's name. What a program writes has all its fields, so all are required:
    otherwise the fields that tell one type from another, which have a default, would not be. But for those that are not
    written while they say nothing: documents from before such a field keep their digest."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - pydantic's signature
        return False

    def field_is_required(
        self,
        field: core_schema.ModelField | core_schema.DataclassField | core_schema.TypedDictField,
        total: bool,
    ) -> bool:
        always = self.mode == "serialization" and "serialization_exclude_if" not in field
        return always or super().field_is_required(field, total)


def schema_name(message: type[Message]) -> str:
    """Where under `contracts/schemas/` the schema of a message's `data` lies, without `.json`."""
    folder = "events" if issubclass(message, AuditEvent) else "messages"
    return f"{folder}/{message.type_name}"


def json_schema(model: type[BaseModel], name: str, mode: Mode) -> dict[str, Any]:
    """The model's schema under the identifier `urn:cohortium:schema:<name>`."""
    schema = model.model_json_schema(mode=mode, schema_generator=_PlainSchema)
    return {"$schema": DIALECT, "$id": f"urn:cohortium:schema:{name.replace('/', ':')}", **_on_one_line(schema)}


def all_schemas() -> Iterable[tuple[str, dict[str, Any]]]:
    """Name and schema of every document, message and event."""
    for name, (model, mode) in DOCUMENTS.items():
        yield name, json_schema(model, name, mode)
    for _, message in sorted(released_types().items()):
        name = schema_name(message)
        yield name, json_schema(message, name, "serialization")


def _on_one_line(node: Any) -> Any:
    """The schema with its descriptions free of the source's line breaks; blank lines between paragraphs stay."""
    if isinstance(node, dict):
        return {key: _text(value) if key == "description" else _on_one_line(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_on_one_line(item) for item in node]
    return node


def _text(value: Any) -> Any:
    if not isinstance(value, str):  # a field that is itself called `description`
        return _on_one_line(value)
    return re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(value))
