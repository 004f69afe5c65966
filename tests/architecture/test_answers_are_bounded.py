"""No answer over HTTP grows for ever: a list is told in pages, is limited by its schema, or is named here with what
limits it. All routes of all services are looked at, down to the lists within what they answer."""

from collections.abc import Iterator
from typing import Any

import pytest

from cohortium_cli.contracts_openapi import SERVICES, openapi_document
from cohortium_messages.paging import MOST_ON_A_PAGE

LIMITED_BY = {
    "the members of a study, 200 at the most": {
        "RoundStatus.cohort", "RoundStatus.dropped", "RoundStatus.refused", "RoundStatus.choices",
        "WindowStatus.ready", "WindowStatus.roster", "WindowStatus.choices", "RunStatus.sites", "VersionLineage.sites",
        "ReleaseView.missing", "ReleaseView.sites", "DocumentView.sites",
    },
    "people and officers, each of whom signs once": {
        "ReleaseView.officers", "DecisionView.people", "GrantView.approvers", "TrustDocument.signatures",
        "Manifest.signatures",
    },
    "the roles that there are, at the places that there are": {"PersonView.roles"},
    "the request, which has 4 MiB at the most": {"Accepted.changed"},
    "the withdrawals of one study version, one of each member and of its patients": {"VersionLineage.flagged"},
    "the hospitals that refuse to start over": {"WithdrawalView.refused"},
    "the size of a proof, which grows with the logarithm of the log": {"Inclusion.hashes", "Consistency.hashes"},
    "the rules of consent, each of which gives one reason": {"Answer.reasons"},
    "the deadlines of a withdrawal, which the settings name": {"WithdrawalView.deadlines"},
}  # fmt: skip
"""Lists within an answer that neither pages nor a schema bound; what bounds them is not the course of time."""


def answers(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Every route, its operation, and the schema of its answer where it is JSON."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for status, answer in operation["responses"].items():
                schema = answer.get("content", {}).get("application/json", {}).get("schema")
                if status.startswith("2") and schema:
                    yield f"{method.upper()} {path}", operation, schema


def lists_in(schema: dict[str, Any], schemas: dict[str, Any], owner: str, seen: set[str]) -> Iterator[tuple[str, str]]:
    """Every list without a limit of its own, by the name of the object and of its field."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        if name not in seen:
            seen.add(name)
            for field, inner in schemas[name].get("properties", {}).items():
                yield from lists_in(inner, schemas, f"{name}.{field}", seen)
        return
    for inner in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("prefixItems", ())):
        yield from lists_in(inner, schemas, owner, seen)
    items = schema.get("items")
    if schema.get("type") == "array" and "prefixItems" not in schema and "maxItems" not in schema:
        yield owner, owner.partition(".")[0]
    if isinstance(items, dict):
        yield from lists_in(items, schemas, owner, seen)


def pages(operation: dict[str, Any], schemas: dict[str, Any], schema: dict[str, Any]) -> bool:
    """Whether the route takes `after` and a bounded `limit`, and says with `next` where to go on."""
    limit = {one["name"]: one["schema"] for one in operation.get("parameters", ())}
    name = schema.get("$ref", "").rsplit("/", 1)[-1]
    told = schemas.get(name, {}).get("properties", {})
    return "after" in limit and limit.get("limit", {}).get("maximum") == MOST_ON_A_PAGE and "next" in told


@pytest.mark.parametrize("service", SERVICES)
def test_every_list_has_an_end(service: str) -> None:
    document = openapi_document(service)
    schemas = document["components"]["schemas"]
    known = set().union(*LIMITED_BY.values())
    for route, operation, schema in answers(document):
        paged = pages(operation, schemas, schema)
        assert schema.get("type") != "array", f"{service} {route} answers with a bare list; use paging.Page"
        top = schema.get("$ref", "").rsplit("/", 1)[-1]
        for name, owner in lists_in(schema, schemas, top, set()):
            if owner == top and paged:
                continue
            assert name in known, f"{service} {route}: {name} has no end; page it, or say above what limits it"


@pytest.mark.parametrize("service", SERVICES)
def test_what_is_told_in_pages_can_be_asked_for_in_pages(service: str) -> None:
    document = openapi_document(service)
    schemas = document["components"]["schemas"]
    for route, operation, schema in answers(document):
        told = schemas.get(schema.get("$ref", "").rsplit("/", 1)[-1], {}).get("properties", {})
        assert pages(operation, schemas, schema) == ("next" in told), f"{service} {route}"


def test_what_is_named_here_is_there() -> None:
    """A name that is gone would let its successor grow unseen."""
    found: set[str] = set()
    for service in SERVICES:
        document = openapi_document(service)
        for _, _, schema in answers(document):
            found |= {name for name, _ in lists_in(schema, document["components"]["schemas"], "", set())}
    assert set().union(*LIMITED_BY.values()) <= found
