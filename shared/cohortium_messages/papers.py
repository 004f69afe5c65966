"""What the permissions of a study rest on, as it was signed: a part of the audit bundle, to judge them anew."""

from typing import Annotated

from pydantic import Field

from cohortium_messages.consent import ConsentFile
from cohortium_messages.governance import GrantWithdrawn, SiteGrant
from cohortium_messages.ids import StudyIdField, Wire


class StudyPapers(Wire):
    """Every consent document of a study with the signatures under it and the cards of the people who signed, every
    grant and every withdrawal that hospitals signed. Nothing of patients. Each part proves itself; digests of all of
    them are in permits, grants and acts of the log."""

    study_id: StudyIdField
    file: ConsentFile
    grants: Annotated[tuple[SiteGrant, ...], Field(max_length=5000)]
    withdrawals: Annotated[tuple[GrantWithdrawn, ...], Field(max_length=5000)]
