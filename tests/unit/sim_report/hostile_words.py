"""Words that try to become something else, and the sample run with such words wherever text comes from outside."""

import sample_run

from cohortium_messages.result import AuditCheck, MetricsTable, Result
from cohortium_messages.status import RunStatus

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "</style></title></text></svg><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)" x="',
    "' autofocus onfocus='alert(1)",
    "&lt;b&gt; &amp; &#60;script&#62;",
    "javascript:alert(1)",
    "{{7*7}} ${7*7} %(name)s $purpose {0}",
    "]]><!--<svg onload=alert(1)>-->",
    "\x00\x1b[2J\u202egnp.exe\u2028",
)


def with_words(words: str) -> tuple[Result, RunStatus]:
    """The sample with `words` in every place that takes text from a file or a site."""
    names = {name: f"{words}{place}" for place, name in enumerate(sample_run.SITES)}
    status = sample_run.finished(8)
    sites = tuple(
        site.model_copy(update={"name": names[site.name], "state": words, "code": "LABEL_INVALID", "sentence": words})
        for site in status.sites
    )
    status = status.model_copy(update={"purpose": words, "state": "FAILED", "sentence": words, "sites": sites})
    result = sample_run.result(status)
    rounds = tuple(
        round_.model_copy(update={"cohort": tuple(names[name] for name in round_.cohort), "dropped": (), "refused": ()})
        for round_ in result.rounds
    )
    options = result.options.model_copy(
        update={"trainer": words, "drop": {words: words}, "slow": {words: 1.0}, "versions": {words: words}}
    )
    audit = result.audit
    assert audit is not None
    checks = (AuditCheck(name=words, state="failed", fact=words),)
    return result.model_copy(
        update={
            "sentence": words,
            "rounds": rounds,
            "metrics": MetricsTable(federated=result.metrics.federated, local={words: sample_run.LOCAL["Cleveland"]}),
            "options": options,
            "processes": {words: 1.0},
            "audit": audit.model_copy(update={"root": words, "checks": checks}),
        }
    ), status
