"""Where the models of a study come from: each from a sum that was opened, and from the version before."""

from collections.abc import Iterator, Sequence

from cohortium_messages import events
from cohortium_messages.ids import RunId
from cohortium_messages.secure_sum import ModelRef
from cohortium_messages.withdrawals import ModelCarried
from cohortium_verify.log import Entry
from cohortium_verify.report import Check, Failure
from cohortium_verify.rules import Said, Window, said, verdict


def check_lineage(entries: Sequence[Entry], windows: dict[bytes, Window]) -> Check:
    """Every model version comes from an opened sum, or from a strict session's, and from the version before it, without
    a gap from version 0."""
    failures: list[Failure] = []
    versions: dict[RunId, dict[int, Said[events.ModelReleased]]] = {}
    for released in said(entries, events.ModelReleased):
        known = versions.setdefault(released.message.run_id, {})
        if released.message.model.version in known:
            failures.append(Failure(f"version {released.message.model.version} is released twice", released.index))
            continue
        known[released.message.model.version] = released
        failures += _wrong_source(released, windows.get(released.message.window_id, Window()))
    carried = {one.message.run_id: one for one in said(entries, ModelCarried)}
    for run, known in versions.items():
        failures += _broken_chain(known, carried.get(run))
    for begun in carried.values():
        source = versions.get(begun.message.from_run, {}).get(begun.message.model.version)
        if source is None or source.message.model != begun.message.model:
            failures.append(Failure("a run begins with a model that was never released", begun.index))
    failures += _unknown_models(entries, versions)
    count = sum(len(known) for known in versions.values())
    return verdict(
        "model lineage", f"{count} model versions, complete from version 0, each from an opened sum", failures
    )


def _wrong_source(released: Said[events.ModelReleased], window: Window) -> Iterator[Failure]:
    """A session that pauses releases its trees as well; any other window releases a model only if it ended well."""
    run_id = released.message.run_id
    grown = any(summed.message.run_id == run_id and summed.message.trees > 0 for summed in window.summed)
    if not grown and not any(opened.message.run_id == run_id for opened in window.opened):
        yield Failure("a model was released from a window whose sum never was opened", released.index)
    good = ("RELEASED", "PAUSED") if grown else ("RELEASED",)
    if any(ended.message.state not in good for ended in window.ended):
        yield Failure("a model was released from a window that did not end well", released.index)


def _broken_chain(
    known: dict[int, Said[events.ModelReleased]], carried: Said[ModelCarried] | None
) -> Iterator[Failure]:
    """`carried`: the model of another run that this one begins with, where it does."""
    start = None if carried is None else carried.message.model
    for version, released in sorted(known.items()):
        parent = released.message.parent
        if version == 0:
            if parent is not None:
                yield Failure("version 0 names a parent; it comes from the statistics sum alone", released.index)
            continue
        before = known.get(version - 1)
        if before is None and start is not None and start.version == version - 1:
            if parent != start:
                yield Failure(
                    f"version {version} does not descend from the model that the run began with", released.index
                )
        elif before is None:
            yield Failure(f"version {version} is released, version {version - 1} never was", released.index)
        elif parent != before.message.model:
            yield Failure(f"version {version} does not descend from version {version - 1} of the log", released.index)


def _unknown_models(
    entries: Sequence[Entry], versions: dict[RunId, dict[int, Said[events.ModelReleased]]]
) -> Iterator[Failure]:
    def is_released(run: RunId, model: ModelRef) -> bool:
        released = versions.get(run, {}).get(model.version)
        return released is not None and released.message.model == model

    for bundled in said(entries, events.ModelBundled):
        if not is_released(bundled.message.run_id, bundled.message.model):
            yield Failure("the bundled model is not a released version", bundled.index)
    for evaluated in said(entries, events.ModelEvaluated):
        if not is_released(evaluated.message.run_id, evaluated.message.result.model):
            yield Failure("the evaluated model is not a released version", evaluated.index)
