"""The ledger in plain lines, for the command of the hospital's own wheel."""

from collections.abc import Iterator

from cohortium_connector.ledger.view import AccountView, LedgerView, RunView

NOTHING = "No study has been charged to this hospital's patients yet."


def lines(view: LedgerView) -> Iterator[str]:
    """Every account with what it allows, and who has what of it."""
    yield f"{view.entries} ledger entries, each signed and in its place"
    if not view.accounts:
        yield NOTHING
    for account in view.accounts:
        yield _account(account)
        yield from (_run(run) for run in account.runs)


def _account(account: AccountView) -> str:
    tighter = "" if account.epsilon_report is None else f", by the tighter report epsilon {account.epsilon_report:.3g}"
    state = "; frozen, nothing more is charged to it" if account.frozen else ""
    return (
        f"{account.block}: epsilon {account.epsilon_max:g} at delta {account.delta:g} allowed; "
        f"used {account.committed_share:.1%} (epsilon {account.epsilon_used:.3g}{tighter}), "
        f"set aside {account.reserved_share:.1%}, left {account.left_share:.1%}{state}"
    )


def _run(run: RunView) -> str:
    at = "not known" if run.exhausted_at_round is None else f"round {run.exhausted_at_round}"
    return (
        f"  {run.study} {run.run[:8]}: used {run.committed_share:.1%}, set aside {run.reserved_share:.1%}; "
        f"{run.rounds_begun} of {run.rounds_planned} rounds begun; would exhaust the account at {at}"
    )
