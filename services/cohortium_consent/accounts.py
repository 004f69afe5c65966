"""Accounts and roles: who adds whom, who gives which role to whom. Every change is on record.

Nobody changes their own account, and nobody gives more than they reach. The first officer is made by the operator's
token, once.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from cohortium_consent import people_store as store
from cohortium_consent.people_store import Person
from cohortium_consent.sign_in import without_secrets
from cohortium_kit.db import Database, Tx
from cohortium_kit.envelopes import Sender
from cohortium_kit.http import HttpProblem
from cohortium_messages.people import Assignment, Assignments, AuthRoleChanged, Role
from cohortium_platform.people.guard import Caller, Reach, outside
from cohortium_platform.people.passwords import new_token, token_digest
from cohortium_platform.people.rights import together
from cohortium_platform.recording import put_on_record

SETUP_S: Final = 72 * 3600.0
"""So long a one-time token is good."""


class Accounts:
    """Everybody's accounts. Holds no state."""

    def __init__(self, db: Database, sender: Sender) -> None:
        self._db = db
        self._sender = sender

    async def first(self, person: str, name: str) -> str:
        """The first officer, made by the operator's token; from then on officers add people. The set-up token."""
        token = new_token()

        async def save(tx: Tx) -> None:
            if await store.people_with(tx, Role.OFFICER):
                raise HttpProblem(409, "officers_exist", "there is an officer; officers add people and give roles")
            await self._create(tx, person, name, token)
            await self._give(tx, person, (Assignment(role=Role.OFFICER),), None)

        await self._db.run("first_person", save)
        return token

    async def add(
        self, by: Caller, reach: Reach, person: tuple[str, str], given: Assignments, at: tuple[str, str] | None
    ) -> str | None:
        """A new account (`person`: id and name) with its first roles: with an identity at a provider (`at`: issuer and
        subject), or with the one-time token that is returned."""
        token = None if at is not None else new_token()

        async def save(tx: Tx) -> None:
            if not reach.everywhere and not given:
                raise HttpProblem(422, "roles_missing", "give at least one role at your hospital")
            await self._create(tx, *person, token)
            if at is not None:
                if await store.person_of_identity(tx, *at) is not None:
                    raise HttpProblem(409, "identity_taken", "somebody has this identity already")
                await store.add_identity(tx, *at, person[0])
            _check_given(reach, given)
            await self._give(tx, person[0], given, by.person)

        await self._db.run("add_person", save)
        return token

    async def set_roles(
        self, by: Caller, reach: Reach, person: str, given: tuple[Assignment, ...]
    ) -> tuple[Assignment, ...]:
        """The person's roles within the caller's reach are these from now on; those beyond it stay."""

        async def save(tx: Tx) -> tuple[Assignment, ...]:
            await self._other(tx, by, person)
            _check_given(reach, given)
            held = (await store.roles(tx, [person])).get(person, ())
            kept = tuple(one for one in held if not _reaches(reach, one))
            if not reach.everywhere and held and len(kept) == len(held):
                raise outside(f"{person}, who has no role at your hospital")
            return await self._give(tx, person, (*kept, *given), by.person)

        return await self._db.run("set_roles", save)

    async def reset(self, by: Caller, reach: Reach, person: str) -> str:
        """A new one-time token; password, authenticator and sessions of the person are gone."""
        token = new_token()

        async def save(tx: Tx) -> None:
            found = await self._other(tx, by, person)
            await self._wholly_within(tx, reach, person)
            fresh = replace(without_secrets(found), setup_digest=token_digest(token), setup_ends_at=tx.now + SETUP_S)
            await store.save_person(tx, fresh, "reset")
            await store.end_sessions(tx, person)

        await self._db.run("reset_person", save)
        return token

    async def end(self, by: Caller, reach: Reach, person: str) -> None:
        """The account is over: name, identities, secrets, sessions and roles are erased; the opaque id stays taken."""

        async def save(tx: Tx) -> None:
            found = await self._other(tx, by, person)
            await self._wholly_within(tx, reach, person)
            await store.save_person(tx, replace(without_secrets(found), name="", ended=True), "end")
            await store.erase_identities(tx, person)
            await store.end_sessions(tx, person)
            await self._give(tx, person, (), by.person)

        await self._db.run("end_person", save)

    async def _create(self, tx: Tx, person: str, name: str, token: str | None) -> None:
        if await store.person(tx, person) is not None:
            raise HttpProblem(409, "person_exists", f"{person} is taken, or was once; choose another id")
        digest = None if token is None else token_digest(token)
        ends = None if token is None else tx.now + SETUP_S
        await store.save_person(tx, Person(person, name, setup_digest=digest, setup_ends_at=ends), "add")

    async def _give(self, tx: Tx, person: str, given: Iterable[Assignment], by: str | None) -> tuple[Assignment, ...]:
        roles = tuple(dict.fromkeys(given))
        pair = together(frozenset(one.role for one in roles))
        if pair is not None:
            raise HttpProblem(409, "roles_exclude", f"one person is not both {pair[0]} and {pair[1]}")
        await store.set_roles(tx, person, roles)
        event = AuthRoleChanged(person=person, by=by, roles=roles)
        await put_on_record(tx, self._sender, event, study=None)
        return roles

    async def _other(self, tx: Tx, by: Caller, person: str) -> Person:
        """Somebody else's account: nobody gives themselves a role, or ends or resets themselves."""
        if by.person == person:
            raise HttpProblem(403, "own_account", "somebody else must do this: nobody changes their own account")
        found = await store.person(tx, person)
        if found is None or found.ended:
            raise HttpProblem(404, "person_unknown", f"there is no {person}; GET /people lists people")
        return found

    async def _wholly_within(self, tx: Tx, reach: Reach, person: str) -> None:
        # Whoever resets an account can take it over, so all of its roles must be theirs to give.
        held = (await store.roles(tx, [person])).get(person, ())
        if not reach.everywhere and not (held and all(_reaches(reach, one) for one in held)):
            raise outside(f"all roles of {person}")

    async def listed(self, reach: Reach, after: str, limit: int) -> list[tuple[Person, tuple[Assignment, ...]]]:
        """So many accounts within reach with their roles, in the order of their ids, behind `after`."""
        async with self._db.reading("list_people") as tx:
            only = None if reach.everywhere else await store.people_with(tx, sites=reach.sites)
            found = await store.people(tx, after, limit, only)
            held = await store.roles(tx, [one.person for one in found])
        return [
            (one, tuple(role for role in held.get(one.person, ()) if reach.everywhere or _reaches(reach, role)))
            for one in found
        ]

    async def known(self, person: str) -> tuple[Person, tuple[Assignment, ...]]:
        """One account and its roles. Raises `HttpProblem` 404."""
        async with self._db.reading("known_person") as tx:
            found = await store.person(tx, person)
            held = (await store.roles(tx, [person])).get(person, ())
        if found is None:
            raise HttpProblem(404, "person_unknown", f"there is no {person}")
        return found, held


def _reaches(reach: Reach, one: Assignment) -> bool:
    return reach.covers(study=one.study_id, site=one.site_id)


def _check_given(reach: Reach, given: Iterable[Assignment]) -> None:
    for one in given:
        if not _reaches(reach, one):
            raise outside(f"the role {one.role} at {one.site_id or one.study_id or 'the federation'}")
