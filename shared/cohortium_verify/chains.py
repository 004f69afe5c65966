"""Nothing is left out: every emitter numbers its events in a study's log, and each names the one before it.

A log keeper can hold back what came last from an emitter, and nothing inside a bundle shows that; an event between two
others it cannot. Numbers run within a series; an emitter whose records were lost or put back begins another one, which
the reader is told.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from cohortium_verify.log import Entry
from cohortium_verify.report import Check, Failure, failed, passed

CHAINS = "chains"


def check_chains(entries: Sequence[Entry]) -> Check:
    """Of each emitter's series: the numbers 1 to n, each once, each with the digest of the one before."""
    failures: list[Failure] = []
    series: dict[str, dict[bytes, dict[int, Entry]]] = defaultdict(lambda: defaultdict(dict))
    for entry in entries:
        envelope = entry.envelope
        if envelope.series is None or envelope.number is None or envelope.previous is None:
            failures.append(Failure(f"{entry.key_id} told it without a number in its chain", entry.index))
            continue
        first = series[entry.key_id][envelope.series].setdefault(envelope.number, entry)
        if first is not entry:
            text = f"{entry.key_id} told two events as its number {envelope.number}; the other is entry {first.index}"
            failures.append(Failure(text, entry.index))
    for key_id, chains in series.items():
        for numbered in chains.values():
            failures += _breaks(key_id, numbered)
    notes = tuple(
        f"{key_id} began to number {len(chains)} times: its records were lost or put back, and what it had told last "
        "before may be missing"
        for key_id, chains in sorted(series.items())
        if len(chains) > 1
    )
    if failures:
        return failed(CHAINS, *sorted(failures, key=lambda failure: failure.index or 0), notes=notes)
    fact = f"{len(entries)} events of {len(series)} emitters, none missing between an emitter's first and last"
    return passed(CHAINS, fact, notes)


def _breaks(key_id: str, numbered: Mapping[int, Entry]) -> Iterator[Failure]:
    before, digest = 0, bytes(32)
    for number, entry in sorted(numbered.items()):
        if number != before + 1:
            missing = f"{before + 1}" if number == before + 2 else f"{before + 1} to {number - 1}"
            text = f"{key_id} numbered it {number}, and its number {missing} is not in this log"
            why = "left out by whoever keeps the log, never told, or still on its way when the bundle was made"
            yield Failure(f"{text}: {why}", entry.index)
        elif entry.envelope.previous != digest:
            yield Failure(f"{key_id} told it after another event than the one before it in this log", entry.index)
        before, digest = number, entry.digest
