"""Signing in, sessions, stepping up. What each does is on record in the platform's log.

Passwords are for pilots, and for the first officer; an identity provider is `oidc`'s affair. Guessing is bounded per
person and address before a password is looked at, so guesses made side by side count, too.
"""

import asyncio
import hmac
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, TypeVar

import structlog
from fastapi import Request
from nacl.secret import SecretBox

from cohortium_consent import people_store as store
from cohortium_consent.people_store import Person, Session
from cohortium_kit.clock import Clock
from cohortium_kit.db import Database, Tx
from cohortium_kit.envelopes import Sender
from cohortium_kit.errors import TransactionConflict
from cohortium_kit.http import HttpProblem
from cohortium_messages.events import AuditEvent
from cohortium_messages.people import (
    AuthFailed,
    AuthFailedAgain,
    AuthLogin,
    AuthSteppedUp,
    Method,
)
from cohortium_platform.people.guard import COOKIE, Caller
from cohortium_platform.people.passwords import (
    TOTP_BYTES,
    PasswordRefused,
    check_password,
    hashed,
    matches,
    new_token,
    token_digest,
    totp_step,
)
from cohortium_platform.recording import put_on_record

log = structlog.get_logger(__name__)

T = TypeVar("T")

IDLE_S: Final = 15 * 60.0
LASTS_S: Final = 8 * 3600.0
SEEN_EVERY_S: Final = 60.0
WINDOW_S: Final = 15 * 60.0
MOST_PER_PAIR, MOST_PER_PERSON, MOST_PER_ADDRESS = 5, 30, 300
"""Failures within the window. A person is locked out by an address only for that address, up to a bound."""
TOLD: Final = "told "
"""How the sources begin whose failures are on record."""
MOST_TOLD: Final = 8
"""Failures within the window that are told to the log one by one, of one person or of nobody known: a power of two.
From then on each event stands for as many as all before it, so that who guesses for ever cannot fill the log."""
AT_ONCE, WAITING = 2, 32
"""Passwords looked at side by side, 64 MiB each; more than so many waiting are sent away."""
CSRF_HEADER: Final = "x-csrf-token"
WITHOUT_MFA: Final = frozenset({"/people/me", "/people/totp", "/people/totp/confirm", "/people/sign-out"})
"""Where somebody may go who has not shown a second factor that is asked for."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A session that has just begun: the cookie's value is shown once."""

    token: str
    session: Session


class People:
    """The people of the federation. Holds no state but how many passwords are being looked at."""

    def __init__(self, db: Database, sender: Sender, clock: Clock, seal_key: bytes, *, require_mfa: bool) -> None:
        self._db = db
        self._sender = sender
        self._clock = clock
        self._box = SecretBox(seal_key)
        self._require_mfa = require_mfa
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._inside = 0

    @property
    def _now(self) -> float:
        return self._clock.now().timestamp()

    # Sessions

    async def find_caller(self, request: Request) -> Caller | None:
        """Who a request's session is; None without a good one. Raises `HttpProblem` for a change without its token."""
        token = request.cookies.get(COOKIE, "")
        async with self._db.reading("find_caller") as tx:
            found = await store.session(tx, token_digest(token))
            if found is None or not self._good(found):
                return None
            held = (await store.roles(tx, [found.person])).get(found.person, ())
        _check_same_origin(request, token)
        if self._require_mfa and not found.mfa and request.url.path not in WITHOUT_MFA:
            raise HttpProblem(403, "second_factor_needed", "set up an authenticator (POST /people/totp), sign in again")
        if self._now - found.seen_at > SEEN_EVERY_S:
            async with self._db.transaction("touch_session") as tx:
                await store.touch_session(tx, found.session_digest, seen_at=tx.now)
        return Caller(found.person, held, _moment(found.proved_at))

    async def session_of(self, token: str) -> Session:
        """The session of a cookie. Raises `HttpProblem` 401."""
        async with self._db.reading("session_of") as tx:
            found = await store.session(tx, token_digest(token))
        if found is None or not self._good(found):
            raise HttpProblem(401, "not_authorised", "the session has ended; sign in again")
        return found

    def _good(self, session: Session) -> bool:
        return self._now - session.seen_at < IDLE_S and self._now - session.began_at < LASTS_S

    async def open(self, tx: Tx, person: str, method: Method, *, mfa: bool) -> Opened:
        """A new session, on record."""
        await self._tell_rest(tx)
        await store.forget_before(tx, tx.now - LASTS_S, tx.now - WINDOW_S)
        token = new_token()
        session = Session(token_digest(token), person, method, mfa, tx.now, tx.now, tx.now)
        await store.add_session(tx, session)
        await self.record(tx, AuthLogin(person=person, method=method, mfa=mfa))
        return Opened(token, session)

    async def stepped_up(self, tx: Tx, session: Session, *, mfa: bool) -> None:
        """The person of a session showed who they are, again; on record."""
        await store.touch_session(tx, session.session_digest, proved_at=tx.now, mfa=mfa or session.mfa)
        await self.record(tx, AuthSteppedUp(person=session.person, method=session.method, mfa=mfa))

    async def sign_out(self, token: str) -> None:
        async with self._db.transaction("sign_out") as tx:
            await store.end_session(tx, token_digest(token))

    # Local accounts

    async def sign_in(self, person: str, password: str, code: str | None, address: str) -> Opened:
        """A session for who knows the password, and has the authenticator where one is set up."""
        mfa = await self._prove(person, password, code, address)
        return await self._db.run("sign_in", lambda tx: self.open(tx, person, "local", mfa=mfa))

    async def step_up(self, token: str, password: str, code: str | None, address: str) -> Session:
        """The session, proved anew with the password of its person."""
        session = await self.session_of(token)
        if session.method != "local":
            raise HttpProblem(
                409, "not_local", "the session is an identity provider's: step up there, with step_up=true"
            )
        mfa = await self._prove(session.person, password, code, address)
        await self._db.run("step_up", lambda tx: self.stepped_up(tx, session, mfa=mfa))
        return await self.session_of(token)

    async def set_up(self, person: str, token: str, password: str, address: str) -> None:
        """Set the password with a one-time token: it ends every session and any authenticator of the person."""
        await self._take_turn(person, address)
        digest = token_digest(token)

        def fits(found: Person | None) -> bool:
            kept = b"" if found is None or found.setup_digest is None else found.setup_digest
            return hmac.compare_digest(kept, digest) and found is not None and (found.setup_ends_at or 0) > self._now

        async with self._db.reading("set_up") as tx:
            known = await store.person(tx, person)
        if not fits(known):
            raise await self._refused(None if known is None else person)
        try:
            check_password(password, person)
        except PasswordRefused as refused:
            raise HttpProblem(422, "password_refused", str(refused)) from None
        kept = await self._slow(hashed, password)

        async def save(tx: Tx) -> bool:
            found = await store.person(tx, person)
            if found is None or not fits(found):
                return False
            await store.save_person(tx, replace(without_secrets(found), password_hash=kept), "set_up")
            await store.end_sessions(tx, person)
            await self._forgive(tx, person, address)
            return True

        if not await self._db.run("set_up", save):
            raise await self._refused(person)

    async def new_totp(self, token: str) -> bytes:
        """A fresh secret for the person's authenticator; it counts once a code of it was shown."""
        session = await self.session_of(token)
        secret = secrets.token_bytes(TOTP_BYTES)

        async def save(tx: Tx) -> None:
            found = await store.person(tx, session.person)
            if found is None or found.totp_confirmed or found.password_hash is None:
                raise HttpProblem(409, "authenticator_exists", "an officer can reset the account to set up another one")
            sealed = bytes(self._box.encrypt(secret))
            await store.save_person(tx, replace(found, totp_sealed=sealed), "new_totp")

        await self._db.run("new_totp", save)
        return secret

    async def confirm_totp(self, token: str, code: str, address: str) -> None:
        """From now on the authenticator is asked for at each sign-in."""
        session = await self.session_of(token)
        await self._take_turn(session.person, address)

        async def save(tx: Tx) -> bool:
            found = await store.person(tx, session.person)
            step = None if found is None else self._step(found, code)
            if found is None or step is None:
                return False
            await store.save_person(tx, replace(found, totp_confirmed=True, totp_last_step=step), "confirm_totp")
            await self.stepped_up(tx, session, mfa=True)
            await self._forgive(tx, session.person, address)
            return True

        if not await self._db.run("confirm_totp", save):
            raise await self._refused(session.person)

    async def _prove(self, person: str, password: str, code: str | None, address: str) -> bool:
        """Whether a second factor was shown beside the password. Raises `HttpProblem`, the same for every fault."""
        await self._take_turn(person, address)
        async with self._db.reading("sign_in") as tx:
            found = await store.person(tx, person)
        usable = found is not None and not found.ended
        right = await self._slow(matches, found.password_hash if found is not None and usable else None, password)
        if found is None or not right:
            raise await self._refused(person if usable else None)
        if not found.totp_confirmed:
            await self._db.run("forgive", lambda tx: self._forgive(tx, person, address))
            return False
        if code is None:
            raise HttpProblem(401, "code_needed", "send the authenticator's code with the password")

        async def use(tx: Tx) -> bool:
            now = await store.person(tx, person)
            step = None if now is None else self._step(now, code)
            if now is None or step is None or now.password_hash != found.password_hash:
                return False
            await store.save_person(tx, replace(now, totp_last_step=step), "sign_in")
            await self._forgive(tx, person, address)
            return True

        if not await self._db.run("sign_in", use):
            raise await self._refused(person)
        return True

    def _step(self, found: Person, code: str) -> int | None:
        if found.totp_sealed is None:
            return None
        return totp_step(self._box.decrypt(found.totp_sealed), code, self._now, found.totp_last_step)

    async def _take_turn(self, person: str, address: str) -> None:
        """Count a failure before anything is looked at; who succeeds is forgiven. Raises `HttpProblem` 429."""
        since = self._now - WINDOW_S

        async def count(tx: Tx) -> bool:
            sources = _sources(person, address)
            if any([await store.failures(tx, source, since) >= most for source, most in sources.items()]):
                return False
            for source in sources:
                await store.count_failure(tx, source, since)
            return True

        try:
            counted = await self._db.run("count_attempt", count)
        except TransactionConflict:
            # Many attempts at one account at once; none was counted, so none is looked at.
            raise busy() from None
        if not counted:
            text = "too many attempts failed; wait a quarter of an hour"
            raise HttpProblem(429, "too_many_attempts", text, retry_after_s=int(WINDOW_S))

    async def _forgive(self, tx: Tx, person: str, address: str) -> None:
        # Not the address: who has one account could go on guessing others from there.
        for source in list(_sources(person, address))[:2]:
            await store.forgive(tx, source)

    async def _refused(self, person: str | None, method: Method = "local") -> HttpProblem:
        await self.failed(person, method, "SIGN_IN_REFUSED")
        return HttpProblem(401, "sign_in_refused", "person, password, token or code is wrong, or has ended")

    async def failed(self, person: str | None, method: Method, reason: str) -> None:
        """Somebody did not get in; on record, so often and no more (`MOST_TOLD`)."""
        source = f"{TOLD}{method} {reason} {'' if person is None else person}"

        async def tell(tx: Tx) -> None:
            since = tx.now - WINDOW_S
            await self._tell_rest(tx)
            await store.count_failure(tx, source, since)
            failures = await store.failures(tx, source, since)
            if failures <= MOST_TOLD:
                await self.record(tx, AuthFailed(person=person, method=method, reason=reason))
            elif failures.bit_count() == 1:
                await self.record(tx, AuthFailedAgain(person=person, method=method, count=failures // 2))

        try:
            await self._db.run("sign_in_failed", tell)
        except TransactionConflict:
            # Very many fail at once: those that are counted are told of, and none of them gets in.
            log.warning("sign_in_failures_not_counted")

    async def _tell_rest(self, tx: Tx) -> None:
        """Failures after the last that was told, of a quarter of an hour that is over: told when next somebody signs
        in, or fails to."""
        for source, failures in await store.ended_attempts(tx, TOLD, tx.now - WINDOW_S):
            method, _, person = source.removeprefix(TOLD).split(" ", 2)
            rest = failures - (1 << failures.bit_length() - 1)
            if failures > MOST_TOLD and rest:
                again = {"person": person or None, "method": method, "count": rest}
                await self.record(tx, AuthFailedAgain.model_validate(again))
            await store.forgive(tx, source)

    async def _slow(self, work: Callable[..., T], *given: str | None) -> T:
        if self._inside >= AT_ONCE + WAITING:
            raise busy()
        self._inside += 1
        try:
            async with self._turns:
                return await asyncio.to_thread(work, *given)
        finally:
            self._inside -= 1

    async def record(self, tx: Tx, event: AuditEvent) -> None:
        """Put an event on record, in the transaction that it is about."""
        await put_on_record(tx, self._sender, event, study=None)


def busy() -> HttpProblem:
    """The answer while more people sign in at once than can be served."""
    return HttpProblem(503, "busy", "many people are signing in; try again in a moment", retry_after_s=2)


def csrf_of(token: str) -> str:
    """What a page sends with each change beside its cookie: a stranger's page may send the cookie, not this."""
    return urlsafe_b64encode(hmac.digest(token.encode(), b"cohortium/csrf/1", "sha256")).decode().rstrip("=")


def _check_same_origin(request: Request, token: str) -> None:
    if request.method in {"GET", "HEAD"}:
        return
    if request.headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
        raise HttpProblem(403, "cross_site", "another site's page sent this; use our own")
    given = request.headers.get(CSRF_HEADER, "")
    if not hmac.compare_digest(given.encode(), csrf_of(token).encode()):
        raise HttpProblem(403, "csrf_token_missing", "send the `csrf` of GET /people/me as X-CSRF-Token")


def _sources(person: str, address: str) -> dict[str, int]:
    return {
        f"both {person} {address}": MOST_PER_PAIR,
        f"person {person}": MOST_PER_PERSON,
        f"address {address}": MOST_PER_ADDRESS,
    }


def without_secrets(found: Person) -> Person:
    """The account with no password, token or authenticator."""
    return Person(found.person, found.name, found.ended)


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
