"""What a hospital's data-use terms promise becomes of models that learnt from it, when it or its patients leave."""

from collections.abc import Iterator
from datetime import datetime
from typing import Final

from cohortium_messages.consent import ConsentFile, DataUseTerms, Document, Effect, GrantBasis, WithdrawalType
from cohortium_messages.ids import SiteId
from cohortium_protocol.consent.people import Directory
from cohortium_protocol.consent.records import took_effect
from cohortium_protocol.consent.signing import record_digest

_STRENGTH: Final[tuple[Effect, ...]] = ("stop_future", "retrain", "retire")
"""From the least to the most: the models stay, are made anew without who left, or are used no more."""


def is_weaker(effect: Effect, promised: Effect) -> bool:
    """Whether an effect falls short of what was promised."""
    return _STRENGTH.index(effect) < _STRENGTH.index(promised)


def promised_effect(
    file: ConsentFile, people: Directory, site_id: SiteId, study_digest: bytes, type_: WithdrawalType, now: datetime
) -> Effect | None:
    """The least that is to follow when this hospital, or patients of it, leave this study version: the strictest of the
    terms under any approval of it that ever counted. None without any, as in a trial."""
    counted: dict[bytes, Document] = {
        record_digest(one.document): one.document
        for one in file.records
        if isinstance(one.document, GrantBasis | DataUseTerms)
        and took_effect(one.document, one.acts, people, now) is not None
    }
    effects = tuple(_effects(counted, site_id, study_digest, type_))
    return max(effects, key=_STRENGTH.index, default=None)


def _effects(
    counted: dict[bytes, Document], site_id: SiteId, study_digest: bytes, type_: WithdrawalType
) -> Iterator[Effect]:
    for basis in counted.values():
        if not isinstance(basis, GrantBasis) or (basis.site_id, basis.study_digest) != (site_id, study_digest):
            continue
        terms = counted.get(basis.terms)
        if isinstance(terms, DataUseTerms):
            of_patients = terms.patient_withdrawal_effect if type_ == "patient_set" else None
            yield of_patients or terms.withdrawal_effect
