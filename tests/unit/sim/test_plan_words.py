"""The words of `cohortium simulate`: what they mean, and that every other word is refused with a reason."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cohortium_sim import plan as plans
from cohortium_sim.plan import (
    SITE_NAME,
    Drop,
    Plan,
    PlanError,
    check_plan,
    parse_delays,
    parse_drop,
    parse_site,
    parse_slow,
)

NAMES = st.from_regex(SITE_NAME, fullmatch=True)
WORDS = st.text(max_size=40)


@given(NAMES, st.integers(1, 100_000), st.sampled_from(["", ":before", ":after"]))
def test_a_drop_says_site_round_and_moment(name: str, number: int, moment: str) -> None:
    assert parse_drop(f"{name}@{number}{moment}") == Drop(name, number, "after" if moment == ":after" else "before")


@given(NAMES, st.floats(0, 86399))
def test_a_delay_says_site_and_seconds(name: str, seconds: float) -> None:
    assert parse_slow(f"{name}={seconds!r}") == (name, seconds)


def refusal(parse: Callable[[str], object], text: str) -> str | None:
    """Why a word is refused; None if it is not."""
    try:
        parse(text)
    except PlanError as error:
        return str(error)
    return None


@given(WORDS)
def test_any_other_word_is_refused_by_its_option_and_with_an_example(text: str) -> None:
    for parse, option in ((parse_drop, "--drop"), (parse_slow, "--slow"), (parse_site, "--site")):
        why = refusal(parse, text)
        assert why is None or why.startswith(f"{option} {text}: ")


@pytest.mark.parametrize(
    "text",
    ["", "va", "va@", "va@0", "@3", "va@3:", "va@3:during", "va@-1", "va@1.5", "va@3:after ", "va@" + "9" * 5000],
)
def test_what_is_no_drop(text: str) -> None:
    with pytest.raises(PlanError, match="rounds count from 1"):
        parse_drop(text)


@pytest.mark.parametrize("text", ["", "va", "va=", "=5", "va=fast", "va=-1", "va=nan", "va=inf", "va=86400"])
def test_what_is_no_delay(text: str) -> None:
    with pytest.raises(PlanError, match="for example --slow va=5"):
        parse_slow(text)


class TestSites:
    def test_a_name_and_a_file(self, plan: Plan, tmp_path: Path) -> None:
        site = parse_site(f"VA Long-Beach_1.0={tmp_path / 'table.csv'}")
        assert site.name == "VA Long-Beach_1.0"
        assert site.path == (tmp_path / "table.csv").resolve()

    def test_a_path_may_have_an_equals_sign(self, tmp_path: Path) -> None:
        (tmp_path / "a=b.csv").write_text("x\n")
        assert parse_site(f"north={tmp_path}/a=b.csv").path.name == "a=b.csv"

    def test_the_home_folder_is_filled_in(self, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        assert parse_site("north=~/table.csv").path == (tmp_path / "table.csv").resolve()
        with pytest.raises(PlanError, match="no home folder"):
            parse_site("north=~nobody-of-this-name/table.csv")

    @pytest.mark.parametrize("text", ["north", "=x.csv", "north=", ""])
    def test_what_is_no_site(self, text: str) -> None:
        with pytest.raises(PlanError, match="expected NAME=FILE"):
            parse_site(text)

    @pytest.mark.parametrize("name", [" north", "no/rth", "n" * 81, "north\n", "-north"])
    def test_names_that_no_hospital_can_have(self, name: str, plan: Plan, tmp_path: Path) -> None:
        with pytest.raises(PlanError, match="cannot be a site's name"):
            parse_site(f"{name}={tmp_path / 'table.csv'}")

    def test_files_that_no_connector_would_read(self, tmp_path: Path) -> None:
        with pytest.raises(PlanError, match=r"there is no file gone\.csv"):
            parse_site("north=gone.csv")
        with pytest.raises(PlanError, match="there is no file"):
            parse_site(f"north={tmp_path}")
        (tmp_path / "all*.csv").write_text("x\n")
        with pytest.raises(PlanError, match="must not have any of"):
            parse_site(f"north={tmp_path}/all*.csv")


class TestPlans:
    def test_a_sound_one_is_given_back(self, plan: Plan) -> None:
        whole = replace(plan, drops=(Drop("a", 5, "after"),), slow={"b": 1.0})
        assert check_plan(whole) is whole
        assert whole.parts == "embedded"

    def test_a_delay_is_said_once(self) -> None:
        assert parse_delays(["a=1", "b=2"]) == {"a": 1.0, "b": 2.0}
        with pytest.raises(PlanError, match="a is slowed twice"):
            parse_delays(["a=1", "a=2"])

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"drops": (Drop("d", 1, "before"),)}, "--drop: there is no site d; the sites are a, b, c"),
            ({"slow": {"d": 1.0}}, "--slow: there is no site d; the sites are a, b, c"),
            ({"drops": (Drop("a", 6, "before"),)}, "--drop a@6: the study has 5 rounds"),
            ({"drops": (Drop("a", 1, "before"), Drop("a", 2, "after"))}, "a is dropped twice"),
            ({"processes": True}, "--processes needs --amqp URL and --database URL"),
            ({"amqp_url": "amqp://h/"}, "--amqp and --database go together"),
            ({"database_url": "postgresql://h/x"}, "--amqp and --database go together"),
            ({"amqp_url": "http://h/", "database_url": "postgresql://h/x"}, "--amqp: not RabbitMQ's address"),
            ({"amqp_url": "amqp://h/", "database_url": "mysql://h/x"}, "--database: not PostgreSQL's address"),
            ({"redis_url": "http://h"}, "--redis: not Redis' address"),
        ],
    )
    def test_what_cannot_be_carried_out(self, changes: dict[str, object], said: str, plan: Plan) -> None:
        with pytest.raises(PlanError) as caught:
            check_plan(replace(plan, **changes))  # type: ignore[arg-type]
        assert said in str(caught.value)

    def test_sites_are_enough_and_each_has_a_name_of_its_own(self, plan: Plan) -> None:
        with pytest.raises(PlanError, match=r"at least 3 sites \(federation.min_sites\), but 2 are given"):
            check_plan(replace(plan, sites=plan.sites[:2]))
        with pytest.raises(PlanError, match="a is named twice"):
            check_plan(replace(plan, sites=(*plan.sites, plan.sites[0])))

    def test_the_result_goes_into_a_folder(self, plan: Plan) -> None:
        plan.out.write_text("")
        with pytest.raises(PlanError, match="a file is there; name a folder"):
            check_plan(plan)

    def test_a_missing_training_library_is_named(self, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(plans, "find_spec", lambda name: None)
        assert check_plan(plan)
        recipe = plan.study.recipe.model_copy(update={"trainer": "torch.logistic"})
        with pytest.raises(PlanError, match=r"pip install 'cohortium\[train\]'"):
            check_plan(replace(plan, study=plan.study.model_copy(update={"recipe": recipe})))
