"""The two jobs of the benchmark's process, once it is isolated."""

from collections.abc import Callable

from cohortium_connector.training.attacks.benchmark import run_benchmark
from cohortium_connector.training.attacks.utility import run_calibration
from cohortium_connector.training.base import SiteRefusal
from cohortium_connector.training.data import Table, read_table
from cohortium_connector.training.jobs import NamedSource
from cohortium_connector.training.privacy_report import (
    Answer,
    Benchmarked,
    BenchmarkJob,
    Calibrated,
    PrivacyJob,
    Refused,
    Said,
)
from cohortium_connector.training.torch_ import use_threads
from cohortium_messages.study import Study
from cohortium_privacy.filter import BudgetImpossible
from cohortium_privacy.lattice import LatticeRefused
from cohortium_privacy.plan import PlanImpossible


def answer_job(job: PrivacyJob, threads: int, send: Callable[[Answer], None]) -> Answer:
    """Do the job, with a `Said` through `send` at each part of it; the last answer is given back."""
    use_threads(threads)

    def say(text: str) -> None:
        send(Said(text=text))

    try:
        tables = dict(_table(job.study, site) for site in job.sites)
        if isinstance(job, BenchmarkJob):
            return Benchmarked(report=run_benchmark(job, tables, say))
        return Calibrated(report=run_calibration(job, tables, say))
    except SiteRefusal as refused:
        return Refused(text=refused.local or refused.code)
    except (PlanImpossible, BudgetImpossible, LatticeRefused) as refused:
        return Refused(text=str(refused))


def _table(study: Study, site: NamedSource) -> tuple[str, Table]:
    try:
        return site.name, read_table(study, site.source)
    except SiteRefusal as refused:
        raise SiteRefusal(refused.code, refused.column, refused.count, f"{site.name}: {refused.local}") from None
