"""Signing in at an identity provider: OpenID Connect's code flow with PKCE.

What comes back is believed only as far as it is bound: the answer to the browser that asked (cookie and state, once),
the code to us (verifier), the ID token to the provider's key, to us, to this request (nonce) and to now. People are
known by the provider's `sub`, which stays; never by an e-mail address, which may be given to somebody else.
"""

import asyncio
import functools
import hmac
import math
import ssl
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import sha256
from typing import Annotated, Any, Final
from urllib.parse import urlencode

import httpx
import jwt
import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cohortium_consent import people_store as store
from cohortium_consent.people_store import OidcRequest
from cohortium_consent.settings import OidcProvider
from cohortium_consent.sign_in import Opened, People, busy
from cohortium_kit.clock import Clock
from cohortium_kit.db import Database, Tx
from cohortium_kit.errors import TransactionConflict
from cohortium_kit.http import HttpProblem
from cohortium_platform.people.passwords import new_token, token_digest

log = structlog.get_logger(__name__)

ALGORITHMS: Final = ("RS256", "PS256", "ES256", "EdDSA")
"""Signatures by the provider's own key: none that is keyed with something we know, and never `none`."""
REQUEST_S: Final = 600.0
MOST_OPEN_PER_ADDRESS: Final = 300
MOST_OPEN: Final = 10_000
"""Sign-ins that were begun and have not come back. Who begins more from one address is told to wait; beyond the second
number, which takes many addresses, the oldest are forgotten, and those people begin again."""
KEYS_S: Final = 3600.0
KEYS_AGAIN_S: Final = 60.0
"""An unknown key id has the keys fetched anew, at most so often."""
SKEW: Final = timedelta(minutes=1)
AUTH_AGE_S: Final = 300
TIMEOUT_S: Final = 10.0
MAX_BYTES: Final = 256 << 10

Address = Annotated[str, Field(pattern=r"^https?://[^\s#]+$", max_length=2000)]


class ProviderRefused(Exception):
    """What a provider said cannot be believed; the text is for our log, and the code for everybody's."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class _Told(BaseModel):
    """What others say in their own words: unknown fields are theirs."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _Discovery(_Told):
    issuer: str
    authorization_endpoint: Address
    token_endpoint: Address
    jwks_uri: Address


class _Tokens(_Told):
    id_token: Annotated[str, Field(max_length=32 << 10)]


class _Claims(_Told):
    sub: Annotated[str, Field(min_length=1, max_length=255)]
    nonce: Annotated[str, Field(max_length=200)]
    aud: str | list[str]
    azp: str | None = None
    acr: str | None = None
    amr: tuple[str, ...] = ()
    auth_time: int | None = None


@dataclass(slots=True)
class _Known:
    """A provider's own words, as far as they were fetched."""

    discovery: _Discovery | None = None
    keys: Mapping[str, jwt.PyJWK] = field(default_factory=dict)
    fetched_at: float = float("-inf")


@dataclass(frozen=True, slots=True)
class Departure:
    """Where to send the browser, and the cookie that ties the answer to it."""

    address: str
    browser: str


class Oidc:
    """All identity providers of the settings."""

    def __init__(
        self,
        db: Database,
        people: People,
        clock: Clock,
        providers: Mapping[str, tuple[OidcProvider, str]],
        public_url: str,
        *,
        require_mfa: bool,
    ) -> None:
        self._db = db
        self._people = people
        self._clock = clock
        self._providers = providers
        self._public_url = public_url.rstrip("/")
        self._require_mfa = require_mfa
        self._known = {name: _Known() for name in providers}
        self._fetching = asyncio.Lock()

    async def depart(self, name: str, session: str | None, address: str) -> Departure:
        """Begin to sign in at a provider; with a session's cookie, to prove that session anew. Raises `HttpProblem`
        429 for an address that began too many."""
        provider, _ = self._provider(name)
        discovery = await self._asked(name, self._discovery(name))
        proved = None if session is None else (await self._people.session_of(session)).session_digest
        state, nonce, verifier, browser = (new_token() for _ in range(4))
        request = OidcRequest(
            token_digest(state),
            name,
            token_digest(browser),
            nonce,
            verifier,
            proved,
            self._clock.now().timestamp(),
            address,
        )
        await self._begin(request)
        values = {
            "response_type": "code",
            "client_id": provider.client_id,
            "redirect_uri": self._return_address(name),
            "scope": "openid",
            "state": state,
            "nonce": nonce,
            "code_challenge": _text(sha256(verifier.encode()).digest()),
            "code_challenge_method": "S256",
        }
        if proved is not None:
            values |= {"prompt": "login", "max_age": "0"}
        if provider.acr:
            values["acr_values"] = " ".join(provider.acr)
        joint = "&" if "?" in discovery.authorization_endpoint else "?"
        return Departure(f"{discovery.authorization_endpoint}{joint}{urlencode(values)}", browser)

    async def _begin(self, request: OidcRequest) -> None:
        """Remember a request, among no more than there may be."""

        async def begin(tx: Tx) -> float | None:
            await store.forget_requests(tx, tx.now - REQUEST_S)
            found, oldest = await store.requests_from(tx, request.address)
            if found >= MOST_OPEN_PER_ADDRESS and oldest is not None:
                return oldest + REQUEST_S - tx.now
            await store.keep_newest_requests(tx, MOST_OPEN - 1)
            await store.add_request(tx, request)
            return None

        try:
            wait_s = await self._db.run("oidc_depart", begin)
        except TransactionConflict:
            raise busy() from None
        if wait_s is not None:
            text = "too many sign-ins were begun from your address and not finished; wait some minutes"
            raise HttpProblem(429, "too_many_sign_ins", text, retry_after_s=max(1, math.ceil(wait_s)))

    async def arrive(self, name: str, code: str, state: str, browser: str, said_issuer: str | None) -> Opened | None:
        """The browser came back: a session, or None where a known session was proved anew. Raises `HttpProblem`."""
        provider, _ = self._provider(name)
        request = await self._db.run("oidc_arrive", lambda tx: store.take_request(tx, token_digest(state)))
        now = self._clock.now().timestamp()
        if (
            request is None
            or request.provider != name
            or now - request.began_at > REQUEST_S
            or not hmac.compare_digest(request.browser_digest, token_digest(browser))
        ):
            raise await self._refused(
                None, "OIDC_STATE_UNKNOWN", "no such request, or it is another browser's, or over"
            )
        if said_issuer is not None and said_issuer != provider.issuer:  # RFC 9207: another provider's answer
            raise await self._refused(None, "OIDC_ISSUER_MIXED_UP", "the answer names another issuer")
        claims = await self._asked(name, self._claims(name, code, request))
        mfa = _second_factor(provider, claims)
        if self._require_mfa and not mfa:
            raise await self._refused(None, "OIDC_SECOND_FACTOR_MISSING", f"acr {claims.acr}, amr {claims.amr}")
        async with self._db.reading("oidc_person") as tx:
            person = await store.person_of_identity(tx, provider.issuer, claims.sub)
        if person is None:
            raise await self._refused(None, "OIDC_PERSON_UNKNOWN", "nobody has this identity; an officer adds people")
        return await self._db.run("oidc_sign_in", lambda tx: self._open(tx, person, request, claims, mfa))

    async def _open(self, tx: Tx, person: str, request: OidcRequest, claims: _Claims, mfa: bool) -> Opened | None:
        if request.session_digest is None:
            return await self._people.open(tx, person, "oidc", mfa=mfa)
        session = await store.session(tx, request.session_digest)
        fresh = claims.auth_time is not None and tx.now - claims.auth_time <= AUTH_AGE_S
        if session is None or session.person != person or not fresh:
            raise HttpProblem(401, "sign_in_refused", "the provider did not ask again who this is; sign in anew")
        await self._people.stepped_up(tx, session, mfa=mfa)
        return None

    @property
    def issuers(self) -> dict[str, str]:
        """Each provider's issuer, by its name here."""
        return {name: provider.issuer for name, (provider, _) in self._providers.items()}

    # What a provider says

    async def _claims(self, name: str, code: str, request: OidcRequest) -> _Claims:
        provider, secret = self._provider(name)
        discovery = await self._discovery(name)
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._return_address(name),
            "code_verifier": request.verifier,
        }
        login = provider.client_id, secret
        body = await _fetch("OIDC_CODE_REFUSED", "POST", discovery.token_endpoint, data=form, auth=login)
        token = _Tokens.model_validate_json(body).id_token
        raw = jwt.decode(
            token,
            await self._key(name, token),
            algorithms=list(ALGORITHMS),
            audience=provider.client_id,
            issuer=provider.issuer,
            options={
                "require": ["iss", "sub", "aud", "exp", "iat", "nonce"],
                "verify_exp": False,  # by our clock, below
                "verify_iat": False,
                "verify_nbf": False,
            },
        )
        _check_times(raw, self._clock.now().timestamp())
        claims = _Claims.model_validate(raw)
        if not hmac.compare_digest(claims.nonce.encode(), request.nonce.encode()):
            raise ProviderRefused("OIDC_TOKEN_REFUSED", "the ID token is for another request: its nonce differs")
        if isinstance(claims.aud, list) and len(claims.aud) > 1 and claims.azp != provider.client_id:
            raise ProviderRefused("OIDC_TOKEN_REFUSED", "the ID token has several audiences and was made for another")
        return claims

    async def _key(self, name: str, token: str) -> jwt.PyJWK:
        kid = jwt.get_unverified_header(token).get("kid", "")
        known, now = self._known[name], self._clock.monotonic()
        async with self._fetching:
            age = now - known.fetched_at
            if age > KEYS_S or (kid not in known.keys and age > KEYS_AGAIN_S):
                found = await _fetch("OIDC_PROVIDER_WRONG", "GET", (await self._discovery(name)).jwks_uri)
                keys = jwt.PyJWKSet.from_json(found.decode()).keys
                known.keys = {key.key_id or "": key for key in keys if key.public_key_use in {None, "sig"}}
                known.fetched_at = now
        if kid not in known.keys:
            raise ProviderRefused("OIDC_TOKEN_REFUSED", "the ID token names a key that the provider does not publish")
        return known.keys[kid]

    async def _discovery(self, name: str) -> _Discovery:
        provider, known = self._provider(name)[0], self._known[name]
        if known.discovery is None:
            address = f"{provider.issuer.rstrip('/')}/.well-known/openid-configuration"
            body = await _fetch("OIDC_PROVIDER_WRONG", "GET", address)
            found = _Discovery.model_validate_json(body)
            if found.issuer != provider.issuer:
                raise ProviderRefused("OIDC_PROVIDER_WRONG", f"the provider calls itself {found.issuer}")
            insecure = provider.issuer.startswith("https:") and any(
                address.startswith("http:")
                for address in (found.authorization_endpoint, found.token_endpoint, found.jwks_uri)
            )
            if insecure:
                raise ProviderRefused("OIDC_PROVIDER_WRONG", "the provider names an address without TLS")
            known.discovery = found
        return known.discovery

    async def _asked(self, name: str, question: Any) -> Any:
        """The provider's answer. Whatever is wrong with it, the person reads one sentence, and our log the reason."""
        try:
            return await question
        except ProviderRefused as refused:
            raise await self._refused(None, refused.code, str(refused)) from None
        except jwt.PyJWTError as error:
            raise await self._refused(None, "OIDC_TOKEN_REFUSED", type(error).__name__) from None
        except (ValidationError, ValueError) as error:
            raise await self._refused(None, "OIDC_PROVIDER_WRONG", type(error).__name__) from None
        except httpx.HTTPError as error:
            log.warning("provider_unreachable", provider=name, error=type(error).__name__)
            raise HttpProblem(503, "provider_unreachable", f"{name} does not answer; try again") from None

    async def _refused(self, person: str | None, code: str, text: str) -> HttpProblem:
        log.warning("oidc_refused", code=code, reason=text)
        await self._people.failed(person, "oidc", code)
        return HttpProblem(401, code.lower(), "the identity provider's answer does not let anybody in; begin again")

    def _provider(self, name: str) -> tuple[OidcProvider, str]:
        found = self._providers.get(name)
        if found is None:
            raise HttpProblem(404, "provider_unknown", f"there is no provider {name}; the settings name providers")
        return found

    def _return_address(self, name: str) -> str:
        return f"{self._public_url}/people/oidc/{name}/callback"


@functools.cache
def _tls() -> ssl.SSLContext:
    """The system's authorities: a hospital's own is among them, and reading them takes a moment."""
    return ssl.create_default_context()


async def _fetch(code: str, method: str, address: str, **more: Any) -> bytes:
    """A provider's answer, up to a bound. Raises `ProviderRefused` for an error, and for too long an answer."""
    body = bytearray()
    async with (
        httpx.AsyncClient(timeout=TIMEOUT_S, follow_redirects=False, verify=_tls()) as client,
        client.stream(method, address, **more) as answer,
    ):
        if answer.status_code != 200:
            raise ProviderRefused(code, f"{address} said {answer.status_code}")
        async for part in answer.aiter_bytes():
            body += part
            if len(body) > MAX_BYTES:
                raise ProviderRefused(code, f"{address} says more than {MAX_BYTES} bytes")
    return bytes(body)


def _check_times(raw: Mapping[str, Any], now: float) -> None:
    """By our clock, which tests move: the library would ask the system's."""
    ends, begins = raw["exp"], (raw["iat"], raw.get("nbf", raw["iat"]))
    if not all(isinstance(one, int | float) for one in (ends, *begins)):
        raise ProviderRefused("OIDC_TOKEN_REFUSED", "times of the ID token are not numbers")
    if now >= ends + SKEW.total_seconds() or max(begins) > now + SKEW.total_seconds():
        raise ProviderRefused("OIDC_TOKEN_REFUSED", "the ID token has ended, or is of the future")


def _second_factor(provider: OidcProvider, claims: _Claims) -> bool:
    return claims.acr in provider.acr or not provider.amr.isdisjoint(claims.amr)


def _text(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")
