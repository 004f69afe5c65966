"""`cohortium budget`: what the hospital's patients have been charged, and what is left, account by account."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from cohortium_cli.options import Json
from cohortium_cli.output import USAGE, done, fail, friendly, say, show, table

if TYPE_CHECKING:
    from cohortium_connector.ledger.local import LocalLedger
    from cohortium_connector.ledger.view import AccountView, LedgerView

T = TypeVar("T")
ConfigFile = Annotated[Path, typer.Option("--config", "-c", help="The connector's settings, a YAML file.")]
NOTHING = "No study has been charged to this hospital's patients yet."


def budget(
    config: ConfigFile,
    report: Annotated[
        bool, typer.Option("--report", help="Also the tighter epsilon of what was used; takes seconds for each block.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check the privacy ledger, and show what each block of patients has left and which study spent what.

    None of this leaves the hospital.
    """
    view = _locally(config, lambda ledger: ledger.look(report=report))
    show(dataclasses.asdict(view), as_json=as_json, human=lambda: _tell(view))


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
    until = _locally(config, lambda ledger: ledger.write_off())
    show(
        {"frozen_until": until},
        as_json=as_json,
        human=lambda: done(
            f"blocks up to {until} are frozen; restart the connector, and patients of later quarters can be charged"
        ),
    )


def _locally(config: Path, ask: "Callable[[LocalLedger], Awaitable[T]]") -> T:
    from cohortium_connector.ledger.local import LocalLedger
    from cohortium_connector.settings import ConnectorSettings

    async def inside() -> T:
        async with LocalLedger.open(ConnectorSettings.load(config)) as ledger:
            return await ask(ledger)

    with friendly():
        return asyncio.run(inside())


def _tell(view: "LedgerView") -> None:
    say(f"{view.entries} ledger entries, each signed and in its place")
    columns = ["block", "epsilon allowed", "used", "set aside", "left", "state"]
    if any(account.epsilon_report is not None for account in view.accounts):
        columns.insert(3, "used, tighter")
    table("Accounts", columns, [_account(account) for account in view.accounts], empty=NOTHING)
    spent = [
        [account.block, run.study, run.run[:8], f"{run.committed_share:.1%}", f"{run.reserved_share:.1%}"]
        for account in view.accounts
        for run in account.runs
    ]
    if spent:
        say("")
        table("Who has it", ["block", "study", "run", "used", "set aside"], spent, empty="")


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
