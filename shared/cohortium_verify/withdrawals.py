"""Who left is in nothing that came after; what learnt from them is listed; what was decided was done; and what is
retired is used no more."""

from collections.abc import Iterator, Mapping, Sequence

from cohortium_messages import events
from cohortium_messages.emitters import SITE
from cohortium_messages.ids import RunId, SiteId
from cohortium_messages.secure_sum import ModelRef
from cohortium_messages.withdrawals import (
    MOST_MODELS,
    ModelCarried,
    ModelRetired,
    RetrainingStarted,
    WithdrawalClosed,
    WithdrawalDecided,
    WithdrawalEffective,
    WithdrawalExtended,
    WithdrawalProven,
    WithdrawalRecorded,
)
from cohortium_verify.log import Entry
from cohortium_verify.report import Check, Failure
from cohortium_verify.rules import WITHDRAWAL_GRACE, Said, Window, said, verdict

Model = tuple[RunId, ModelRef]


def check_withdrawals(entries: Sequence[Entry], windows: Mapping[bytes, Window]) -> Check:
    """Every rule about withdrawals, retired models, and runs that took another's place."""
    recorded = {one.message.withdrawal: one for one in said(entries, WithdrawalRecorded)}
    effective = {one.message.withdrawal: one for one in said(entries, WithdrawalEffective)}
    decided: dict[bytes, set[str]] = {}
    for one in said(entries, WithdrawalDecided):
        decided.setdefault(one.message.withdrawal, set()).add(one.message.effect)
    retired = {(one.message.run_id, one.message.model): one for one in said(entries, ModelRetired)}
    failures = list(_made_of_a_sum_set_aside(entries, windows))
    for digest, item in effective.items():
        about = recorded.get(digest)
        if about is None:
            failures.append(Failure("a withdrawal takes effect that is not on record", item.index))
            continue
        if about.message.type != "patient_set":
            failures += _taken_part_after(item, entries, windows)
        failures += _not_listed(item, about, entries, windows)
    failures += _retired_in_use(entries, retired)
    for model in retired.values():
        if not decided.get(model.message.withdrawal, set()) & {"retire", "retrain"}:
            failures.append(Failure("a model is retired, and nobody decided it", model.index))
    for retraining in said(entries, RetrainingStarted):
        failures += _wrong_retraining(retraining, entries, windows, effective, decided, retired)
    for proven in said(entries, WithdrawalProven):
        failures += _unproven(proven, entries, effective, decided, retired)
    fact = f"{len(recorded)} withdrawals, {len(retired)} retired models; nothing came after that should not have"
    return verdict("withdrawals", fact, failures)


def _sites_in(window: Window) -> set[SiteId]:
    """The sites whose part is in a sum of this window that was opened."""
    found = {site for opened in window.opened for site in opened.message.survivors}
    return found | {site for summed in window.summed if summed.message.sums for site in summed.message.sites}


def _taken_part_after(
    effective: Said[WithdrawalEffective], entries: Sequence[Entry], windows: Mapping[bytes, Window]
) -> Iterator[Failure]:
    """Another hospital's events may reach the log late, so both its order and the signed times must say `after`. A
    hospital that grants anew comes back."""
    site, begun = effective.message.site_id, effective.entry.envelope.time
    back = [one.index for one in said(entries, events.GrantStarted) if one.message.site_id == site]
    for window in windows.values():
        for fixed in window.fixed:
            later = fixed.index > effective.index and fixed.entry.envelope.time > begun + WITHDRAWAL_GRACE
            again = any(effective.index < index < fixed.index for index in back)
            if later and not again and site in fixed.message.sites:
                yield Failure(f"site {site} is in a cohort after its withdrawal took effect", fixed.index)


def _made_of_a_sum_set_aside(entries: Sequence[Entry], windows: Mapping[bytes, Window]) -> Iterator[Failure]:
    for released in said(entries, events.ModelReleased):
        if windows.get(released.message.window_id, Window()).aside:
            yield Failure("a model was made of a sum that was set aside, since a site in it had left", released.index)


def _learnt(
    about: Said[WithdrawalRecorded], entries: Sequence[Entry], windows: Mapping[bytes, Window]
) -> dict[Model, Said[events.ModelReleased]]:
    """Every released model in whose lineage is a sum with the site's part: all after the first such one of its run."""
    found: dict[Model, Said[events.ModelReleased]] = {}
    carried = [one.message for one in said(entries, ModelCarried)]
    tainted: set[RunId] = {one.run_id for one in carried if _is_first_tainted(one, about, entries, windows)}
    # A run may begin with a model of a run that began with a model, and so on.
    while more := {one.run_id for one in carried if one.from_run in tainted} - tainted:
        tainted |= more
    for released in sorted(said(entries, events.ModelReleased), key=lambda one: one.message.model.version):
        if _teaches(windows.get(released.message.window_id, Window()), about):
            tainted.add(released.message.run_id)
        if released.message.run_id in tainted:
            found[released.message.run_id, released.message.model] = released
    return found


def _teaches(window: Window, about: Said[WithdrawalRecorded]) -> bool:
    """Whether a model of this window learnt from who left. In a window that was authorised after they left, a hospital
    had come back with a new grant, and patients were left out."""
    if any(one.index > about.index for one in window.authorised[:1]) or about.message.site_id not in _sites_in(window):
        return False
    return all(one.message.round >= about.message.from_round for one in window.authorised[:1])


def _is_first_tainted(
    carried: ModelCarried,
    about: Said[WithdrawalRecorded],
    entries: Sequence[Entry],
    windows: Mapping[bytes, Window],
) -> bool:
    """Whether a run began with a model of a run that had learnt from the site by then."""
    return any(
        _teaches(windows.get(released.message.window_id, Window()), about)
        for released in said(entries, events.ModelReleased)
        if released.message.run_id == carried.from_run and released.message.model.version <= carried.model.version
    )


def _listed(withdrawal: bytes, effective: WithdrawalEffective, entries: Sequence[Entry], until: int) -> list[Model]:
    """What consent had said by this entry to be touched: when it took effect, and as more was made of it."""
    later = [
        one
        for extended in said(entries, WithdrawalExtended)
        if extended.message.withdrawal == withdrawal and extended.index < until
        for one in extended.message.models
    ]
    return [(one.run_id, one.model) for one in (*effective.models, *later)]


def _not_listed(
    effective: Said[WithdrawalEffective],
    about: Said[WithdrawalRecorded],
    entries: Sequence[Entry],
    windows: Mapping[bytes, Window],
) -> Iterator[Failure]:
    """What was there when the withdrawal took effect is listed there; what was made since is listed until the case is
    closed. The word takes a moment from the aggregator to consent, so the newest models are not asked for."""
    digest = about.message.withdrawal
    closed = next((one for one in said(entries, WithdrawalClosed) if one.message.withdrawal == digest), None)
    until = entries[-1].index + 1 if closed is None else closed.index
    # By the services' clocks: one hospital's that is ahead must not make the others look late.
    times = [one.envelope.time for one in entries if one.index < until and one.key_id.partition(":")[0] != SITE]
    newest = max(times, default=effective.entry.envelope.time) - WITHDRAWAL_GRACE
    first = {(one.run_id, one.model) for one in effective.message.models}
    listed = set(_listed(digest, effective.message, entries, until))
    if len(listed) >= MOST_MODELS:
        return
    for (run, model), released in _learnt(about, entries, windows).items():
        text = f"version {model.version} of run {run} learnt from who left, and the withdrawal does not list it"
        if released.index < effective.index:
            if (run, model) not in first:
                yield Failure(text, effective.index)
        elif released.index < until and released.entry.envelope.time < newest and (run, model) not in listed:
            yield Failure(text, released.index)


def _retired_in_use(entries: Sequence[Entry], retired: Mapping[Model, Said[ModelRetired]]) -> Iterator[Failure]:
    """What begins with a retired model after it was retired. One emitter says both, so the log's order is the order."""

    def over(run: RunId, model: ModelRef | None, index: int) -> bool:
        found = retired.get((run, model)) if model is not None else None
        return found is not None and found.index < index

    for released in said(entries, events.ModelReleased):
        if over(released.message.run_id, released.message.parent, released.index):
            yield Failure("a model was made from a retired one", released.index)
    for carried in said(entries, ModelCarried):
        if over(carried.message.from_run, carried.message.model, carried.index):
            yield Failure("a run begins with a retired model", carried.index)
    for bundled in said(entries, events.ModelBundled):
        if over(bundled.message.run_id, bundled.message.model, bundled.index):
            yield Failure("a retired model was made ready to be handed out", bundled.index)


def _wrong_retraining(
    retraining: Said[RetrainingStarted],
    entries: Sequence[Entry],
    windows: Mapping[bytes, Window],
    effective: Mapping[bytes, Said[WithdrawalEffective]],
    decided: Mapping[bytes, set[str]],
    retired: Mapping[Model, Said[ModelRetired]],
) -> Iterator[Failure]:
    message = retraining.message
    if "retrain" not in decided.get(message.withdrawal, set()):
        yield Failure("a study is trained again, and nobody decided it", retraining.index)
    if message.start is not None:
        start = (message.from_run, message.start)
        known = effective.get(message.withdrawal)
        listed = [] if known is None else _listed(message.withdrawal, known.message, entries, retraining.index)
        if start in listed:
            yield Failure("a retraining begins with a model that learnt from who left", retraining.index)
        if start in retired and retired[start].index < retraining.index:
            yield Failure("a retraining begins with a retired model", retraining.index)
        if not any((one.message.run_id, one.message.model) == start for one in said(entries, events.ModelReleased)):
            yield Failure("a retraining begins with a model that was never released", retraining.index)
    for window in windows.values():
        for fixed in window.fixed:
            if fixed.message.run_id == message.run_id and message.without in fixed.message.sites:
                yield Failure(f"site {message.without} is in a run that trains without it", fixed.index)


def _unproven(
    proven: Said[WithdrawalProven],
    entries: Sequence[Entry],
    effective: Mapping[bytes, Said[WithdrawalEffective]],
    decided: Mapping[bytes, set[str]],
    retired: Mapping[Model, Said[ModelRetired]],
) -> Iterator[Failure]:
    digest, effect = proven.message.withdrawal, proven.message.effect
    known = effective.get(digest)
    if known is None or effect not in decided.get(digest, set()):
        yield Failure("a receipt was made for what was not decided, or had no effect yet", proven.index)
        return
    listed = _listed(digest, known.message, entries, proven.index)
    if not listed or effect == "stop_future":
        return
    if any(model not in retired for model in listed):
        yield Failure("a receipt was made, and not all models that it is about are retired", proven.index)
    if effect == "retrain":
        again = {one.message.run_id for one in said(entries, RetrainingStarted) if one.message.withdrawal == digest}
        ended = {one.message.run_id for one in said(entries, events.RunStateChanged) if one.message.state == "FINISHED"}
        if not again & ended:
            yield Failure("a receipt says that the study was trained again, and no such run finished", proven.index)
