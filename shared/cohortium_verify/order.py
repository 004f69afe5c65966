"""What must have come first: nothing that lets a window happen may be put on record when it is over, and nothing may be
dated after the hospitals cosigned it.

Times are their signers' own. Two clocks may differ by five minutes from the true time, each to its own side.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence

from cohortium_messages import events
from cohortium_messages.ids import SiteId
from cohortium_verify.log import Entry
from cohortium_verify.report import Check, Failure
from cohortium_verify.rules import Said, Window, said, verdict

CLOCKS_S = 600
Starts = Mapping[tuple[SiteId, bytes], Said[events.GrantStarted]]


def check_order(
    entries: Sequence[Entry], windows: Mapping[bytes, Window], cosigned: Sequence[tuple[int, int]]
) -> Check:
    """`cosigned`: the sizes of checkpoints that a quorum of hospitals cosigned, each with its latest cosignature."""
    starts: dict[tuple[SiteId, bytes], Said[events.GrantStarted]] = {}
    for item in said(entries, events.GrantStarted):
        starts.setdefault((item.message.site_id, item.message.grant_digest), item)
    failures = [failure for window_id, window in windows.items() for failure in _backdated(window_id, window, starts)]
    failures += _postdated(entries, cosigned)
    seen = f", {len(cosigned)} times of cosigning" if cosigned else ""
    return verdict("order", f"{len(windows)} windows, each after what it rests on{seen}", failures)


def _backdated(window_id: bytes, window: Window, starts: Starts) -> Iterator[Failure]:
    """A permit is given once, on a grant that is on record before the window is over."""
    if len(window.authorised) > 1:
        text = f"window {window_id.hex()} was authorised a second time: a permit was replayed"
        yield Failure(text, window.authorised[1].index)
    ends = [one.index for one in window.opened] + [one.index for one in window.summed]
    over = min(ends + [one.index for one in window.ended], default=None)
    for grounds in window.authorised:
        for permit in grounds.message.permits:
            start = starts.get((permit.site_id, permit.grant_digest or b"")) if permit.permitted else None
            if start is not None and over is not None and start.index > over:
                text = (
                    f"the grant of site {permit.site_id} was put on record when its window {window_id.hex()} was over"
                )
                yield Failure(f"{text}: it is back-dated", start.index)


def _postdated(entries: Sequence[Entry], cosigned: Sequence[tuple[int, int]]) -> Iterator[Failure]:
    """One failure for each emitter, at the first of its entries that are dated too late."""
    sizes, first_held = _first_held(cosigned)
    ahead: dict[str, list[tuple[int, float]]] = {}
    for entry in entries:
        place = bisect_right(sizes, entry.index)
        ahead_s = entry.envelope.time.timestamp() - first_held[place]
        if ahead_s > CLOCKS_S:
            ahead.setdefault(entry.key_id, []).append((entry.index, ahead_s))
    for key_id, found in ahead.items():
        others = f" and {len(found) - 1} more entries, the furthest by" if len(found) > 1 else ","
        furthest = max(seconds for _, seconds in found) / 60
        text = (
            f"{key_id} dated it{others} {furthest:.0f} minutes after the last hospital cosigned it: its clock was "
            "ahead, or the date is made up. Set that clock right (NTP). What is recorded stays so, and every later "
            "bundle shows it: keep the reason with it; `fault_seen` CLOCK_AHEAD in the platform's log says since when"
        )
        yield Failure(text, found[0][0])


def _first_held(cosigned: Sequence[tuple[int, int]]) -> tuple[list[int], list[float]]:
    """The sizes in their order, and for each the earliest moment at which it or a larger one was cosigned; behind them
    one that never comes."""
    ordered = sorted(cosigned)
    moments = [float("inf")]
    for _, at in reversed(ordered):
        moments.append(min(at, moments[-1]))
    return [size for size, _ in ordered], moments[::-1]
