"""`contracts/consent.md` says what the code does."""

from pathlib import Path

import yaml

from cohortium_messages.consent import DataUseTerms
from cohortium_messages.duo import DUO_TERMS
from cohortium_messages.problems import SENTENCES
from cohortium_protocol.consent.rules import DUTIES

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "contracts" / "consent.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """The cells of the tables below this heading, without head and rule."""
    part = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in part.splitlines()
        if line.startswith("| `") and not line.startswith("| `kind`")
    ]


def test_the_page_lists_exactly_the_supported_terms() -> None:
    shown = {row[0].strip("`"): tuple(row[1:]) for row in rows("Data-use terms")}
    expected = {
        code: (term.number, term.kind, term.meaning, "–" if term.needs is None else f"`{term.needs}`")
        for code, term in DUO_TERMS.items()
    }
    assert shown == expected


def test_the_page_names_every_kind_its_authors_and_who_stops_it() -> None:
    shown = {row[0].strip("`"): row for row in rows("People and acts")}
    assert set(shown) == set(DUTIES)
    for kind, duties in DUTIES.items():
        if kind != "delegation":
            assert set(shown[kind][1].split(", ")) == duties.authors
        assert all(role in shown[kind][2] for role in duties.each)


def test_the_page_names_every_code() -> None:
    prefixes = ("STUDY_VERSION_", "AGREEMENT_", "ETHICS_", "TERMS_", "APPROVAL_")
    others = {"AGREEMENT_FAILED", "AGREEMENT_REFUSED"}  # of strict sessions
    for code in SENTENCES:
        prefix = next((one for one in prefixes if code.startswith(one)), None)
        if prefix is not None and code not in others:
            assert f"…_{code.removeprefix(prefix)}`" in PAGE, code
    for code in ("GRANT_UNGOVERNED", "GRANT_EXCEEDS_APPROVAL", "MODEL_EGRESS_REFUSED", "EPSILON_ABOVE_TERMS"):
        assert f"`{code}`" in PAGE


def test_the_hospital_s_page_shows_terms_that_are_right() -> None:
    page = (ROOT / "deploy" / "hospital" / "consent.md").read_text(encoding="utf-8")
    example = page.split("```yaml\n")[1].split("```")[0]
    terms = DataUseTerms.model_validate(yaml.safe_load(example))
    assert {term.code for term in terms.uses} == {"HMB", "NCU", "GS", "TS"}
