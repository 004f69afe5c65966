"""Is a consent file worth keeping? All in it must prove itself and do something, or the file is refused whole."""

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from cohortium_messages.consent import Act, ConsentFile
from cohortium_messages.ids import SiteId
from cohortium_protocol.consent.authorise import Dossier, name_of
from cohortium_protocol.consent.files import acts_of, merge, verify_file
from cohortium_protocol.consent.people import Directory
from cohortium_protocol.consent.records import COMMANDS, SKEW, fold, in_order, objection
from cohortium_protocol.consent.rules import replaces, rule_of, takes_place_of
from cohortium_protocol.consent.signing import act_digest, card_digest, record_digest, verify_card
from cohortium_protocol.documents import GovernancePin
from cohortium_protocol.errors import RemoteFault


class NotAccepted(Exception):
    """A file is not taken. `code` is stable, `field` says where, the text what and what to do."""

    def __init__(self, code: str, field: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.field = field


REFUSALS: Final[Mapping[str, str]] = {
    "ROLE_MISSING": "this person has no role here that may do it; see the table of duties, or have a card made",
    "OWN_RECORD": "whoever wrote a document cannot approve it; another person has to",
    "SIGNED_ALREADY": "this person has signed already; another person has to",
    "WRONG_STATE": "it changes nothing in the state that the document is in",
    "NOT_THE_LENDER": "a delegation is written by the person who lends the role",
    "SIGNER_UNKNOWN": "nobody vouches for this key; add the person's card, signed by the hospital or by officers",
    "DATED_TOO_EARLY": "it is dated before what it follows, so it would never count; set the clock and sign again",
    "IN_THE_FUTURE": "the signature is dated more than five minutes ahead; set the clock and sign again",
}


def check_file(
    known: ConsentFile, file: ConsentFile, pin: GovernancePin, sites: Mapping[SiteId, bytes], now: datetime
) -> list[Act]:
    """The acts of `file` that are new to `known`, each of which does something. `sites`: hospitals' identity keys.

    Raises `NotAccepted` for a signature that does not hold, a card nobody vouches for, or an act without effect.
    """
    try:
        verify_file(file)
    except RemoteFault as fault:
        raise NotAccepted("bad_signature", "records", f"an act is not signed as it must be: {fault}") from None
    _check_people(known, file, pin, sites)
    _check_places(known, file)
    merged = merge(known, ConsentFile(people=file.people))
    people = Dossier.judge(merged, pin, sites, now).people
    before = {act_digest(act) for act in acts_of(known)}
    found = _check_acts(known, file, people, before, now)
    return found + _check_endings(file, Dossier.judge(merge(merged, file), pin, sites, now).people, before)


def _check_people(known: ConsentFile, file: ConsentFile, pin: GovernancePin, sites: Mapping[SiteId, bytes]) -> None:
    before = {card_digest(card) for card in known.people}
    for place, card in enumerate(file.people):
        if card_digest(card) in before:
            continue
        try:
            verify_card(card, pin, sites)
        except RemoteFault as fault:
            text = f"{fault}; have the card of {card.person} signed by the hospital, or by enough officers"
            raise NotAccepted("card_refused", f"people.{place}", text) from None


def _check_places(known: ConsentFile, file: ConsentFile) -> None:
    """A document that would take the place of one about something else would take nobody's."""
    documents = {record_digest(one.document): one.document for one in (*known.records, *file.records)}
    for place, record in enumerate(file.records):
        older = documents.get(replaces(record.document) or b"")
        if older is not None and not takes_place_of(record.document, older):
            text = (
                f"{name_of(record.document)} cannot take the place of {name_of(older)}: it must be of the same kind, "
                "hospital and study, and an agreement have all parties of the older one"
            )
            raise NotAccepted("supersedes_another", f"records.{place}.document.supersedes", text)


def _check_acts(
    known: ConsentFile, file: ConsentFile, people: Directory, before: set[bytes], now: datetime
) -> list[Act]:
    acts = {record_digest(one.document): one.acts for one in known.records}
    found = []
    for place, record in enumerate(file.records):
        old = acts.get(record_digest(record.document), ())
        fresh = in_order(act for act in record.acts if act_digest(act) not in before)
        mine = people.with_delegations(()) if record.document.kind == "delegation" else people
        state = fold(record.document, old, mine, now)
        for number, act in enumerate(fresh):
            command = COMMANDS[act.deed](mine.signer(act.key, act.at), act.at)
            code = _refusal(act, mine, now) or objection(state, command, rule_of(record.document))
            after = fold(record.document, (*old, *fresh[: number + 1]), mine, now)
            if code is None and after == state:  # acts count in the order of their moments, not of their arrival
                code = "DATED_TOO_EARLY"
            if code is not None:
                text = f"{act.deed} of {name_of(record.document)} by {act.name}: {REFUSALS[code]}"
                raise NotAccepted(code.lower(), f"records.{place}.acts", text)
            state = after
            found.append(act)
    return found


def _check_endings(file: ConsentFile, people: Directory, before: set[bytes]) -> list[Act]:
    fresh = [act for act in file.ended_cards if act_digest(act) not in before]
    for act in fresh:
        if act.record not in people.ended:
            text = f"{act.name} may not end this card: its holder, its hospital's people and officers may"
            raise NotAccepted("role_missing", "ended_cards", text)
    return fresh


def _refusal(act: Act, people: Directory, now: datetime) -> str | None:
    signer = people.signer(act.key, act.at)
    if not signer.own and not signer.lent:
        return "SIGNER_UNKNOWN"
    return "IN_THE_FUTURE" if act.at > now + SKEW else None
