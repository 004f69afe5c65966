"""Nothing is left out: every emitter numbers its events in a study's log, and each names the one before it.

A log keeper can hold back what came last from an emitter, and nothing inside a bundle shows that; an event between two
others it cannot.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter

from cohortium_verify.log import Entry
from cohortium_verify.report import Check, Failure, failed, passed

CHAINS = "chains"


def check_chains(entries: Sequence[Entry]) -> Check:
    """Of each emitter: the numbers 1 to n, each once, each with the digest of the one before."""
    by_emitter = {
        key_id: list(said) for key_id, said in groupby(sorted(entries, key=attrgetter("key_id")), attrgetter("key_id"))
    }
    failures = sorted(
        (failure for key_id, said in by_emitter.items() for failure in _faults(key_id, said)),
        key=lambda failure: failure.index or 0,
    )
    if failures:
        return failed(CHAINS, *failures)
    return passed(
        CHAINS, f"{len(entries)} events of {len(by_emitter)} emitters, none missing between an emitter's first and last"
    )


def _faults(key_id: str, said: Sequence[Entry]) -> Iterator[Failure]:
    numbered: dict[int, Entry] = {}
    for entry in said:
        number = entry.envelope.number
        if number is None or entry.envelope.previous is None:
            yield Failure(f"{key_id} told it without a number in its chain", entry.index)
            continue
        first = numbered.setdefault(number, entry)
        if first is not entry:
            text = f"{key_id} told two events as its number {number}; the other one is entry {first.index}"
            yield Failure(text, entry.index)
    yield from _breaks(key_id, numbered)


def _breaks(key_id: str, numbered: Mapping[int, Entry]) -> Iterator[Failure]:
    before, digest = 0, bytes(32)
    for number, entry in sorted(numbered.items()):
        if number != before + 1:
            missing = f"{before + 1}" if number == before + 2 else f"{before + 1} to {number - 1}"
            text = f"{key_id} numbered it {number}, and its number {missing} is not in this log"
            yield Failure(f"{text}: left out, or still on its way when the bundle was made", entry.index)
        elif entry.envelope.previous != digest:
            yield Failure(f"{key_id} told it after another event than the one before it in this log", entry.index)
        before, digest = number, entry.digest
