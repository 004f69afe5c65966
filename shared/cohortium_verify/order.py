"""What must have come first: nothing that lets a window happen may be put on record when it is over, and nothing may be
dated after the hospitals cosigned it.

Times are their signers' own. Two clocks may differ by five minutes from the true time, each to its own side.
"""

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
    for size, at in cosigned:
        for entry in entries:
            ahead_s = entry.envelope.time.timestamp() - at
            if entry.index < size and ahead_s > CLOCKS_S:
                text = f"{entry.key_id} dated it {ahead_s / 60:.0f} minutes after the last hospital cosigned it"
                yield Failure(text, entry.index)
                return
