"""CycloneDX's own JSON schema, as its Python library carries it."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import cyclonedx.schema
from jsonschema import Draft7Validator
from referencing import Registry, Resource

PARTS = Path(cyclonedx.schema.__file__).parent / "_res"


@cache
def _validator(version: str) -> Draft7Validator:
    """The schema refers to two others by names that lie beside its own."""
    registry: Registry[Any] = Registry()
    for file in ("spdx", "jsf-0.82", "cryptography-defs"):
        if (path := PARTS / f"{file}.SNAPSHOT.schema.json").exists():
            content = Resource.from_contents(json.loads(path.read_text()))
            names = (f"http://cyclonedx.org/schema/{file}.{kind}" for kind in ("schema.json", "SNAPSHOT.schema.json"))
            registry = registry.with_resources((name, content) for name in names)
    schema = json.loads((PARTS / f"bom-{version}.SNAPSHOT.schema.json").read_text())
    return Draft7Validator(schema, registry=registry, format_checker=Draft7Validator.FORMAT_CHECKER)


def check_bom(content: bytes) -> dict[str, Any]:
    """The document. Raises `jsonschema.ValidationError` unless CycloneDX's schema of its own version takes it."""
    document: dict[str, Any] = json.loads(content)
    _validator(document["specVersion"]).validate(document)
    return document
