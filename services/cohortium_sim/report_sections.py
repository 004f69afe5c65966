"""The report's parts that are words and tables. Each holds also where a run ended early and figures are missing."""

from collections.abc import Iterator
from statistics import median

from cohortium_messages.result import AuditCheck, MetricsResult, Result
from cohortium_messages.status import RunStatus
from cohortium_sim.metric_words import main_metric, measured
from cohortium_sim.report_html import Child, Column, Html, element, facts, items, joined, paragraph, table
from cohortium_sim.report_page import section
from cohortium_sim.report_words import (
    DASH,
    NO_GUARANTEE,
    StateWord,
    clean,
    duration,
    headline,
    number,
    plural,
    promise_rows,
    run_state,
    secure_sum_words,
    site_state,
    strict_words,
)

_CHECKS = {
    "passed": StateWord("✓", "v", "holds", "good"),
    "failed": StateWord("×", "x", "does not hold", "bad"),
    "skipped": StateWord(DASH, "-", "not asked", "quiet"),
}


GOVERNANCE_WORDS = {
    "trial": "trial: each hospital's own grant, without agreements, ethics approvals or data-use terms",
    "required": "agreements, ethics approvals and data-use terms, judged by each hospital from its signed copies",
}


def badge(state: StateWord) -> Html:
    """A state as an icon with its word."""
    icon = element("span", {"aria-hidden": "true"}, state.icon)
    return element("span", {"class": f"state {state.tone}"}, icon, element("span", None, state.word))


def hash_text(value: str) -> Html:
    """A long identifier that may be broken anywhere."""
    return element("span", {"class": "hash"}, value)


def top(result: Result, status: RunStatus) -> Html:
    """Name, purpose, state, and the sentences that say what came of the run."""
    kind = element("span", {"class": "soft"}, "strict sessions" if result.training else f"{result.mode} rounds")
    return joined(
        (
            element("h1", None, result.study),
            paragraph(status.purpose),
            element("div", {"class": "under"}, badge(run_state(result.state)), kind),
            element("p", {"class": "lead"}, headline(result)),
        )
    )


def tiles(result: Result) -> Html:
    """The figures to remember."""
    return element("ul", {"class": "tiles"}, *_tiles(result))


def _tiles(result: Result) -> Iterator[Html]:
    yield from _metric_tiles(result)
    training = result.training
    if training is None:
        pace = (
            f"{duration(median(round_.seconds for round_ in result.rounds))} the median"
            if result.rounds
            else "none done"
        )
        yield _tile("Rounds", f"{len(result.rounds):,} of {result.rounds_planned:,}", pace)
    else:
        told = f"{plural(training.sessions, 'session')}, {plural(training.steps, 'step')}"
        yield _tile("Boosting rounds", f"{training.trees:,} of {training.rounds:,}", told)
    figures = result.secure_sum
    if figures is not None:
        yield _tile("Sites in the sum", f"{figures.n}", f"never fewer than {figures.k_min}")
        yield _tile("Upload", f"{figures.bytes_per_parameter:.2f} B", "for each parameter")
    if result.audit is not None:
        verdict = "verified" if result.audit.verified else "not verified"
        yield _tile("Audit log", verdict, f"{result.audit.tree_size:,} entries")


def _metric_tiles(result: Result) -> Iterator[Html]:
    federated, pooled = result.metrics.federated, result.metrics.pooled
    word = main_metric(federated)
    if federated is None or word is None:
        return
    bound = f"± {word.bound(federated):.3f} " if word.bound(federated) else ""
    figure = word.text(federated).split(" ±")[0]
    yield _tile(f"{word.name}, federated", figure, f"{bound}on {federated.rows:,} test rows")
    reached, best = word.of(federated), word.of(pooled)
    if reached is not None and best is not None:
        shown = f"{reached - best:+.3f}" if word.most else f"{reached - best:+.3g}"
        yield _tile("Against pooled", shown, f"all rows in one place: {word.text(pooled)}")


def _tile(what: str, figure: str, more: str) -> Html:
    return element(
        "li",
        None,
        element("span", {"class": "what"}, what),
        element("span", {"class": "figure"}, figure),
        element("span", {"class": "more"}, more),
    )


def model_table(result: Result) -> Html:
    """Every model on the same test rows."""
    found = list(models_of(result))
    calibrated = any(metrics.calibration is not None for _, metrics in found)
    words = measured(metrics for _, metrics in found)
    binary = any(metrics.positives for _, metrics in found)
    heads = [word.name for word in words] + ["Calibration error"] * calibrated
    heads += ["Test rows"] + ["With outcome"] * binary
    columns = [Column("Model"), *(Column(head, "number") for head in heads)]
    rows = []
    for name, metrics in found:
        calibration = metrics.calibration
        cells: list[Child] = [word.text(metrics) for word in words]
        cells += [number(None if calibration is None else calibration.ece)] * calibrated
        cells += [f"{metrics.rows:,}"] + [f"{metrics.positives:,}"] * binary
        rows.append([name, *cells])
    return table("Models on the test rows", columns, rows)


def models_of(result: Result) -> Iterator[tuple[str, MetricsResult]]:
    """The models that there are, by the name to show."""
    table_ = result.metrics
    for name, metrics in (("federated", table_.federated), ("pooled", table_.pooled), ("bagging", table_.bagging)):
        if metrics is not None:
            yield name, metrics
    for name, metrics in table_.local.items():
        yield f"only {name}", metrics


def site_table(result: Result, status: RunStatus) -> Html:
    """The members as they were when the run ended."""
    seen = {site.name: site.last_seen for site in status.sites}
    columns = [
        Column("Site"),
        Column("State", "short"),
        Column("Updates used", "number"),
        Column("Last seen", "short"),
        Column("Why", "long"),
    ]
    rows = []
    for site in result.sites:
        last = seen.get(site.name)
        shown = DASH if last is None else f"{last:%H:%M:%S} UTC"
        why = site.sentence or site.code or DASH
        rows.append([site.name, badge(site_state(site.state, site.code)), f"{site.updates_used:,}", shown, why])
    return table("Sites at the end of the run", columns, rows)


def secure_sum(result: Result) -> Html:
    """What the protocol promises with this run's numbers."""
    figures = result.secure_sum
    if result.training is not None and result.training.sessions:
        return section("sum", "The secure sum", *(paragraph(words) for words in strict_words(result)))
    if figures is None:
        return section("sum", "The secure sum", paragraph("No cohort was formed, so nothing was ever summed."))
    return section(
        "sum",
        "The secure sum",
        paragraph(
            "Every update was masked at its site. The masks of a cohort cancel each other only in the sum, so the "
            "aggregator could add the updates up without being able to read one."
        ),
        items(*secure_sum_words(figures)),
    )


def audit(result: Result) -> Html:
    """What the offline check of the log found, question by question."""
    found = result.audit
    if found is None:
        return section("audit", "The audit log", paragraph("No audit bundle was fetched, so nothing was checked."))
    verdict = StateWord("✓", "v", "verified", "good") if found.verified else StateWord("×", "x", "not verified", "bad")
    keys = (
        "The governance officers' keys were given to the check from outside."
        if found.keys_pinned
        else "The governance officers' keys were taken from the bundle itself. To rule out that the whole bundle is "
        "an invention, compare them with keys you got from the officers."
    )
    entries = facts(
        [
            ("Verdict", badge(verdict)),
            ("Entries", f"{found.tree_size:,}"),
            ("Root of the Merkle tree", hash_text(found.root) if found.root else DASH),
        ]
    )
    return section(
        "audit",
        "The audit log",
        entries,
        _check_table(found.checks) if found.checks else None,
        paragraph(keys),
        paragraph("Anyone can repeat the check, offline: ", element("code", None, "cohortium verify audit/"), "."),
    )


def _check_table(checks: tuple[AuditCheck, ...]) -> Html:
    rows = [[check.name, badge(_CHECKS[check.state]), check.fact] for check in checks]
    return table(
        "What the check asked of the bundle",
        [Column("Question"), Column("Answer", "short"), Column("Fact", "long")],
        rows,
    )


def privacy(result: Result) -> Html:
    """What is promised, by which mechanism, and who has to be trusted for it; or that nothing is."""
    promised = result.privacy
    if promised is None or promised.mode == "none":
        return section("privacy", "Privacy", element("p", {"class": "notice"}, NO_GUARANTEE))
    said = [element("p", None, sentence) for sentence in promised.sentences]
    rows = [[name, value] for name, value in promise_rows(promised)]
    figures = table("The promise in numbers", [Column("What"), Column("Value", "long")], rows)
    return section("privacy", "Privacy", *said, figures)


def conduct(result: Result, status: RunStatus) -> Html:
    """How the run was started, what it took, with which libraries."""
    return section(
        "conduct",
        "How it was run",
        facts(_identity(result, status), "long"),
        facts(_conduct(result, status)),
        element("h3", None, "Peak memory") if result.processes else None,
        facts((clean(role), f"{peak:,.0f} MB") for role, peak in result.processes.items()),
    )


def _identity(result: Result, status: RunStatus) -> Iterator[tuple[str, Child]]:
    yield "Run", hash_text(result.run_id)
    yield "Study digest", hash_text(status.study_digest.hex())
    yield "Governance", GOVERNANCE_WORDS[result.governance]
    if status.model is not None:
        yield f"Last model: version {status.model.version}", hash_text(status.model.model_hash.hex())


def _conduct(result: Result, status: RunStatus) -> Iterator[tuple[str, Child]]:
    options, timing = result.options, result.timing
    yield "Begun", f"{status.created_at:%Y-%m-%d %H:%M:%S} UTC"
    parts = {"embedded": "in-memory broker, SQLite", "real": "RabbitMQ, PostgreSQL"}[options.parts]
    yield "Parts", f"{options.parts}: {parts}"
    yield "Processes", {"one": "all in one", "many": "one for each service and site"}[options.processes]
    if options.trainer:
        yield "Trainer", options.trainer
    if options.seed is not None:
        yield "Seed", f"{options.seed}"
    if options.drop:
        yield "Made to vanish", "; ".join(f"{clean(name)} @ {when}" for name, when in options.drop.items())
    if options.slow:
        yield "Slowed down", "; ".join(f"{clean(name)} by {duration(by)}" for name, by in options.slow.items())
    if status.attempts_failed:
        yield "Windows tried again", f"{status.attempts_failed:,}"
    named = {"Set-up": timing.setup_s, "Run": timing.run_s, "Comparison": timing.compare_s, "Check": timing.verify_s}
    yield "Time", "; ".join(f"{name} {duration(took)}" for name, took in named.items() if took is not None)
    if options.versions:
        yield "Versions", ", ".join(f"{clean(name)} {clean(value)}" for name, value in options.versions.items())
