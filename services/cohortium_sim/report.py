"""The HTML report of a run: one file that needs nothing else, for people who were not there.

`render_report` is pure: the same result and status give the same text. Write it as UTF-8 without changing line ends:
the page allows its style and script by their digests.
"""

from cohortium_messages.result import Result
from cohortium_messages.status import RunStatus
from cohortium_sim import report_figures as figures
from cohortium_sim import report_sections as sections
from cohortium_sim import report_trees as trees
from cohortium_sim.report_html import element, joined
from cohortium_sim.report_page import page


def render_report(result: Result, status: RunStatus) -> str:
    """The report of a run that ended, well or badly. `status` is the scheduler's last word on the same run; a status of
    another run is a mistake of the caller and raises `ValueError`."""
    if status.run_id != result.run_id:
        raise ValueError(f"the result is of run {result.run_id}, the status of run {status.run_id}")
    button = element("button", {"id": "theme", "type": "button", "hidden": ""}, "Dark colours")
    main = (
        sections.top(result, status),
        sections.tiles(result),
        figures.models(result),
        figures.course(result),
        trees.importance(result),
        figures.participation(result, status),
        figures.cost(result),
        figures.calibration(result),
        sections.secure_sum(result),
        sections.audit(result),
        sections.privacy(result),
        sections.conduct(result, status),
    )
    body = joined(
        (
            element("header", None, element("p", {"class": "brand"}, "Cohortium run report"), button),
            element("main", None, *main),
            element("footer", None, "Made by cohortium simulate. The same figures for a machine are in result.json."),
        )
    )
    return page(f"{result.study}: Cohortium run report", body)
