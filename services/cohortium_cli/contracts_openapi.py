"""OpenAPI 3.1 descriptions of the services' HTTP interfaces, made from the applications themselves."""

import importlib
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final

from fastapi import FastAPI

from cohortium_kit.clock import SystemClock
from cohortium_platform.people.guard import Guard
from cohortium_platform.people.rights import BY_MEMBERSHIP, PUBLIC, RIGHTS, STEP_UP, Line, line_of

SERVICES: Final = ("enrolment", "consent", "scheduler", "aggregator", "audit")
"""Whose `cohortium_<name>.api` has an application."""

PROBLEM: Final[dict[str, Any]] = {
    "type": "object",
    "description": "An error (RFC 9457). `title` is a stable code for programs, `detail` a sentence for people.",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "examples": ["urn:cohortium:problem:not_authorised"]},
        "title": {"type": "string", "examples": ["not_authorised"]},
        "status": {"type": "integer", "examples": [401]},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "description": "Of an invalid request: every field that is wrong.",
            "items": {
                "type": "object",
                "required": ["field", "fault"],
                "properties": {"field": {"type": "string"}, "fault": {"type": "string"}},
            },
        },
    },
}

_ERROR: Final[dict[str, Any]] = {
    "description": "Any error: its status and its code say which.",
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
}


class _Absent:
    """Stands for the parts of a service, which the description of its interface does not use."""

    def __getattr__(self, name: str) -> "_Absent":
        return self

    def __call__(self, *_: Any, **__: Any) -> "_Absent":
        return self


def openapi_document(service: str) -> dict[str, Any]:
    """The description of one service's interface. The errors are ours, not the framework's."""
    document = application(service, Guard(service, None, now=SystemClock().now)).openapi()
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for framework in ("HTTPValidationError", "ValidationError"):
        schemas.pop(framework, None)
    schemas["Problem"] = PROBLEM
    taken: set[str] = set()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _say_who(operation, line_of(service, method.upper(), path))
            operation["operationId"] = _short(operation["summary"], taken)
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = _ERROR
    return document


def application(service: str, guard: Callable[..., Awaitable[None]]) -> FastAPI:
    """The service's own application with all its routes, and nothing behind them."""
    module = importlib.import_module(f"cohortium_{service}.api")
    create: Callable[..., FastAPI] = getattr(module, "create_api", None) or module.create
    parts: dict[str, Any] = {name: _Absent() for name in inspect.signature(create).parameters}
    return create(**parts | {"guard": guard})


def _say_who(operation: dict[str, Any], line: Line) -> None:
    """The right that the route asks for, and the roles that have it, where a reader of the interface looks.

    `x-by-membership`: people of a hospital have it in studies in whose manifests it is or was a member. `x-passes-of`:
    the service whose passes open it, where it is another one.
    """
    right = line.right
    if right == PUBLIC:
        operation.pop("security", None)
    operation["x-right"] = right
    if right in RIGHTS:
        operation["x-roles"] = sorted(str(role) for role in RIGHTS[right])
        operation["x-step-up"] = right in STEP_UP
    if right in BY_MEMBERSHIP:
        operation["x-by-membership"] = True
    if line.passes_of:
        operation["x-passes-of"] = line.passes_of


def _short(summary: str, taken: set[str]) -> str:
    """The function's name, which FastAPI has made a summary of; it must be the only one of its name."""
    name = summary.lower().replace(" ", "_")
    if name in taken:
        raise ValueError(f"two operations are called {name}; rename one of the functions")
    taken.add(name)
    return name
