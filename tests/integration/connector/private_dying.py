"""A hospital's connector and a platform around it, in a child that is killed at a chosen point of a private window.

Reads orders, one JSON object a line, and answers each with one: whether the child was killed (`killed`), or how it
ended (`code`). The platform's keys are the same in every child, so the next one on the folder goes on with the same
window. A child is a fork, so that it starts at once; `kill -9` ends it, so that nothing of it cleans up.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import structlog
from connector_private import CAPS, DISTRIBUTED, LOCAL, PrivateWorld, private_study
from connector_world import FakeRunner

from cohortium_connector.ledger.anchor import Anchor
from cohortium_connector.store import windows
from cohortium_connector.training.jobs import TrainLocally
from cohortium_kit.db import Database, Tx
from cohortium_messages.governance import SiteRegistered
from cohortium_messages.ids import RunId
from cohortium_messages.registry import Message
from cohortium_messages.secure_sum import Roster, WindowOpen, WindowParams
from cohortium_privacy.filter import alpha_star
from cohortium_privacy.windows import plan_for
from cohortium_protocol.keys import SealKey
from cohortium_protocol.signing import IdentityKey
from cohortium_protocol.window import make_roster

WINDOW = bytes([7]) * 16
RUN = RunId("77777777-7777-4777-8777-777777777777")
SEEDS, ROSTER, TASK = "seeds.log", "roster.json", "task.json"
MODES = {"distributed": DISTRIBUTED, "local": LOCAL}
LEFT = ("UPLOAD_SAVED", "UPLOADED")
TRANSACTIONS = ("reserve_plan", "begin_private_work", "keep_product", "answer_ready", "upload_saved")
POINTS = (
    *(f"{name} {when}" for name in TRANSACTIONS for when in ("before", "inside", "after")),
    *(f"{name} {when}" for name in ("training", "anchor") for when in ("before", "after")),
)


class Platform(PrivateWorld):
    """Whose keys follow from names."""

    def __init__(self, folder: Path, mode: str) -> None:
        super().__init__(folder, private_study(MODES[mode]))
        self.officers = [_key(f"officer {number}") for number in range(2)]
        self.services = {role: _key(role) for role in self.services}
        self.log.audit, self.log.scheduler = self.services["audit"], self.services["scheduler"]
        self.seal = SealKey.from_bytes(_secret("seal"))
        for number, peer in enumerate(self.peers):
            peer.key = _key(f"peer {number}")
        self.run_id = RUN

    def make_runner(self, work_dir: Path) -> FakeRunner:
        runner = TellingRunner(work_dir)
        self.runners.append(runner)
        return runner

    async def window(self) -> WindowParams:
        return self.private_params("update", self.model(0)[0], window_id=WINDOW)


class TellingRunner(FakeRunner):
    """Writes down which seed each training was given; the vector is made of it."""

    async def run(self, job: Any, **options: Any) -> Any:
        if isinstance(job, TrainLocally) and job.private is not None:
            log = Path(job.update_path).parents[2] / SEEDS
            with log.open("a") as file:
                file.write(f"{job.private.seed.hex()}\n")
                file.flush()
                os.fsync(file.fileno())
        return await super().run(job, **options)


def _secret(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _key(name: str) -> IdentityKey:
    return IdentityKey.from_seed(_secret(name))


async def play(folder: Path, mode: str) -> None:
    """From wherever the folder stands until the window's upload is saved."""
    world = Platform(folder, mode)
    await world.declare()
    await world.start()
    models = asyncio.create_task(_give_models(world))
    registered = SiteRegistered(site_id=world.site_id, name="Hospital", identity_pk=world.site_pk)
    await world.say("enrolment", registered)
    await world.say("scheduler", world.offer_message())
    params = await world.window()
    await world.say("scheduler", _task(world, params))
    await world.reaches(WINDOW, "READY_SENT", "ROSTER_OK", *LEFT)
    await world.say("aggregator", await _roster(world, params))
    await world.reaches(WINDOW, *LEFT)
    await world.settled()
    models.cancel()
    await asyncio.gather(models, return_exceptions=True)
    await world.crash()


async def _give_models(world: Platform) -> None:
    while True:
        with contextlib.suppress(TimeoutError):
            await world.give_model(0)


def _task(world: Platform, params: WindowParams) -> WindowOpen:
    """One for all lives: another one would be in another log."""
    place = world.folder / TASK
    if not place.exists():
        _save(place, world.sign_task(params))
    return WindowOpen.model_validate_json(place.read_text())


def _save(place: Path, message: Message) -> None:
    part = place.with_suffix(".part")
    part.write_text(message.model_dump_json())
    part.replace(place)


async def _roster(world: Platform, params: WindowParams) -> Roster:
    """One for the window, whatever becomes of the connector."""
    place = world.folder / ROSTER
    if not place.exists():
        async with world.app.db.reading("test_ready") as tx:
            ready = (await windows.material(tx, WINDOW)).ready
        assert ready is not None
        base = params.bases[0].model_hash
        roster = make_roster(params, world.manifest(), [ready, *(peer.ready(params, base) for peer in world.peers)])
        _save(place, roster)
    return Roster.model_validate_json(place.read_text())


def haunt(point: str) -> None:
    """Die there, the first time."""
    where, when = point.rsplit(" ", 1)
    run, write, train = Database.run, Anchor.write, FakeRunner.run

    def die(here: str, now: str) -> None:
        if (here, now) == (where, when):
            os.kill(os.getpid(), signal.SIGKILL)

    async def dying_run(self: Database, name: str, work: Callable[[Tx], Awaitable[Any]]) -> Any:
        async def dying_work(tx: Tx) -> Any:
            done = await work(tx)
            die(name, "inside")
            return done

        die(name, "before")
        done = await run(self, name, dying_work)
        die(name, "after")
        return done

    def dying_write(self: Anchor, head: Any) -> None:
        if head.sequence:
            die("anchor", "before")
        write(self, head)
        if head.sequence:
            die("anchor", "after")

    async def dying_train(self: FakeRunner, job: Any, **options: Any) -> Any:
        is_training = isinstance(job, TrainLocally)
        if is_training:
            die("training", "before")
        done = await train(self, job, **options)
        if is_training:
            die("training", "after")
        return done

    Database.run, Anchor.write, FakeRunner.run = dying_run, dying_write, dying_train  # type: ignore[method-assign,assignment]


def child(folder: Path, mode: str, point: str | None) -> None:
    code = 1
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if point is not None:
            haunt(point)
        asyncio.run(play(folder, mode))
        code = 0
    except BaseException:
        logging.getLogger(__name__).exception("the child failed")
        raise
    finally:
        os._exit(code)


def warm() -> None:
    """Plans are remembered by process: make them here once, for every child."""
    alpha_star(CAPS["privacy"]["epsilon_max"], CAPS["privacy"]["delta"])
    for privacy in MODES.values():
        plan_for(private_study(privacy), 4, 3, 1)


def main() -> None:
    warm()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    for line in sys.stdin:
        order = json.loads(line)
        process = os.fork()
        if not process:
            child(Path(order["folder"]), order["mode"], order["point"])
        _, status = os.waitpid(process, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        answer = {"killed": killed, "code": None if killed else os.waitstatus_to_exitcode(status)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    assert UUID(RUN).version == 4
    main()
