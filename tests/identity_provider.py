"""A small identity provider on loopback: OpenID Connect's code flow with PKCE, and a liar where a test asks for one."""

import asyncio
import base64
import hashlib
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qsl, urlencode

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, RedirectResponse
from jwt.algorithms import RSAAlgorithm

from cohortium_kit.http import serve
from cohortium_kit.testing.clock import ManualClock

CLIENT, SECRET = "cohortium", "the-clients-secret"
Claims = dict[str, Any]


def make_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


class IdentityProvider:
    """`bend` changes the claims before they are signed; `sign` makes the token of them."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.key = make_key()
        self.issuer = ""
        self.subject = "sub-42"
        self.codes: dict[str, dict[str, str]] = {}
        self.asked: list[dict[str, str]] = []
        self.bend: Callable[[Claims], Claims] = lambda claims: claims
        self.sign: Callable[[Claims], str] = self.signed

    def signed(self, claims: Claims) -> str:
        return jwt.encode(claims, self.key, "RS256", headers={"kid": "one"})

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/.well-known/openid-configuration")
        async def discovery() -> dict[str, str]:
            ends = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "keys"}
            return {"issuer": self.issuer} | {name: f"{self.issuer}/{end}" for name, end in ends.items()}

        @app.get("/keys")
        async def keys() -> dict[str, Any]:
            return {"keys": [RSAAlgorithm.to_jwk(self.key.public_key(), as_dict=True) | {"kid": "one", "use": "sig"}]}

        @app.get("/authorize")
        async def authorize(request: Request) -> RedirectResponse:
            asked = dict(request.query_params)
            assert (asked["response_type"], asked["code_challenge_method"]) == ("code", "S256")
            self.asked.append(asked)
            code = secrets.token_urlsafe(16)
            self.codes[code] = asked
            back = urlencode({"code": code, "state": asked["state"], "iss": self.issuer})
            return RedirectResponse(f"{asked['redirect_uri']}?{back}", 303)

        @app.post("/token")
        async def token(request: Request) -> JSONResponse:
            form = dict(parse_qsl((await request.body()).decode()))
            login = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
            asked = self.codes.pop(form["code"], None)
            digest = (
                base64.urlsafe_b64encode(hashlib.sha256(form["code_verifier"].encode()).digest()).decode().rstrip("=")
            )
            if (
                asked is None
                or request.headers["authorization"] != f"Basic {login}"
                or asked["code_challenge"] != digest
                or asked["redirect_uri"] != form["redirect_uri"]
            ):
                return JSONResponse({"error": "invalid_grant"}, 400)
            now = int(self.clock.now().timestamp())
            claims = {"iss": self.issuer, "sub": self.subject, "aud": CLIENT, "iat": now, "exp": now + 300}
            claims |= {"nonce": asked["nonce"], "amr": ["pwd", "otp"], "auth_time": now}
            return JSONResponse({"id_token": self.sign(self.bend(claims)), "access_token": "x", "token_type": "Bearer"})

        return app


@asynccontextmanager
async def running(clock: ManualClock) -> AsyncIterator[IdentityProvider]:
    """The provider, on a port of its own."""
    provider, stop, ports = IdentityProvider(clock), asyncio.Event(), asyncio.Queue[int]()
    serving = asyncio.create_task(serve(provider.app(), "127.0.0.1", 0, stop, on_port=ports.put_nowait))
    provider.issuer = f"http://127.0.0.1:{await ports.get()}"
    try:
        yield provider
    finally:
        stop.set()
        await serving
