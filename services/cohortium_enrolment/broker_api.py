"""The questions of `rabbitmq_auth_backend_http`, on an address of their own that only the broker may reach.

A question is a short form; the answer is `allow`, with the standing as the login's tag, or `deny`. RabbitMQ gives the
tag back with every later question of that connection. Anything unexpected is `deny`.
"""

from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import parse_qsl

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse

from cohortium_enrolment.border import Border
from cohortium_kit.http import create_app
from cohortium_messages.rights import Asked

MAX_FORM_BYTES = 4096
MAX_FIELDS = 16

Form = Mapping[str, str]


def create_broker_api(border: Border) -> FastAPI:
    """The application: four questions by POST, and `/healthz`."""
    app = create_app("Cohortium enrolment, for the broker", "1", None)

    async def user(form: Form) -> str:
        standing = await border.login(form["username"], form["password"])
        return "deny" if standing is None else f"allow {standing.value}"

    async def vhost(form: Form) -> str:
        return _word(await border.may_enter(form["username"], form["vhost"], form["tags"]))

    async def resource(form: Form) -> str:
        return _word(await border.may(form["username"], form["vhost"], form["tags"], _asked(form)))

    async def topic(form: Form) -> str:
        asked, key = _asked(form), form["routing_key"]
        return _word(await border.may_publish(form["username"], form["vhost"], form["tags"], asked, key))

    for name, answer in {"user": user, "vhost": vhost, "resource": resource, "topic": topic}.items():
        app.add_api_route(f"/broker/{name}", _route(answer), methods=["POST"], include_in_schema=False)
    return app


def _asked(form: Form) -> Asked:
    return Asked(form["resource"], form["name"], form["permission"])


def _word(allowed: bool) -> str:
    return "allow" if allowed else "deny"


def _route(answer: Callable[[Form], Awaitable[str]]) -> Callable[[Request], Awaitable[PlainTextResponse]]:
    async def route(request: Request) -> PlainTextResponse:
        form = await _form(request)
        try:
            return PlainTextResponse("deny" if form is None else await answer(form))
        except KeyError:
            return PlainTextResponse("deny")

    return route


async def _form(request: Request) -> Form | None:
    """The fields, or None if this is no form of the broker's: too large, not UTF-8, or a field twice."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_FORM_BYTES:
            return None
    try:
        pairs = parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=MAX_FIELDS,
        )
    except ValueError:
        return None
    fields = dict(pairs)
    return fields if len(fields) == len(pairs) else None
