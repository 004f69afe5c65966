"""What must be true when all is over: nothing is left anywhere, and the log holds every event once."""

import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import closing
from pathlib import Path
from typing import Any

from cohortium_kit._memory_broker import MemoryBroker
from cohortium_messages.envelope import KEY_ID_HEADER, REASON_HEADER
from cohortium_messages.topology import QueueKind
from cohortium_sim.storm.parts import NAMESPACE, Part

FINAL = ("FINISHED", "FAILED", "STOPPED")
_OF_AGGREGATOR = {
    "open windows": "SELECT count(*) FROM sum_window WHERE state <> 'ENDED'",
    "chunks on record": "SELECT count(*) FROM upload_chunk",
    "uploads on record": "SELECT count(*) FROM upload",
    "shares on record": "SELECT count(*) FROM answer",
}
_OF_SCHEDULER = {"open windows": "SELECT count(*) FROM run_window WHERE phase <> 'ENDED'"}
_OF_SITE = {
    "open windows": "SELECT count(*) FROM site_window WHERE phase NOT IN ('DONE', 'FREED', 'SPENT')",
    "keys of windows": "SELECT count(*) FROM window_material WHERE keys IS NOT NULL",
    "finished vectors": "SELECT count(*) FROM product",
    "models": "SELECT count(*) FROM model",
}
_UNSENT = {"unsent messages": "SELECT count(*) FROM outbox WHERE sent_at IS NULL"}
_OF_ROLE: Mapping[str, Mapping[str, str]] = {
    "aggregator": _OF_AGGREGATOR,
    "scheduler": _OF_SCHEDULER,
    "connector": _OF_SITE,
}
_FOLDERS = {"aggregator": ("uploads",), "connector": ("uploads", "products", "models", "work")}


def records_of(role: str) -> dict[str, str]:
    """What a part of this role must have none of in the end: a name, and the query that counts it."""
    return {**_UNSENT, **_OF_ROLE.get(role, {})}


def files_of(role: str, data_dir: Path) -> Iterator[str]:
    """What is left in folders that should be empty, in words."""
    for folder in _FOLDERS.get(role, ()):
        files = [path for path in (data_dir / folder).rglob("*") if path.is_file()]
        if files:
            yield f"{len(files)} files in {folder}: {files[0].name}"


def ask(database: str, query: str) -> list[tuple[Any, ...]]:
    """Read a part's database from outside."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=0)) as raw:
        return raw.execute(query).fetchall()


def run_state(scheduler: Part) -> tuple[str, str] | None:
    """State and reason of the only run; None before it is submitted."""
    rows = ask(scheduler.database, "SELECT state, reason FROM run")
    return (str(rows[0][0]), str(rows[0][1])) if rows else None


def leftovers(broker: MemoryBroker, parts: Sequence[Part], gone: frozenset[str]) -> list[str]:
    """What is left in queues, records and folders that should be empty; `gone`: ids of sites that will not come."""
    found = list(_in_queues(broker, gone))
    for part in parts:
        if not part.gone:
            found += _in_records(part)
            if part.role in _FOLDERS:
                found += [f"{part.name} has {what}" for what in files_of(part.role, part.data_dir)]
    return found


def _in_queues(broker: MemoryBroker, gone: frozenset[str]) -> Iterator[str]:
    for name, queue in broker._spaces[NAMESPACE].queues.items():
        owner = name.split(".")[1] if name.startswith("site.") else ""
        if name.endswith(".dead") or owner in gone or name == "presence" or queue.rules.kind is QueueKind.STREAM:
            continue
        held = sum(len(taker.holding) for taker in queue.takers)
        if queue.ready or held:
            kinds = Counter(item.outgoing.type for item in queue.ready)
            yield f"{len(queue.ready)} messages wait in {name} and {held} are held: {dict(kinds)}"


def _in_records(part: Part) -> Iterator[str]:
    for what, query in records_of(part.role).items():
        (count,) = ask(part.database, query)[0]
        if count:
            yield f"{part.name} has {count} {what}"


def dead_letters(broker: MemoryBroker, revoked: Set[str] = frozenset()) -> list[str]:
    """Messages that were parked. Honest parts send none that must be; `revoked`: key ids of who speaks no more."""
    found = []
    for name, queue in broker._spaces[NAMESPACE].queues.items():
        if name.endswith(".dead"):
            found += [
                f"{item.outgoing.headers.get(REASON_HEADER)}: {item.outgoing.type} in {name}"
                for item in queue.ready
                if item.outgoing.headers.get(KEY_ID_HEADER) not in revoked
            ]
    return found


def log_faults(audit: Part, events: Mapping[str, str]) -> list[str]:
    """Events that the broker took and the log does not hold, or holds twice."""
    logged = Counter(str(row[0]) for row in ask(audit.database, "SELECT event_id FROM leaf"))
    missing = Counter(kind for event, kind in events.items() if event not in logged)
    twice = [event for event, count in logged.items() if count > 1 and event in events]
    faults = [f"the log lacks {count} acknowledged {kind}" for kind, count in missing.items()]
    return faults + [f"the log holds {events[event]} {event} twice" for event in twice]


def size_of(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
