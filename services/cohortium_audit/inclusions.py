"""Hospitals ask whether the log holds what they reported; they are answered with proofs, and with nothing else.

Each event is proven in a checkpoint that the hospital itself cosigned, so that it takes no root on this service's word.
A hospital that was taken out of the study is asked to cosign once more, so that what it said last can be proven too.
"""

from cohortium_audit.domain import LogName
from cohortium_audit.store import logs
from cohortium_audit.store.logs import Leaf
from cohortium_audit.store.witnesses import witnesses
from cohortium_audit.witnessing import Witnessing
from cohortium_kit.consumer import Received
from cohortium_kit.db import Tx
from cohortium_kit.envelopes import Sender
from cohortium_kit.errors import Poison
from cohortium_messages.topology import TASKS, control_queue, uplink_key
from cohortium_messages.witness import EventsIncluded, Included, InclusionAsked
from cohortium_protocol.signing import site_key_id
from cohortium_protocol.translog import Tree, nodes_for_inclusion


class Inclusions:
    """Answers what hospitals ask of their own events."""

    def __init__(self, sender: Sender, witnessing: Witnessing) -> None:
        self._sender = sender
        self._witnessing = witnessing

    async def on_asked(self, tx: Tx, received: Received[InclusionAsked]) -> None:
        """Prove what is in the newest checkpoint that the site cosigned. The rest is asked for again."""
        message, name = received.message, LogName(received.message.study_id)
        key_id = site_key_id(message.site_id)
        if received.key_id != key_id or received.routing_key != uplink_key(message.site_id, "audit"):
            raise Poison("sender_not_allowed")
        state, witness = await logs.state(tx, name), (await witnesses(tx, name)).get(message.site_id)
        # A witness that is ahead of the log holds what a database that was put back has lost: `on_elsewhere` says so.
        held = 0 if witness is None else witness.size
        if state is None or held > state.size:
            return
        recorded = await logs.recorded(tx, [(key_id, event_id) for event_id in message.event_ids])
        here = {event_id: leaf for (_, event_id), leaf in sorted(recorded.items()) if leaf.log == name}
        if any(held <= leaf.index < state.checkpointed for leaf in here.values()):
            await self._witnessing.ask_former(tx, state, message.site_id)
        found = {event_id: leaf for event_id, leaf in here.items() if leaf.index < held}
        if not found:
            return
        answer = EventsIncluded(study_id=message.study_id, size=held, events=await _included(tx, name, held, found))
        queue = control_queue(message.site_id)
        await tx.send(self._sender.outgoing(TASKS.name, queue, answer, study=message.study_id), ordering_key=queue)


async def _included(tx: Tx, log: LogName, size: int, found: dict[str, Leaf]) -> tuple[Included, ...]:
    wanted = [node for leaf in found.values() for node in nodes_for_inclusion(leaf.index, size)]
    stored = await logs.nodes(tx, log, wanted)
    tree = Tree(size, stored.__getitem__, stored.__setitem__)
    return tuple(
        Included(event_id=event_id, index=leaf.index, hashes=tuple(tree.inclusion(leaf.index, size)))
        for event_id, leaf in found.items()
    )
