"""Consent documents in the hospital: vouch for people, sign, add, look, and ask what may be worked on and why not."""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar, get_args

from pydantic import ValidationError

from cohortium_connector.consent_commands import LocalConsent
from cohortium_connector.settings import ConnectorSettings
from cohortium_connector.spool import own_key
from cohortium_kit.errors import ConfigurationError
from cohortium_messages.consent import ConsentFile, Deed
from cohortium_protocol.consent.authorise import name_of, told
from cohortium_protocol.consent.files import about, sign_documents
from cohortium_protocol.consent.intake import NotAccepted
from cohortium_protocol.consent.records import standing
from cohortium_protocol.consent.signing import record_digest

T = TypeVar("T")
Act = Callable[[argparse.Namespace], int]
Add = Callable[[str, str, Act], argparse.ArgumentParser]
DONE, FAILED, USAGE = 0, 1, 2


def add_commands(add: Add) -> None:
    """The commands of this module; `add` makes one that knows `--config`."""
    key = add("consent-key", "Make a person's key, or show its public half.", _key)
    key.add_argument("key", type=Path, help="the key file, readable by its owner only")
    vouch = add("consent-vouch", "Vouch, as the hospital, for the people whose cards are in a file.", _vouch)
    sign = add("consent-sign", "Sign every document in a file: name, moment and meaning are in the signature.", _sign)
    sign.add_argument("--deed", required=True, choices=get_args(Deed), help="submit: as the author")
    sign.add_argument("--name", required=True, help="the printed name of the person who signs")
    sign.add_argument("--key", required=True, type=Path, help="the person's key file")
    put = add("consent-add", "Keep documents, signatures and cards, and share what is about this hospital.", _add)
    get = add("consent-get", "Write a document with all its signatures to a file.", _get)
    get.add_argument("record", help="the document's digest, or its beginning")
    for command in (vouch, sign, put, get):
        command.add_argument("file", type=Path, help="a consent file, JSON")
    add("consent-list", "Every document, and how it stands now.", _list)
    check = add("consent-check", "May a study be worked on? Every reason against it; exit code 1 if not.", _check)
    check.add_argument("study", help="the study's name, or the beginning of its digest")
    check.add_argument("--round", type=int, default=1, help="which round")
    check.add_argument("--at", type=datetime.fromisoformat, help="another moment than now, such as 2027-01-31T00:00Z")


def _key(options: argparse.Namespace) -> int:
    _say(own_key(options.key).public.hex())
    return DONE


def _vouch(options: argparse.Namespace) -> int:
    file = _read(options.file)

    async def vouch(site: LocalConsent) -> ConsentFile:
        try:
            return file.model_copy(update={"people": tuple(site.vouch(card) for card in file.people)})
        except ValueError as error:
            raise ConfigurationError(str(error)) from None

    _write(options.file, _here(options, vouch))
    _say(f"{options.file}: {len(file.people)} cards vouched for")
    return DONE


def _sign(options: argparse.Namespace) -> int:
    if not options.key.exists():
        raise ConfigurationError(f"--key {options.key}: there is no such file; make one with consent-key")
    file = _read(options.file)
    now = datetime.now(UTC)
    _write(options.file, sign_documents(file, options.deed, options.name, now, own_key(options.key)))
    _say(f"{options.file}: {options.deed} by {options.name}, {len(file.records)} signatures")
    return DONE


def _add(options: argparse.Namespace) -> int:
    file = _read(options.file)
    try:
        changed = _here(options, lambda site: site.add(file))
    except NotAccepted as refused:
        sys.stderr.write(f"error: {options.file}: {refused.field}: {refused}\n")
        return USAGE
    _say(f"{options.file}: {len(changed)} of its parts were new")
    return DONE


def _get(options: argparse.Namespace) -> int:
    everything = _here(options, lambda site: site.file())
    digests = [record_digest(one.document) for one in everything.records]
    found = [digest for digest in digests if digest.hex().startswith(options.record)]
    if len(found) != 1:
        raise ConfigurationError(f"{options.record}: {len(found)} documents begin so; consent-list shows their digests")
    _write(options.file, about(everything, frozenset(found)))
    return DONE


def _list(options: argparse.Namespace) -> int:
    dossier, now = _here(options, lambda site: site.dossier()), datetime.now(UTC)
    for digest, one in sorted(dossier.records.items()):
        word, moment = standing(one.document, one.state, now)
        _say(f"{digest.hex()[:12]}  {name_of(one.document)}  {word}{'' if moment is None else f' {moment:%Y-%m-%d}'}")
    if not dossier.records:
        _say("No document is here yet.")
    return DONE


def _check(options: argparse.Namespace) -> int:
    at = options.at if options.at is None or options.at.tzinfo else options.at.replace(tzinfo=UTC)
    verdict = _here(options, lambda site: site.check(options.study, options.round, at))
    for reason in verdict.reasons:
        _say(f"{reason.code}: {told(reason)}")
    if not verdict.reasons:
        _say(f"{verdict.study} may be worked on in round {verdict.round} ({verdict.governance})")
    return FAILED if verdict.reasons else DONE


def _here(options: argparse.Namespace, ask: Callable[[LocalConsent], Awaitable[T]]) -> T:
    async def inside() -> T:
        async with LocalConsent.open(ConnectorSettings.load(options.config)) as site:
            return await ask(site)

    return asyncio.run(inside())


def _read(path: Path) -> ConsentFile:
    try:
        return ConsentFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole of it"
        raise ConfigurationError(f"{path}: {place}: {first['msg']}; ask for the file again") from None


def _write(path: Path, file: ConsentFile) -> None:
    try:
        path.write_text(file.model_dump_json(indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
