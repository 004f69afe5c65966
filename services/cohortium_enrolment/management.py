"""RabbitMQ's management interface: which connections are open, and closing them."""

import ssl
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self
from urllib.parse import quote, unquote, urlsplit

import httpx
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from cohortium_enrolment.domain.passes import Connection
from cohortium_kit.errors import CohortiumError

ASK_S = 5.0
NAME = 200
COLUMNS = "name,user,connected_at"


class ManagementUnavailable(CohortiumError):
    """The broker's management interface gave no usable answer; connections stay as they are until it does."""


class _Listed(BaseModel):
    """A connection that was opened a moment ago is listed with its name alone."""

    name: Annotated[str, Field(max_length=NAME)]
    user: str = ""
    connected_at: Annotated[float, Field(ge=0)] = 0.0


_LISTING = TypeAdapter(list[_Listed])


class Management:
    """A client with a login of its own. Its `repr` shows no password."""

    def __init__(self, url: str, ca_file: Path | None = None) -> None:
        parts = urlsplit(url)
        login = unquote(parts.username or ""), unquote(parts.password or "")
        place = parts.netloc.rpartition("@")[2]
        verify: ssl.SSLContext | bool = True
        if ca_file is not None:
            verify = ssl.create_default_context(cafile=str(ca_file))
        self._client = httpx.AsyncClient(
            base_url=f"{parts.scheme}://{place}/api", auth=login, timeout=ASK_S, verify=verify, trust_env=False
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def connections(self) -> list[Connection]:
        """Every open connection that has logged in. One that is seconds old may be missing still.

        Raises `ManagementUnavailable`.
        """
        try:
            answer = await self._client.get("/connections", params={"columns": COLUMNS})
            answer.raise_for_status()
            listed = _LISTING.validate_json(answer.content)
        except (httpx.HTTPError, ValidationError) as error:
            raise ManagementUnavailable(f"connections cannot be listed: {type(error).__name__}") from None
        return [
            Connection(one.name, one.user, datetime.fromtimestamp(one.connected_at / 1000, UTC))
            for one in listed
            if one.user
        ]

    async def close(self, connection: str, reason: str) -> bool:
        """Close one connection; returns whether it was open still. Raises `ManagementUnavailable`."""
        try:
            headers = {"X-Reason": reason}
            answer = await self._client.delete(f"/connections/{quote(connection, safe='')}", headers=headers)
        except httpx.HTTPError as error:
            raise ManagementUnavailable(f"a connection cannot be closed: {type(error).__name__}") from None
        if answer.status_code not in (204, 404):
            raise ManagementUnavailable(
                f"a connection cannot be closed: {answer.status_code}; give management_url an administrator's login"
            )
        return answer.status_code == 204
