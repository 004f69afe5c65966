"""A program that does one operation of the ledger on a folder, in a child that is killed at a chosen point.

It reads orders, one JSON object a line, and answers each with one: whether the child was killed (`killed`), or how it
ended (`code`). The child is a fork, so that it starts at once; `kill -9` ends it, so that nothing of it cleans up.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
from federation_in_memory import Federation, integer_spec
from ledger_stage import LIMITS, Q1, Q2, Hospital, part_of, plan_of, run_id

from cohortium_connector.ledger.anchor import Anchor
from cohortium_connector.ledger.proofs import Aborted, RunOver
from cohortium_kit._lent import Lent
from cohortium_kit.db import Tx
from cohortium_messages.secure_sum import AbortCert, Vote
from cohortium_privacy import filter as budgets
from cohortium_protocol.survivors import abort_quorum, build_abort_vote

MEMBERS = Federation.of(4, integer_spec(8))
SITE = MEMBERS.site(1)
W1 = MEMBERS.view.window_id


def cert() -> AbortCert:
    quorum = range(1, abort_quorum(MEMBERS.view) + 1)
    votes = [build_abort_vote(MEMBERS.view, 0, index, MEMBERS.site(index).identity) for index in quorum]
    return AbortCert(window_id=W1, step=0, votes=tuple(Vote(index=one.index, sig=one.sig) for one in votes))


OPERATIONS: dict[str, Callable[[Hospital, Tx], Awaitable[Any]]] = {
    "reserve": lambda site, tx: site.ledger.reserve(tx, plan_of(1, part_of(0.1, 3, 5), blocks=(Q1, Q2))),
    "upload": lambda site, tx: site.ledger.commit(tx, run_id(1), "training", W1),
    "train": lambda site, tx: site.ledger.commit(tx, run_id(1), "training"),
    "refund": lambda site, tx: site.ledger.refund(tx, run_id(1), Aborted(MEMBERS.view, cert())),
    "close": lambda site, tx: site.ledger.refund(tx, run_id(1), RunOver("RUN_ENDED")),
    "freeze": lambda site, tx: site.ledger.freeze(tx, Q2, "ROWS_LOST"),
}


class Death:
    """Ends this process for good when it has come past so many points."""

    def __init__(self, point: int) -> None:
        self._left = point

    def passes(self) -> None:
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1

    def haunt(self) -> None:
        """Points: before each statement of a transaction, before and after its commit, before and after the anchor."""
        execute, commit, write = Tx.execute, Lent.commit, Anchor.write

        async def dying_execute(tx: Tx, statement: Any, parameters: Any = None) -> Any:
            self.passes()
            return await execute(tx, statement, parameters)

        async def dying_commit(connection: Lent) -> None:
            self.passes()
            await commit(connection)
            self.passes()

        def dying_write(anchor: Anchor, head: Any) -> None:
            self.passes()
            write(anchor, head)
            self.passes()

        Tx.execute, Lent.commit, Anchor.write = dying_execute, dying_commit, dying_write  # type: ignore[method-assign,assignment]


def hospital(folder: Path) -> Hospital:
    return Hospital(folder, SITE.site_id, SITE.identity)


async def operate(folder: Path, name: str, point: int | None) -> None:
    """As the connector does it: open the ledger, the operation in its transaction, then the anchor."""
    site = hospital(folder)
    await site.start()
    if point is not None:
        Death(point).haunt()
    await site.db.run(name, lambda tx: OPERATIONS[name](site, tx))
    await site.ledger.note_head(site.db)
    await site.stop()


def child(folder: Path, name: str, point: int | None) -> None:
    code = 1
    try:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # answers are the parent's
        asyncio.run(operate(folder, name, point))
        code = 0
    finally:
        os._exit(code)


def main() -> None:
    # What takes its time is done before the forks.
    budgets.alpha_star(LIMITS.epsilon_max, LIMITS.delta)
    for index in MEMBERS.view.indices:
        MEMBERS.send_integers(index, np.full(8, index, dtype=np.int64))
    for line in sys.stdin:
        order = json.loads(line)
        process = os.fork()
        if not process:
            child(Path(order["folder"]), order["operation"], order["point"])
        _, status = os.waitpid(process, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        answer = {"killed": killed, "code": None if killed else os.waitstatus_to_exitcode(status)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
