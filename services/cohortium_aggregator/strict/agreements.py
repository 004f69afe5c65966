"""What the sites of a session agree to, byte for byte: the header of the model, the trees of a round, the end."""

import json
from dataclasses import dataclass, field
from typing import Any

from cohortium_aggregator.tree_models import check_first, check_round
from cohortium_messages.study import Study
from cohortium_protocol.errors import RemoteFault
from cohortium_protocol.trees.binning import Binning

MAX_END_BYTES = 4096


class AgreementRefused(RemoteFault):
    """All sites agree to what no training can lead to."""

    code = "AGREEMENT_REFUSED"


@dataclass(frozen=True, slots=True)
class Header:
    """The text before the first tree."""

    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Grown:
    """The text of the trees of the next boosting round."""

    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class End:
    """Training is over: the first `keep` of `rounds` rounds are the model."""

    keep: int
    rounds: int


Agreement = Header | Grown | End


def agreement(study: Study, rules: Binning, content: bytes) -> Agreement:
    """What `content` says, checked as text that LightGBM may be given. Raises `RemoteFault`."""
    said = content[1:]
    match content[:1]:
        case b"H":
            check_first(study, rules, said)
            return Header(said)
        case b"T":
            check_round(study, rules, said)
            return Grown(said)
        case b"E":
            return _end(said)
        case _:
            raise AgreementRefused("neither a header nor trees nor an end")


def _end(said: bytes) -> End:
    if len(said) > MAX_END_BYTES:
        raise AgreementRefused(f"an end of {len(said)} bytes")
    try:
        found: Any = json.loads(said)
        keep, rounds = found["best_round"], found["rounds"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise AgreementRefused("the end does not say its rounds") from None
    if type(keep) is not int or type(rounds) is not int or not 1 <= keep <= rounds:
        raise AgreementRefused("the end's rounds cannot be")
    return End(keep, rounds)
