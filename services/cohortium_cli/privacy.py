"""`cohortium privacy`: attacks on models of one's own rows, and what privacy costs. Each leaves a page and its JSON."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import ValidationError

from cohortium_cli.options import Json
from cohortium_cli.output import USAGE, done, errors, fail, friendly, print_json, read_text, say
from cohortium_messages.privacy import DistributedPrivacy, LocalPrivacy
from cohortium_messages.privacy_test import PrivacyTest
from cohortium_messages.study import Study

if TYPE_CHECKING:
    from cohortium_connector.training.jobs import NamedSource
    from cohortium_connector.training.privacy_report import (
        Answer,
        BenchmarkReport,
        CalibrationReport,
        ModelFigures,
        PrivacyJob,
    )

Mode = Literal["local", "distributed"]
Isolated = Literal["require", "warn"]

DEMO_PATIENTS = {"local": 80, "distributed": 600}
"""Public numbers of training patients in the demo's tables: of the smallest hospital, and of all together."""
DEMO_ROUNDS = 200
"""Of the demo's study with distributed noise, where a round is one step."""
USUAL_RATE = {"local": 0.1, "distributed": 1.0}

privacy_app = typer.Typer(no_args_is_help=True, help="Attack models of your own rows; see what privacy costs.")

StudyOption = Annotated[
    Path | None, typer.Argument(help="The study file (YAML). Left out: the demo's study and its four hospitals.")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the report; made if missing.")]
SiteOption = Annotated[
    list[str] | None, typer.Option("--site", help="NAME=FILE, one hospital's CSV or Parquet; repeat.")
]
DataOption = Annotated[Path | None, typer.Option("--data", help="One table of all hospitals, with --site-column.")]
ColumnOption = Annotated[str | None, typer.Option(help="The column of --data that names the hospital.")]
EpsilonOption = Annotated[list[float] | None, typer.Option("--epsilon", help="A promise to look at; repeat.")]
SeedOption = Annotated[int, typer.Option(min=0, max=(1 << 31) - 1, help="Of all that is drawn.")]
Threads = Annotated[int, typer.Option(min=1, max=256, help="Threads that PyTorch may use.")]
Isolation = Annotated[Isolated, typer.Option(help="If the process cannot give up its network: stop, or only warn.")]


@privacy_app.command()
def benchmark(
    study: StudyOption = None,
    out: Out = Path("cohortium-privacy"),
    site: SiteOption = None,
    data: DataOption = None,
    site_column: ColumnOption = None,
    epsilon: EpsilonOption = None,
    delta: Annotated[float, typer.Option(help="δ of every promise, below one over the rows.")] = 1e-5,
    models: Annotated[int, typer.Option(min=4, max=256, help="Models of each kind that are trained.")] = 16,
    runs: Annotated[
        int, typer.Option(min=0, max=20_000, help="Trainings with a canary, and as many without; 0 for none.")
    ] = 200,
    rows: Annotated[int, typer.Option(min=60, max=20_000, help="Most rows that are used.")] = 600,
    seed: SeedOption = 0,
    model: Annotated[
        Path | None,
        typer.Option(help="Attack this model of the study, too (an archive, or its folder), for its release."),
    ] = None,
    trust: Annotated[Path | None, typer.Option(help="With --model: the federation's trust.json.")] = None,
    made_by: Annotated[str | None, typer.Option(help="With --model: who tests it, a hospital or a person.")] = None,
    threads: Threads = 1,
    isolation: Isolation = "warn",
    as_json: Json = False,
) -> None:
    """Attack models of these rows, with and without privacy.

    Asks who was in the training, which rows updates give away, and so how much a promise is worth. Takes some minutes.
    The report holds rates and counts, no row.

    With --model it also writes privacy-test.json: whether the model itself tells its training rows from test rows. An
    officer signs it with the release (cohortium model release --privacy-test).
    """
    from cohortium_cli.privacy_page import render_benchmark
    from cohortium_connector.training.privacy_report import Benchmarked, BenchmarkJob, benchmark_words

    parsed, sites = _study_and_sites(study, out, site or [], data, site_column)
    with _under_test(model, trust, made_by, parsed) as tested:
        with _refused_words():
            job = BenchmarkJob(
                study=parsed,
                sites=sites,
                epsilons=tuple(epsilon or (1.0, 8.0)),
                delta=delta,
                models=models,
                runs=runs,
                most_rows=rows,
                seed=seed,
                model=None if tested is None else str(tested.folder),
            )
        answer = _answer(job, threads, isolation)
    if isinstance(answer, Benchmarked):
        page, words = render_benchmark(answer.report), benchmark_words(answer.report)
        _leave(out / "privacy-benchmark", answer.report, page, words, as_json=as_json)
        if tested is not None and answer.report.model is not None:
            _leave_test(out / "privacy-test.json", tested, answer.report.model, quiet=as_json)


@dataclass(frozen=True, slots=True)
class _Tested:
    """The model that is attacked, and who does it."""

    folder: Path
    run: str
    model_hash: str
    made_by: str


@contextmanager
def _under_test(model: Path | None, trust: Path | None, made_by: str | None, study: Study) -> Iterator[_Tested | None]:
    """The model of --model, unpacked, once its signature holds; leaves with a message for another study's."""
    from cohortium_cli.model_use import trusted
    from cohortium_cli.models import attested

    if model is None:
        if trust is not None or made_by is not None:
            fail("--trust and --made-by belong to --model, the model that is to be tested", code=USAGE)
        yield None
        return
    if trust is None or not made_by:
        fail("give --trust, the federation's trust.json, and --made-by, who tests, with --model", code=USAGE)
    with attested(model, trusted(trust, None, None).document) as (folder, candidate):
        bound = candidate.bound
        if bound["study_digest"] != study.digest().hex():
            fail(f"{model} is of study {bound['study']}, and not of this version of {study.name}", code=USAGE)
        yield _Tested(folder, str(bound["run"]), str(bound["model"]["model_hash"]), made_by)


def _leave_test(path: Path, tested: _Tested, figures: "ModelFigures", *, quiet: bool) -> None:
    """What an officer signs with the release of the model."""
    with _refused_words():
        test = PrivacyTest.model_validate(
            {
                "run": tested.run,
                "model_hash": tested.model_hash,
                "method": figures.method,
                "auc": figures.auc,
                "interval": (figures.auc_low, figures.auc_high),
                "members": figures.members,
                "non_members": figures.others,
                "made_on": datetime.now(UTC).date(),
                "made_by": tested.made_by,
            }
        )
    with friendly():
        path.write_text(test.model_dump_json(indent=2) + "\n", encoding="utf-8", newline="\n")
    if not quiet:
        done(f"{path}: for `cohortium model release {tested.run} --privacy-test`")


@privacy_app.command()
def calibrate(
    study: StudyOption = None,
    out: Out = Path("cohortium-privacy"),
    site: SiteOption = None,
    data: DataOption = None,
    site_column: ColumnOption = None,
    epsilon: EpsilonOption = None,
    mode: Annotated[
        Mode | None, typer.Option(help="Where the noise is; left out, the study's, or distributed.")
    ] = None,
    delta: Annotated[float | None, typer.Option(help="Left out: the study's, or 1e-5.")] = None,
    clip: Annotated[float | None, typer.Option(help="Of a patient's gradient; left out: the study's, or 1.")] = None,
    rate: Annotated[
        float | None, typer.Option(help="Sampling rate; left out: the study's, or 0.1 local and 1 distributed.")
    ] = None,
    patients: Annotated[
        int | None,
        typer.Option(help="The public number of training patients: of the smallest hospital (local), or of all."),
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, max=100_000, help="Replaces federation.rounds.")] = None,
    repeats: Annotated[int, typer.Option(min=1, max=50, help="Runs at each ε, of which the curve is the mean.")] = 3,
    seed: SeedOption = 0,
    threads: Threads = 1,
    isolation: Isolation = "warn",
    as_json: Json = False,
) -> None:
    """What a recipe reaches at each ε on these rows: a curve of the AUC, before a study promises anything.

    Choosing ε by the rows it is then spent on is a use of these rows that no account charges: use public or old data.
    """
    from cohortium_cli.privacy_page import render_calibration
    from cohortium_connector.training.privacy_report import Calibrated, CalibrateJob, calibration_words

    parsed, sites = _study_and_sites(study, out, site or [], data, site_column)
    if rounds is None and study is None and mode != "local":
        rounds = DEMO_ROUNDS
    if rounds is not None:
        parsed = parsed.model_copy(update={"federation": parsed.federation.model_copy(update={"rounds": rounds})})
    given = {"delta": delta, "clip": clip, "sampling_rate": rate, "patients": patients}
    with _refused_words():
        job = CalibrateJob(
            study=parsed,
            sites=sites,
            privacy=_block(parsed, mode, given, demo=study is None),
            epsilons=tuple(epsilon or (0.5, 1.0, 2.0, 4.0, 8.0)),
            repeats=repeats,
            seed=seed,
        )
    answer = _answer(job, threads, isolation)
    if isinstance(answer, Calibrated):
        page, words = render_calibration(answer.report), calibration_words(answer.report)
        _leave(out / "privacy-calibration", answer.report, page, words, as_json=as_json)


def _study_and_sites(
    study: Path | None, out: Path, site: list[str], data: Path | None, column: str | None
) -> tuple[Study, tuple["NamedSource", ...]]:
    """The study and its tables; the demo's, written under `out`, where no study is named."""
    from cohortium_connector.training.jobs import DataSource, NamedSource
    from cohortium_messages.study_file import parse_study
    from cohortium_sim.demo import demo_plan
    from cohortium_sim.tables import site_tables

    with friendly(code=USAGE):
        if study is None:
            if site or data or column:
                fail("tables are given, but no study that they belong to; name the study file first", code=USAGE)
            plan = demo_plan(out)
            parsed, tables = plan.study, plan.sites
        else:
            parsed = parse_study(read_text(study, "study file"), file=str(study))
            tables = site_tables(site, data, column)
    sources = (
        NamedSource(
            name=of.name, source=DataSource(path=str(of.path.resolve()), site_column=of.column, site_value=of.value)
        )
        for of in tables
    )
    return parsed, tuple(sources)


def _block(
    study: Study, mode: Mode | None, given: dict[str, float | None], *, demo: bool
) -> LocalPrivacy | DistributedPrivacy:
    """The study's own privacy block of this mode, or the usual one, with what was given in its place."""
    own = study.privacy if isinstance(study.privacy, LocalPrivacy | DistributedPrivacy) else None
    chosen = mode or (own.mode if own is not None else "distributed")
    fields: dict[str, Any] = {"mode": chosen, "epsilon": 1.0, "delta": 1e-5, "sampling_rate": USUAL_RATE[chosen]}
    if own is not None and own.mode == chosen:
        fields = own.model_dump()
    fields |= {name: value for name, value in given.items() if value is not None}
    if "patients" not in fields:
        if not demo:
            fail("--patients: the public number of training patients is missing, and the study has none", code=USAGE)
        fields["patients"] = DEMO_PATIENTS[chosen]
    return LocalPrivacy.model_validate(fields) if chosen == "local" else DistributedPrivacy.model_validate(fields)


@contextmanager
def _refused_words() -> Iterator[None]:
    """Numbers that cannot be, by the name of their field."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the options"
        fail(f"{place}: {first['msg']}; got {first['input']!r}", code=USAGE)


def _answer(job: "PrivacyJob", threads: int, isolation: Isolated) -> "Answer":
    """The last answer of the benchmark's process; leaves with a message where it refuses."""
    from cohortium_connector.training.attacks.child import run_child
    from cohortium_connector.training.privacy_report import Refused

    def progress(text: str) -> None:
        errors.print(text, markup=False, highlight=False, soft_wrap=True)

    with friendly():
        answer = run_child(job, threads=threads, isolation=isolation, say=progress)
    if isinstance(answer, Refused):
        fail(answer.text)
    return answer


def _leave(
    stem: Path, report: "BenchmarkReport | CalibrationReport", html: str, words: Iterable[str], *, as_json: bool
) -> None:
    """The page and the figures beside it; and what was found, for a person or a program."""
    with friendly():
        stem.parent.mkdir(parents=True, exist_ok=True)
        stem.with_suffix(".html").write_text(html, encoding="utf-8", newline="\n")
        stem.with_suffix(".json").write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8", newline="\n")
    if as_json:
        print_json(report.model_dump(mode="json"))
        return
    for sentence in words:
        say(f"- {sentence}")
    done(f"{stem.with_suffix('.html')}, {stem.with_suffix('.json')}")
