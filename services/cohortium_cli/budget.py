"""`cohortium budget`: what patients have been charged and what is left, as a hospital's ledger has it, and as the
federation sees it."""

import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from cohortium_cli.locally import locally
from cohortium_cli.options import Json
from cohortium_cli.output import USAGE, done, fail, say, show, table
from cohortium_cli.runs import ask
from cohortium_sim.report_words import clean

if TYPE_CHECKING:
    from cohortium_connector.ledger.local import LocalLedger
    from cohortium_connector.ledger.view import AccountView, LedgerView, RunView
    from cohortium_messages.budgets import SiteBudget

T = TypeVar("T")
ConfigFile = Annotated[Path, typer.Option("--config", "-c", help="The connector's settings, a YAML file.")]
EXHAUSTED = "exhausted at"
NOTHING = "No study has been charged to this hospital's patients yet."


def budget(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="In a hospital: the connector's settings, a YAML file.")
    ] = None,
    operator: Annotated[
        Path | None, typer.Option("--operator", help="At the operator: its settings, for the federation's view.")
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Also the tighter epsilon of what was used; takes seconds for each block.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Privacy budgets: the caps, what is used, set aside and left, and the round at which a study would exhaust them.

    In a hospital: its own ledger, checked row by row; none of this leaves it. At the operator: what all hospitals'
    signed statements add up to, against the cap that the federation agreed on.
    """
    if config is None and operator is None:
        fail("give --config in a hospital, or --operator at the operator", code=USAGE)
    view = None if config is None else _of_ledger(config, lambda ledger: ledger.look(report=report))
    sites = None if operator is None else ask(operator, lambda client: client.budgets())
    facts = {} if view is None else dataclasses.asdict(view)
    if sites is not None:
        facts["federation"] = [one.model_dump(mode="json") for one in sites]

    def human() -> None:
        if view is not None:
            _tell(view)
        if sites is not None:
            _tell_federation(sites)

    show(facts, as_json=as_json, human=human)


def budget_write_off(
    config: ConfigFile,
    sure: Annotated[bool, typer.Option("--yes", help="Yes, nothing more may be charged to these patients.")] = False,
    as_json: Json = False,
) -> None:
    """Go on with a privacy ledger whose newest rows are lost: every block up to today is frozen for good.

    Only where `budget` says that the ledger is an older copy and the newest copy cannot be brought back.
    """
    if not sure:
        fail("this freezes the budget of every patient up to today for good; say --yes if that is meant", code=USAGE)
    until = _of_ledger(config, lambda ledger: ledger.write_off())
    show(
        {"frozen_until": until},
        as_json=as_json,
        human=lambda: done(
            f"blocks up to {until} are frozen; restart the connector, and patients of later quarters can be charged"
        ),
    )


def _of_ledger(config: Path, ask: "Callable[[LocalLedger], Awaitable[T]]") -> T:
    from cohortium_connector.ledger.local import LocalLedger

    return locally(config, LocalLedger.open, ask)


def _tell(view: "LedgerView") -> None:
    say(f"{view.entries} ledger entries, each signed and in its place")
    columns = ["block", "epsilon allowed", "used", "set aside", "left", "state"]
    if any(account.epsilon_report is not None for account in view.accounts):
        columns.insert(3, "used, tighter")
    table("Accounts", columns, [_account(account) for account in view.accounts], empty=NOTHING)
    spent = [[account.block, *_run(run)] for account in view.accounts for run in account.runs]
    if spent:
        say("")
        heads = ["block", "study", "run", "used", "set aside", "rounds begun", EXHAUSTED]
        table("Who has it", heads, spent, empty="")


def _run(run: "RunView") -> list[str]:
    rounds = f"{run.rounds_begun} of {run.rounds_planned}"
    return [
        run.study,
        run.run[:8],
        f"{run.committed_share:.1%}",
        f"{run.reserved_share:.1%}",
        rounds,
        _at(run.exhausted_at_round),
    ]


def _at(round_: int | None) -> str:
    return "not known" if round_ is None else f"round {round_}"


def _tell_federation(sites: "Sequence[SiteBudget]") -> None:
    """The operator's view. Hospitals' own limits are their own."""
    rows = [
        [
            clean(site.site_name) or site.site_id[:8],
            "none agreed" if site.epsilon_cap is None else f"{site.epsilon_cap:g} at delta {site.delta:g}",
            _part(site.used_share, site.epsilon_used),
            _part(site.reserved_share),
            _part(site.left_share),
        ]
        for site in sites
    ]
    heads = ["hospital", "epsilon agreed", "used", "set aside", "left"]
    table("The federation's view, as hospitals tell it", heads, rows, empty="No hospital has told of a charge yet.")
    runs = [
        [
            clean(run.site_name) or run.site_id[:8],
            run.study_id,
            run.run_id[:8],
            run.part,
            f"{run.begun_steps} of {run.planned_steps}",
            f"{run.charged_steps}",
            _at(run.exhausted_at_round),
        ]
        for site in sites
        for run in site.runs
    ]
    if runs:
        say("")
        heads = ["hospital", "study", "run", "part", "steps begun", "charged", EXHAUSTED]
        table("Who has it", heads, runs, empty="")
    left_out = sum(site.runs_left_out for site in sites)
    if left_out:
        say(f"{left_out} more that hold less of their hospitals' budgets are not told here")


def _part(share: float | None, epsilon: float | None = None) -> str:
    if share is None:
        return "-"
    return f"{share:.1%}" if epsilon is None else f"{share:.1%} (epsilon {epsilon:.3g})"


def _account(account: "AccountView") -> list[str]:
    allowed = f"{account.epsilon_max:g} at delta {account.delta:g}"
    tighter = [] if account.epsilon_report is None else [f"epsilon {account.epsilon_report:.3g}"]
    return [
        account.block,
        allowed,
        f"{account.committed_share:.1%} (epsilon {account.epsilon_used:.3g})",
        *tighter,
        f"{account.reserved_share:.1%}",
        f"{account.left_share:.1%}",
        "frozen" if account.frozen else "open",
    ]
