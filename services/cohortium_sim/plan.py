"""What a simulation is asked to do, parsed from the command line's words."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from cohortium_kit.errors import CohortiumError
from cohortium_messages.study import Study

SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,79}")
SITE_NAME_RULE = "a name has at most 80 letters, digits, spaces, dots, hyphens and underscores, a letter or digit first"
GLOB_SIGNS = "*?[]{}"
"""A connector reads exactly the file that its settings name: no path with these."""


_LIBRARIES = {"torch": ("torch", "PyTorch"), "lightgbm": ("lightgbm", "LightGBM")}
"""What a trainer needs, by the first part of its name: the package, and what people call it."""


class PlanError(CohortiumError):
    """The simulation cannot be done as asked; the text says which option, and the way out."""


@dataclass(frozen=True, slots=True)
class SiteTable:
    """One hospital's rows: a file, or those rows of a shared file whose `column` equals `value`."""

    name: str
    path: Path
    column: str | None = None
    value: str | None = None


@dataclass(frozen=True, slots=True)
class Drop:
    """This site vanishes for good in this round: before its upload leaves, or after it was received.

    Of the trainer `lightgbm`, whose one round is a strict session: before its first step, or after half of the trees.
    """

    site: str
    round: int
    when: Literal["before", "after"]


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole simulation. `pace_s`: how often a hospital says that it is there and all cosign a checkpoint; None: as
    often as a short run on one machine wants."""

    study: Study
    sites: tuple[SiteTable, ...]
    out: Path
    amqp_url: str | None = None
    database_url: str | None = None
    redis_url: str | None = None
    processes: bool = False
    drops: tuple[Drop, ...] = ()
    slow: dict[str, float] = field(default_factory=dict)
    compare: bool = False
    timeout_s: float = 1800.0
    keep: bool = False
    pace_s: float | None = None

    @property
    def parts(self) -> Literal["embedded", "real"]:
        return "real" if self.amqp_url else "embedded"


def parse_site(text: str) -> SiteTable:
    """`NAME=FILE`."""
    name, equals, file = text.partition("=")
    if not equals or not name or not file:
        raise PlanError(f"--site {text}: expected NAME=FILE, for example --site cleveland=cleveland.csv")
    return SiteTable(_site_name(name, f"--site {text}"), existing_table(Path(file), f"--site {text}"))


def parse_drop(text: str) -> Drop:
    """`NAME@ROUND`, `NAME@ROUND:before` or `NAME@ROUND:after`; without a word, before."""
    match = re.fullmatch(r"(?P<site>.+)@(?P<round>[0-9]{1,9})(?::(?P<when>before|after))?", text)
    if match is None or int(match["round"]) < 1:
        raise PlanError(f"--drop {text}: expected NAME@ROUND:before or NAME@ROUND:after, rounds count from 1")
    return Drop(match["site"], int(match["round"]), "after" if match["when"] == "after" else "before")


def parse_slow(text: str) -> tuple[str, float]:
    """`NAME=SECONDS`: each training of this site takes that much longer."""
    name, _, seconds = text.partition("=")
    try:
        delay = float(seconds)
    except ValueError:
        delay = -1.0
    if not name or not 0 <= delay < 86400:
        raise PlanError(f"--slow {text}: expected NAME=SECONDS, for example --slow va=5")
    return name, delay


def parse_delays(texts: Sequence[str]) -> dict[str, float]:
    """All `--slow` words; a site named twice is an error, not the last one's word."""
    delays: dict[str, float] = {}
    for text in texts:
        name, seconds = parse_slow(text)
        if name in delays:
            raise PlanError(f"--slow {text}: {name} is slowed twice; name it once")
        delays[name] = seconds
    return delays


def check_plan(plan: Plan) -> Plan:
    """The plan, if it can be carried out; raises `PlanError` naming the option and the way out."""
    _check_sites(plan)
    _check_losses(plan)
    _check_session_losses(plan)
    _check_parts(plan)
    library = _LIBRARIES.get(plan.study.recipe.trainer.split(".")[0])
    if library is not None and find_spec(library[0]) is None:
        trainer = plan.study.recipe.trainer
        raise PlanError(f"the trainer {trainer} needs {library[1]}; install it with `pip install 'cohortium[train]'`")
    if plan.out.exists() and not plan.out.is_dir():
        raise PlanError(f"--out {plan.out}: a file is there; name a folder")
    replaced = [name for name in ("model", "audit", "federation") if (plan.out / name).exists()]
    if replaced and not (plan.out / "log.jsonl").exists():
        raise PlanError(
            f"--out {plan.out}: {replaced[0]} in it is not of a simulation and would be deleted; name another"
        )
    return plan


def _check_sites(plan: Plan) -> None:
    names = [site.name for site in plan.sites]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PlanError(f"--site: {', '.join(twice)} is named twice; each hospital needs a name of its own")
    least = plan.study.federation.min_sites
    if len(names) < least:
        raise PlanError(
            f"the study needs at least {least} sites (federation.min_sites), but {len(names)} are given; "
            "add --site NAME=FILE, or name a table of several with --data FILE --site-column COLUMN"
        )


def _check_losses(plan: Plan) -> None:
    names = [site.name for site in plan.sites]
    for option, site in [("--drop", drop.site) for drop in plan.drops] + [("--slow", name) for name in plan.slow]:
        if site not in names:
            raise PlanError(f"{option}: there is no site {site}; the sites are {', '.join(names)}")
    rounds = plan.study.rounds
    dropped = set()
    for drop in plan.drops:
        if drop.round > rounds:
            raise PlanError(f"--drop {drop.site}@{drop.round}: {_has(rounds, plan.study)}")
        if drop.site in dropped:
            raise PlanError(f"--drop {drop.site}@{drop.round}: {drop.site} is dropped twice; it vanishes for good")
        dropped.add(drop.site)


def _has(rounds: int, study: Study) -> str:
    if study.boosting_rounds:
        return "training with lightgbm is one round; drop in round 1"
    return f"the study has {rounds} rounds"


def _check_session_losses(plan: Plan) -> None:
    """What a strict session that loses a site for good can still come to; nothing for other trainers."""
    federation = plan.study.federation
    if not plan.study.boosting_rounds or not plan.drops:
        return
    first = f"--drop {plan.drops[0].site}@1:{plan.drops[0].when}"
    left = len(plan.sites) - len(plan.drops)
    if not federation.allow_cohort_change and any(drop.when == "before" for drop in plan.drops):
        raise PlanError(
            f"{first}: no tree would stand, and without federation.allow_cohort_change nobody goes on: the run would "
            "fail; drop with :after, or allow the change in the study"
        )
    if federation.allow_cohort_change and left < federation.min_sites:
        raise PlanError(
            f"{first}: {left} sites would be left, and the study needs {federation.min_sites} "
            "(federation.min_sites) to go on; give more sites"
        )
    waits = (federation.deadlines.step_s + federation.rejoin_s) * len(plan.drops)
    if waits >= plan.timeout_s:
        raise PlanError(
            f"{first}: the others would wait {waits:g} s for it (federation.deadlines.step_s and rejoin_s), and "
            f"--timeout is {plan.timeout_s:g}; shorten the one or lengthen the other"
        )


def _check_parts(plan: Plan) -> None:
    if plan.processes and not (plan.amqp_url and plan.database_url):
        raise PlanError("--processes needs --amqp URL and --database URL: separate processes cannot share memory parts")
    if bool(plan.amqp_url) != bool(plan.database_url):
        raise PlanError("--amqp and --database go together: name both, or neither for embedded parts")
    if plan.amqp_url and not re.match(r"amqps?://\S", plan.amqp_url):
        raise PlanError("--amqp: not RabbitMQ's address; expected amqp://USER:PASSWORD@HOST:5672/")
    if plan.database_url and not re.match(r"postgresql(\+[a-z]+)?://\S", plan.database_url):
        raise PlanError("--database: not PostgreSQL's address; expected postgresql://USER:PASSWORD@HOST:5432/NAME")
    if plan.redis_url and not re.match(r"(rediss?|unix)://\S", plan.redis_url):
        raise PlanError("--redis: not Redis' address; expected redis://HOST:6379/0")


def _site_name(name: str, option: str) -> str:
    if not SITE_NAME.fullmatch(name):
        raise PlanError(f"{option}: {name!r} cannot be a site's name: {SITE_NAME_RULE}")
    return name


def existing_table(path: Path, option: str) -> Path:
    """The table's full path; `~` is the home folder, which a shell does not fill in after NAME=."""
    try:
        path = path.expanduser()
    except RuntimeError:
        raise PlanError(f"{option}: there is no home folder for {path}") from None
    if not path.is_file():
        raise PlanError(f"{option}: there is no file {path}")
    found = path.resolve()
    if any(sign in str(found) for sign in GLOB_SIGNS):
        raise PlanError(f"{option}: the path {found} must not have any of {GLOB_SIGNS}; move or rename it")
    return found
