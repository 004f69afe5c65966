"""The pages of a privacy benchmark and of a calibration: one file each that needs nothing else.

Pure: the same report gives the same text. Write it as UTF-8 without changing line ends, as the page allows its style
and script by their digests.
"""

from collections.abc import Iterator, Mapping, Sequence

from cohortium_cli.privacy_charts import BarRow, bar_rows, curve_chart, utility_chart
from cohortium_connector.training.privacy_report import (
    ABOUT_ROWS,
    SEEN_WORDS,
    BenchmarkReport,
    CalibrationReport,
    CanaryFigures,
    InversionFigures,
    MembershipFigures,
    Promise,
    benchmark_words,
    calibration_words,
    kind_words,
)
from cohortium_sim.charts import HALF, both
from cohortium_sim.report_html import Child, Column, Html, element, facts, items, joined, paragraph, table
from cohortium_sim.report_page import page, section
from cohortium_sim.report_words import DASH, duration


def render_benchmark(report: BenchmarkReport) -> str:
    """The page of `cohortium privacy benchmark`."""
    main = (
        _top(report.study, f"Attacks on models of {report.rows:,} rows from {_sites(report.sites)}."),
        section("found", "What was found", items(*benchmark_words(report)), _notice()),
        _membership(report),
        _inversion(report),
        _canaries(report),
        _conduct(report),
    )
    return _whole(f"{report.study}: privacy benchmark", "Cohortium privacy benchmark", main)


def render_calibration(report: CalibrationReport) -> str:
    """The page of `cohortium privacy calibrate`."""
    about = (
        f"{report.trainer} with {report.mode} noise: {report.training_rows:,} training rows, {_sites(report.sites)}."
    )
    main = (
        _top(report.study, about),
        section("found", "What was found", items(*calibration_words(report)), _notice()),
        _curve(report),
        _conduct(report),
    )
    return _whole(f"{report.study}: privacy and utility", "Cohortium privacy calibration", main)


def _whole(title: str, brand: str, main: Sequence[Html]) -> str:
    button = element("button", {"id": "theme", "type": "button", "hidden": ""}, "Dark colours")
    header = element("header", None, element("p", {"class": "brand"}, brand), button)
    footer = element("footer", None, "The same figures for a machine are in the JSON file beside this page.")
    return page(title, joined((header, element("main", None, *main), footer)))


def _top(study: str, lead: str) -> Html:
    return joined((element("h1", None, study), element("p", {"class": "lead"}, lead)))


def _sites(count: int) -> str:
    return "1 hospital" if count == 1 else f"{count:,} hospitals"


def _notice() -> Html:
    return element("p", {"class": "notice"}, ABOUT_ROWS)


# -------------------------------------------------------------------------------------------------------- membership


def _membership(report: BenchmarkReport) -> Html:
    rows = [
        BarRow(
            kind_words(one),
            one.strongest.auc,
            (max(0.0, one.strongest.auc_low), min(1.0, one.strongest.auc_high)),
            one.strongest.auc_limit,
        )
        for one in report.membership
    ]
    charts = [_attackers_curve(one) for one in report.membership]
    pairs = [element("div", {"class": "pair"}, *charts[place : place + 2]) for place in range(0, len(charts), 2)]
    return section(
        "membership",
        "Who was in the training?",
        paragraph(
            "Many models are trained, each on a random half of the rows, and an attacker says of every row whether it "
            "was in. The attacker has all other models to learn from. The AUC of its scores is 0.5 for a coin, 1 for "
            "one who is never wrong; the whisker is the 99 % interval over the models, the dash the most that the "
            "promise allows any attacker."
        ),
        both(lambda width: bar_rows("AUC of the stronger attack", rows, (0.5, 1.0), width)),
        _membership_table(report.membership),
        paragraph("What share of the members the stronger attack finds, against how many others it takes for members:"),
        *pairs,
    )


def _attackers_curve(figures: MembershipFigures) -> Html:
    name = kind_words(figures)
    drawn = both(lambda width: curve_chart(name, figures.strongest.curve, width), HALF)
    return element("div", None, element("h3", None, _capital(name)), drawn)


def _membership_table(figures: Sequence[MembershipFigures]) -> Html:
    names = {"loss": "loss", "likelihood": "likelihood ratio"}
    columns = [
        Column("Model"),
        Column("Its AUC on members", "number"),
        Column("on others", "number"),
        Column("Attack", "short"),
        Column("Attack's AUC", "number"),
        Column("99 % interval", "number"),
        Column("Allowed", "number"),
        Column("Advantage", "number"),
        Column("Found at 1 %", "number"),
    ]
    rows: list[list[Child]] = []
    for one in figures:
        for attack in one.attacks:
            interval = f"{attack.auc_low:.3f} to {attack.auc_high:.3f}"
            limit = DASH if attack.auc_limit is None else f"{attack.auc_limit:.3f}"
            rows.append(
                [
                    _capital(kind_words(one)),
                    f"{one.member_auc:.3f}",
                    f"{one.other_auc:.3f}",
                    names[attack.attack],
                    f"{attack.auc:.3f}",
                    interval,
                    limit,
                    f"{attack.advantage:.3f}",
                    f"{attack.hits_at_1_percent:.1%}",
                ]
            )
    return table("Membership inference", columns, rows)


# --------------------------------------------------------------------------------------------------------- inversion


def _inversion(report: BenchmarkReport) -> Html:
    counts = sorted({one.patients for one in report.inversion})
    return section(
        "inversion",
        "Rows out of an update",
        paragraph(
            "The attacker sees the gradient of one step on very few patients and searches for rows that explain it. A "
            "patient counts as identified whose row is, of all rows of the table, the nearest to what was found. The "
            "dash is what picking rows at random identifies. The secure sum hides the hospital's update; it does not "
            "make a sum over very few patients harmless: noise does."
        ),
        *(part for count in counts for part in _inversion_chart(report, count)),
        _inversion_table(report.inversion),
    )


def _inversion_chart(report: BenchmarkReport, patients: int) -> Iterator[Html]:
    found = [one for one in report.inversion if one.patients == patients]
    rows = [BarRow(_SEEN_SHORT[one.seen], one.identified / max(1, one.wanted), None, one.guessed) for one in found]
    title = "1 patient a hospital" if patients == 1 else f"{patients} patients a hospital"
    yield element("h3", None, f"Share of patients identified, {title}")
    yield both(lambda width: bar_rows(f"Share identified, {title}", rows, (0.0, 1.0), width))


_SEEN_SHORT: Mapping[str, str] = {
    "update": "Update as it is",
    "masked": "Masked update",
    "sum": "Opened sum",
    "local": "Update with local noise",
    "distributed": "Opened sum with noise",
}


def _seen(figures: InversionFigures) -> str:
    return _capital(SEEN_WORDS[figures.seen])


def _inversion_table(figures: Sequence[InversionFigures]) -> Html:
    columns = [
        Column("Seen by the attacker", "long"),
        Column("Patients a hospital", "number"),
        Column("ε", "number"),
        Column("Identified", "number"),
        Column("At random", "number"),
        Column("Error against a guess", "number"),
    ]
    rows = [
        [
            _seen(one),
            f"{one.patients}",
            DASH if one.promise is None else f"{one.promise.epsilon:g}",
            f"{one.identified} of {one.wanted}",
            f"{one.guessed:.1%}",
            f"{one.error:.2f}",
        ]
        for one in figures
    ]
    return table("Gradient inversion", columns, rows)


# ---------------------------------------------------------------------------------------------------------- canaries


def _canaries(report: BenchmarkReport) -> Html:
    if not report.canaries:
        return section("canaries", "How much a promise is worth", paragraph("No run with a canary was asked for."))
    rows = [BarRow(_audited(one), one.bound, None, one.promise.epsilon) for one in report.canaries]
    most = max([one.promise.epsilon for one in report.canaries] + [one.bound for one in report.canaries])
    return section(
        "canaries",
        "How much a promise is worth",
        paragraph(
            "A patient is made up so as to be found, and models are trained with and without. How well the two can be "
            "told apart bounds ε from below (Clopper-Pearson). The dash is the promise: a bar beyond it would prove "
            "that the promise is broken. A short bar proves nothing: it only fails to contradict. The control leaves "
            "most of the noise out on purpose, and shows that a broken promise is found."
        ),
        both(lambda width: bar_rows("ε is at least", rows, (0.0, most), width)),
        _canary_table(report.canaries),
    )


def _audited(figures: CanaryFigures) -> str:
    kind = "control" if figures.control else "noise"
    return f"{_capital(figures.mode)} {kind}, ε = {figures.promise.epsilon:g}"


def _canary_table(figures: Sequence[CanaryFigures]) -> Html:
    columns = [
        Column("Runs"),
        Column("Promise", "number"),
        Column("By the PLD account", "number"),
        Column("At least", "number"),
        Column("Confidence", "number"),
        Column("Found with", "number"),
        Column("Alarms without", "number"),
        Column("Verdict", "short"),
    ]
    rows = [
        [
            _audited(one),
            f"{one.promise.epsilon:g}",
            f"{one.promise.epsilon_pld:.3f}",
            f"{one.bound:.3f}",
            f"{1 - one.error:.1%}",
            f"{one.hits} of {one.present}",
            f"{one.alarms} of {one.absent}",
            "refuted" if one.refuted else "not contradicted",
        ]
        for one in figures
    ]
    return table("Runs with and without a canary", columns, rows)


# ----------------------------------------------------------------------------------------------------------- utility


def _curve(report: CalibrationReport) -> Html:
    columns = [
        Column("ε"),
        Column("AUC", "number"),
        Column("least", "number"),
        Column("most", "number"),
        Column("Noise multiplier", "number"),
        Column("Steps", "number"),
        Column("ε by PLD", "number"),
        Column("Noise to signal", "number"),
    ]
    rows = [
        [
            f"{point.promise.epsilon:g}",
            f"{point.quality.auc:.3f}",
            f"{point.quality.auc_least:.3f}",
            f"{point.quality.auc_most:.3f}",
            f"{point.promise.noise_multiplier:.3g}",
            f"{point.promise.steps:,}",
            f"{point.promise.epsilon_pld:.3f}",
            f"{point.noise_to_signal:.2g}",
        ]
        for point in report.points
    ]
    return section(
        "curve",
        "AUC against ε",
        paragraph(
            f"On {report.test_rows:,} test rows; the mean of {report.repeats} runs, whiskers from the least to the "
            "most. The dashed line is the same recipe without clip and noise."
        ),
        both(lambda width: utility_chart(report, width)),
        table("The curve as a table", columns, rows),
        paragraph(
            "Noise to signal: the noise of one released mean over the largest mean that could be. Far above 1, only "
            "many steps can teach the model anything."
        ),
    )


def _conduct(report: BenchmarkReport | CalibrationReport) -> Html:
    return section("conduct", "How it was run", facts(_facts(report)))


def _facts(report: BenchmarkReport | CalibrationReport) -> Iterator[tuple[str, Child]]:
    yield "Study digest", element("span", {"class": "hash"}, report.study_digest)
    if isinstance(report, CalibrationReport):
        yield "Clip", f"{report.clip:g}"
        yield "Public number of patients", f"{report.patients:,}"
        promises = [point.promise for point in report.points]
    else:
        yield "Models of each kind", ", ".join(sorted({f"{one.models}" for one in report.membership}))
        promises = [one.promise for one in report.membership if one.promise is not None]
    yield "Promises", "; ".join(map(_promise, promises)) or DASH
    yield "Seed", f"{report.seed}"
    yield "Time", duration(report.seconds)
    yield "Versions", ", ".join(f"{name} {number}" for name, number in report.versions.items())


def _promise(promise: Promise) -> str:
    return f"ε = {promise.epsilon:g} at δ = {promise.delta:g}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
