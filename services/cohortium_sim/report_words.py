"""The words and number formats that the live view, the printed table and the HTML report share."""

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from cohortium_messages.privacy import PrivacyStatement
from cohortium_messages.result import MetricsResult, Result, SecureSumResult, TrainingResult
from cohortium_messages.runs import EvaluationResult

Tone = Literal["good", "busy", "warn", "bad", "quiet"]
"""What a colour may add to an icon and a word; never the only bearer of the meaning."""

DASH = "\N{EN DASH}"
_BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_UNPRINTED = frozenset(("Cc", "Cs", "Zl", "Zp"))


def clean(text: str) -> str:
    """`text` on one line, without characters that steer a terminal or turn the direction of writing.

    Names and purposes come from files: an escape sequence in one must not move the reader's cursor, nor an override
    character make one site look like another.
    """
    shown = (
        "\ufffd" if char in _BIDI_CONTROLS or unicodedata.category(char) in _UNPRINTED else char
        for char in " ".join(text.split())
    )
    return "".join(shown)


@dataclass(frozen=True, slots=True)
class StateWord:
    """How a state is shown: an icon of one column, the same for terminals without Unicode, a word, a tone."""

    icon: str
    ascii_icon: str
    word: str
    tone: Tone


_SITE_STATES = {
    "idle": StateWord("○", "o", "idle", "quiet"),
    "training": StateWord("●", "*", "training", "busy"),
    "evaluating": StateWord("◆", "#", "evaluating", "busy"),
    "waiting": StateWord("◌", ".", "waiting", "quiet"),
    "uploading": StateWord("↑", "^", "uploading", "busy"),
    "paused": StateWord("‖", "=", "paused", "warn"),
    "invited": StateWord("?", "?", "invited", "quiet"),
    "silent": StateWord("!", "!", "silent", "warn"),
    "withdrawn": StateWord("×", "x", "withdrawn", "bad"),
}
_REFUSED = StateWord("×", "x", "refused", "bad")

_RUN_STATES = {
    "RECRUITING": StateWord("○", "o", "waits for sites to grant", "quiet"),
    "PREPARING": StateWord("◆", "#", "sums statistics", "busy"),
    "TRAINING": StateWord("●", "*", "trains", "busy"),
    "FINISHED": StateWord("✓", "v", "finished", "good"),
    "FAILED": StateWord("×", "x", "failed", "bad"),
    "STOPPED": StateWord("■", "#", "stopped", "warn"),
}


def site_state(state: str, code: str | None) -> StateWord:
    """A site's state in words. A site that gave a reason against taking part has refused, unless it withdrew."""
    if code is not None and state != "withdrawn":
        return _REFUSED
    return _SITE_STATES.get(state, StateWord("·", ".", clean(state), "quiet"))


def run_state(state: str) -> StateWord:
    """A run's state in words."""
    return _RUN_STATES.get(state, StateWord("·", ".", clean(state).lower(), "quiet"))


def plural(count: int, word: str) -> str:
    """`1 site`, `4 sites`, `1,200 rows`."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def listed(names: Iterable[str]) -> str:
    """`A, B and C`, cleaned."""
    shown = [clean(name) for name in names]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}" if shown else "none"


def byte_count(count: float) -> str:
    """Bytes in decimal units: `812 B`, `24.3 kB`, `1.2 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.95:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """`0.42 s`, `41.3 s`, `12 min 05 s`, `3 h 07 min`."""
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def number(value: float | None, digits: int = 3) -> str:
    """A fixed number of decimals, or a dash where there is no number."""
    return DASH if value is None else f"{value:.{digits}f}"


def auc_text(metrics: MetricsResult | None) -> str:
    """The AUC with its bound, `0.896 ± 0.003`; without one where raw scores were at hand."""
    if metrics is None or metrics.auc is None:
        return DASH
    bound = f" ± {metrics.auc_error_bound:.3f}" if metrics.auc_error_bound else ""
    return f"{metrics.auc:.3f}{bound}"


def evaluated(evaluation: EvaluationResult | None) -> MetricsResult | None:
    """An evaluation as metrics, or nothing."""
    return None if evaluation is None else MetricsResult.of(evaluation)


def ranges(rounds: Iterable[int]) -> str:
    """Ascending numbers as ranges, `1–12, 14`; a dash for none."""
    found: list[list[int]] = []
    for value in rounds:
        if found and value == found[-1][1] + 1:
            found[-1][1] = value
        else:
            found.append([value, value])
    return ", ".join(f"{low}" if low == high else f"{low}{DASH}{high}" for low, high in found) or DASH


def headline(result: Result) -> str:
    """What came of the run, in a few sentences."""
    sites = plural(sum(site.updates_used > 0 for site in result.sites), "site")
    if result.state == "FINISHED":
        return " ".join((f"{sites} {_made(result)}", *_quality(result)))
    reason = result.sentence or result.reason or "No reason is on record."
    ended = {"FAILED": "The run failed", "STOPPED": "The run was stopped"}.get(result.state, "The run did not end")
    return " ".join((f"{ended} after {_extent(result)}: {clean(reason)}", *_quality(result)))


def _made(result: Result) -> str:
    training = result.training
    if training is None:
        return f"trained one model together in {plural(len(result.rounds), 'round')}."
    grown = f"grew one model together, of {plural(training.trees, 'boosting round')}."
    if result.reason:
        grown += f" {training.rounds:,} were planned: {clean(result.sentence or result.reason)}"
    return grown


def _extent(result: Result) -> str:
    training = result.training
    if training is None:
        return f"{plural(len(result.rounds), 'round')} of {result.rounds_planned:,}"
    return f"{plural(training.trees, 'boosting round')} of {training.rounds:,}"


def _quality(result: Result) -> list[str]:
    table = result.metrics
    if table.federated is None:
        return []
    known = [one for one in _HEADLINES if getattr(table.federated, one[0]) is not None]
    if not known:
        return []
    field, name, higher_is_better = known[0]
    value = getattr(table.federated, field)
    bound = table.federated.auc_error_bound if field == "auc" else None
    exact = f", known to ± {bound:.3f}" if bound else ""
    said = [f"On {table.federated.rows:,} test rows its {name} is {value:.3f}{exact}."]
    local = [found for metrics in table.local.values() if (found := getattr(metrics, field)) is not None]
    pooled = None if table.pooled is None else getattr(table.pooled, field)
    if pooled is not None and local:
        best = max(local) if higher_is_better else min(local)
        said.append(
            f"The same recipe reaches {pooled:.3f} with all rows in one place, and {best:.3f} at the best single site."
        )
    return said


_HEADLINES = (
    ("auc", "AUC", True),
    ("accuracy", "accuracy", True),
    ("rmse", "RMSE", False),
    ("mae", "MAE", False),
    ("r2", "R²", True),
)
"""Metrics to speak of, the most telling first: field, name, and whether more is better."""


def secure_sum_words(figures: SecureSumResult) -> tuple[str, ...]:
    """The protocol's numbers as promises, one sentence each."""
    spare = figures.n - figures.t
    vanish = {0: "No site may", 1: "Any one site may"}.get(spare, f"Any {spare} sites may")
    colluding = {
        0: "The operator alone",
        1: "The operator and one site that colludes with it",
    }.get(figures.c, f"The operator and up to {figures.c} sites that collude with it")
    honest = max(0, figures.k_min - figures.c)
    return (
        f"{plural(figures.n, 'site')} took part in the newest sum (n = {figures.n}), and {figures.t} of them must "
        f"answer to open it (t = {figures.t}). {vanish} vanish after upload without stopping the round "
        f"(n {DASH} t = {spare}).",
        f"{colluding} can learn nothing of another site's update but the sum it is in (c = {figures.c}).",
        f"No sum over fewer than {plural(figures.k_min, 'site')} is opened (k_min = {figures.k_min}), so each holds "
        f"the updates of at least {plural(honest, 'site')} outside such a collusion.",
        f"Numbers travel as words of {figures.ring} bits, added modulo 2 to the power of {figures.ring}: "
        f"{figures.bytes_per_parameter:.2f} bytes for each of {figures.parameters:,} parameters, from each site in "
        f"each round.{_overhead(figures)}",
    )


def _overhead(figures: SecureSumResult) -> str:
    word = figures.ring / 8
    if figures.bytes_per_parameter <= 1.05 * word:
        return " A plain 32-bit number would be 4."
    return (
        f" Of these, {word:g} are the masked number itself. The rest is padding, keys and shares, and weighs less the "
        "larger the model is."
    )


def training_words(training: TrainingResult) -> str:
    """How trees were grown, in one line: what, in how many sessions, at what pace."""
    said = (
        f"{training.trees:,} of {training.rounds:,} boosting rounds, {plural(training.sessions, 'session')}, "
        f"{plural(training.steps, 'step')}"
    )
    if training.cohort_changes:
        said += f", cohort changed {_times(training.cohort_changes)}"
    return said


def strict_words(result: Result) -> tuple[str, ...]:
    """What the strict sessions of LightGBM promise, one paragraph each."""
    training = result.training
    if training is None:
        return ()
    said = [
        "While the trees grew, every histogram was masked at its site. The masks of all sites cancel each other only "
        "in the sum over all of them, so no sum of fewer could be opened, and no site's own histogram was ever read. "
        "The best splits that sites found on opened sums, and the trees, were shown to the operator and every site.",
        f"{plural(training.steps, 'step')} in {plural(training.sessions, 'session')}, each a sum or an exchange that "
        f"all sites of the session had to take part in.{_again(training.sessions)}",
    ]
    if training.cohort_changes:
        said.append(
            f"The cohort changed {_times(training.cohort_changes)}, as the study allows: sums over nearly the same "
            "rows were opened with the lost site and without it. Whoever saw both can take one from the other, and "
            "come close to that site's own part."
        )
    return tuple(said)


def _again(sessions: int) -> str:
    if sessions < 2:
        return ""
    return f" Training was interrupted {_times(sessions - 1)}, and went on from the last finished tree with new keys."


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count:,} times")


NO_GUARANTEE = (
    "This study has no formal privacy guarantee for the published model (privacy mode: none). The secure sum hides "
    "each site's update from everybody else; it does not limit what the sum itself, or the model made of it, may say "
    "about a single person."
)


def promise_rows(promised: PrivacyStatement) -> Iterator[tuple[str, str]]:
    """The numbers of a formal promise, each with its name."""
    yield "Unit", f"one {promised.unit}"
    yield "Mode", f"{promised.mode}: {promised.mechanism}"
    yield "ε, at most", f"{promised.epsilon:g}"
    yield (
        "ε of the plan",
        f"{promised.epsilon_rdp:.4g} (Rényi), {promised.epsilon_pld:.4g} (privacy-loss distributions)",
    )
    yield "δ", f"{promised.delta:g}"
    yield "Noise multiplier", f"{promised.noise_multiplier:.4g}"
    yield "Sampling rate", f"{promised.sampling_rate:g}"
    yield "Noisy steps at a site", f"{promised.steps:,}"
    if promised.evaluation_epsilon is not None:
        yield "ε of the evaluation", f"{promised.evaluation_epsilon:.4g}, for test patients"
    yield "Relies on", "; ".join(promised.relies_on)
