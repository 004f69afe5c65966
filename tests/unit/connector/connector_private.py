"""A federation whose study is private, around one real connector with a real ledger."""

from pathlib import Path
from typing import Any
from uuid import uuid4

from connector_world import STUDY, World

from cohortium_kit.memory import MemoryBroker, MemoryBus
from cohortium_messages.governance import GrantGiven
from cohortium_messages.ids import RunId
from cohortium_messages.ledger import Part
from cohortium_messages.runs import ModelWanted, StudyOffered
from cohortium_messages.secure_sum import ModelRef, Purpose, WindowParams
from cohortium_messages.study import Study
from cohortium_privacy.ledger_state import Holding, LedgerState
from cohortium_privacy.windows import mode_of, noise_for, plan_for, private_spec

DISTRIBUTED: dict[str, Any] = {
    "mode": "distributed",
    "epsilon": 3.0,
    "delta": 1e-5,
    "sampling_rate": 0.5,
    "patients": 2000,
    "evaluation_epsilon": 1.0,
}
LOCAL: dict[str, Any] = {"mode": "local", "epsilon": 3.0, "delta": 1e-4, "sampling_rate": 0.5, "patients": 500}
CAPS: dict[str, Any] = {"privacy": {"epsilon_max": 4.0, "delta": 1e-5}}
"""Room for one of the studies here, and not for two."""
ROUNDS = 3


def private_study(
    privacy: dict[str, Any] = DISTRIBUTED, *, name: str = "heart", governance: str = "trial", **federation: Any
) -> Study:
    """The usual study, with another privacy block and `ROUNDS` rounds."""
    rounds = {**STUDY["federation"], "rounds": ROUNDS, **federation}
    return Study.model_validate(
        {
            **STUDY,
            "name": name,
            "privacy": privacy,
            "federation": rounds,
            "metrics": ["auc", "accuracy"],
            "governance": governance,
        }
    )


class PrivateWorld(World):
    """A platform that asks for exactly what follows from the private study, unless a test changes it."""

    def __init__(self, folder: Path, study: Study | None = None, peers: int = 3) -> None:
        super().__init__(folder, peers=peers)
        self.study = study or private_study()
        self.site_pk = bytes(32)  # until the connector has made its own

    def settings(self, **changes: Any) -> Any:
        """Every study here is approved, since tests go from one to another."""
        policy = {"approvals": "listed", "approved_studies": ["*"]}
        return super().settings(**{"policy": policy, **CAPS, **changes})

    async def join(self) -> None:
        """Registered, and granted."""
        await self.enrol()
        await self.offer()
        await self.expect(GrantGiven)

    async def turn_to(self, study: Study) -> None:
        """Another study, offered and granted: all that follows is about it."""
        self.study, self.run_id = study, RunId(str(uuid4()))
        await self.say("scheduler", self.offer_message())
        await self.expect(GrantGiven)

    async def another_run(self) -> None:
        """The same study again."""
        self.run_id = RunId(str(uuid4()))
        message: StudyOffered = self.offer_message()
        await self.say("scheduler", message)

    async def new_broker(self) -> None:
        """All that the platform knew is gone."""
        self.broker = MemoryBroker(self.clock)
        self.bus = MemoryBus(self.broker, "test")
        self.sent.clear()
        self._taken.clear()
        await self.declare()

    async def give_model(self, version: int, **options: Any) -> ModelWanted:
        """As always; questions for other versions, asked again while the answer was on its way, are passed over."""
        for place, sent in enumerate(self.sent):
            if isinstance(sent.message, ModelWanted) and sent.message.version != version:
                self._taken.add(place)
        return await super().give_model(version, **options)

    def private_params(self, purpose: Purpose, base: ModelRef | None = None, **changes: Any) -> WindowParams:
        """A window as the scheduler would open it."""
        study, members, collusion = self.study, len(self.peers) + 1, 1
        least = changes.get("least_cohort", 3)
        plan = plan_for(study, members, least, collusion)
        vector = private_spec(study, purpose, (bytes(32), bytes(32)))
        if vector is None:
            assert base is not None
            vector = self.update_params(base).vector.model_copy(update={"weight_cap": 1})
        first = 1 if purpose == "update" else study.rounds
        values: dict[str, Any] = {
            "purpose": purpose,
            "round": 0 if purpose == "statistics" else first,
            "bases": () if base is None else (base,),
            "vector": vector,
            "privacy_mode": mode_of(study),
            "noise": noise_for(study, purpose, plan, least, collusion),
            "target_cohort": max(4, least),
        }
        return self.params(**{**values, **changes})

    async def ledger(self) -> LedgerState:
        async with self.app.db.reading("test_ledger") as tx:
            return await self.app.desk.charges.ledger.state(tx)

    async def holding(self, part: Part = "training", run_id: RunId | None = None) -> Holding:
        """What the ledger has of a run; there is one block."""
        (held,) = (await self.ledger()).of_run(run_id or self.run_id, part)
        return held

    def trained(self) -> list[Any]:
        """Every job that training processes were given."""
        return [job for runner in self.runners for job in runner.jobs]
