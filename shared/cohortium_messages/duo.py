"""GA4GH Data Use Ontology: the coded terms under which a hospital lets its data be used, and what a study asks for.

The vocabulary is the 23 coded terms of DUO's `duo.csv` (Lawson et al., Cell Genomics 2021). A term is written as its
shorthand, `NCU`; one that is not in `DUO_TERMS` is a term we do not understand, and what is not understood is denied.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from cohortium_messages.ids import Wire

DuoCode = Annotated[str, Field(pattern=r"^[A-Z]{2,8}$")]
Value = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9 .:_-]*$")]
Region = Annotated[str, Field(pattern=r"^[A-Z]{2}$")]
"""ISO 3166-1 alpha-2."""
Disease = Annotated[str, Field(pattern=r"^MONDO:[0-9]{7}$")]

Parameter = Literal["values", "months", "until"]


@dataclass(frozen=True, slots=True)
class TermMeaning:
    """A term of the ontology: its number, whether it is the permission or modifies one, what it says, and the parameter
    it cannot do without."""

    number: str
    kind: Literal["permission", "modifier"]
    meaning: str
    needs: Parameter | None = None


def _permission(number: str, meaning: str, needs: Parameter | None = None) -> TermMeaning:
    return TermMeaning(f"DUO:{number}", "permission", meaning, needs)


def _modifier(number: str, meaning: str, needs: Parameter | None = None) -> TermMeaning:
    return TermMeaning(f"DUO:{number}", "modifier", meaning, needs)


DUO_TERMS: Final[Mapping[str, TermMeaning]] = {
    "NRES": _permission("0000004", "no restriction"),
    "GRU": _permission("0000042", "any research use"),
    "HMB": _permission("0000006", "health, medical or biomedical research; not ancestry"),
    "DS": _permission("0000007", "research on the named diseases only", "values"),
    "POA": _permission("0000011", "research on population origins or ancestry only"),
    "RS": _modifier("0000012", "the named types of research only", "values"),
    "NMDS": _modifier("0000015", "no development of methods"),
    "GSO": _modifier("0000016", "genetic studies only"),
    "NPUNCU": _modifier("0000018", "by organisations not for profit, for purposes not commercial"),
    "PUB": _modifier("0000019", "results must be made public"),
    "COL": _modifier("0000020", "in collaboration with the hospital's own investigators"),
    "IRB": _modifier("0000021", "an ethics approval must be on record"),
    "GS": _modifier("0000022", "processing within the named countries only", "values"),
    "MOR": _modifier("0000024", "nothing is published before the named day", "until"),
    "TS": _modifier("0000025", "for so many months from the beginning of the terms", "months"),
    "US": _modifier("0000026", "by the named users only", "values"),
    "PS": _modifier("0000027", "for the named projects only", "values"),
    "IS": _modifier("0000028", "at the named institutions only", "values"),
    "RTN": _modifier("0000029", "derived data are returned to the hospital"),
    "CC": _modifier("0000043", "clinical care is allowed beside research"),
    "NPOA": _modifier("0000044", "no research on population origins or ancestry"),
    "NPU": _modifier("0000045", "by organisations not for profit"),
    "NCU": _modifier("0000046", "for purposes that are not commercial"),
}
"""All supported terms. `contracts/consent.md` shows this table."""


class DuoTerm(Wire):
    """One coded term with its parameter: `values` (diseases, countries, users, projects, institutions or research
    types, as the code says), `months`, or `until`."""

    code: DuoCode
    values: Annotated[tuple[Value, ...], Field(max_length=64)] = ()
    months: Annotated[int, Field(ge=1, le=1200)] | None = None
    until: datetime | None = None

    @model_validator(mode="after")
    def _has_its_parameter(self) -> "DuoTerm":
        known = DUO_TERMS.get(self.code)
        given: dict[str, bool] = {
            "values": bool(self.values),
            "months": self.months is not None,
            "until": self.until is not None,
        }
        for name, there in given.items():
            if known is not None and there != (known.needs == name):
                rule = f"{self.code} needs {name}" if known.needs == name else f"{self.code} takes no {name}"
                raise ValueError(f"{rule}: {known.meaning}")
        if self.until is not None and self.until.tzinfo is None:
            raise ValueError("until needs a time zone, such as 2027-01-31T00:00:00Z")
        return self


Aim = Literal["health", "disease", "ancestry", "methods", "general"]


class UseRequest(Wire):
    """What a study asks of every hospital's data-use terms: each field answers one or more terms of the ontology.

    Nothing is assumed in the study's favour: what is left out is not promised (`publishes`) and not limited
    (`commercial` must be said).
    """

    aims: Annotated[tuple[Aim, ...], Field(min_length=1, max_length=5)]
    diseases: Annotated[tuple[Disease, ...], Field(max_length=64)] = ()
    research_types: Annotated[tuple[Value, ...], Field(max_length=16)] = ()
    commercial: bool
    """Whether the purpose is commercial, whoever pursues it."""
    for_profit: bool
    """Whether any organisation that uses the result is for profit."""
    clinical_care: bool = False
    genetic: bool = False
    publishes: bool = False
    publishes_from: datetime | None = None
    """First day on which anything may be published; needed where a hospital has a moratorium."""
    collaborates: bool = False
    returns_results: bool = False
    regions: Annotated[tuple[Region, ...], Field(min_length=1, max_length=64)]
    """Where anything outside a hospital is processed: the operator's services."""
    users: Annotated[tuple[Value, ...], Field(max_length=64)] = ()
    institutions: Annotated[tuple[Value, ...], Field(max_length=64)] = ()

    @model_validator(mode="after")
    def _fits_together(self) -> "UseRequest":
        if "disease" in self.aims and not self.diseases:
            raise ValueError("diseases must name at least one MONDO code where aims has disease")
        if self.publishes_from is not None and self.publishes_from.tzinfo is None:
            raise ValueError("publishes_from needs a time zone, such as 2027-01-31T00:00:00Z")
        return self
