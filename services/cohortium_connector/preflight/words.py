"""The report as people read it, in plain text."""

from cohortium_connector.preflight.trial import Trial

MARKS = {"ok": "ok", "warning": "WARNING", "failed": "FAILED", "skipped": "skipped"}
TITLES = {
    "settings": "settings",
    "identity": "enrolment",
    "name": "broker's name",
    "proxy": "proxy",
    "connection": "connection",
    "tls": "encryption",
    "certificate": "certificate",
    "login": "login",
    "queues": "own queues",
    "rights": "no other rights",
    "line": "line",
    "clock": "clock",
    "processor": "processors",
    "memory": "memory",
    "gpu": "graphics processors",
    "disk": "spool's disk",
    "isolation": "training cut off",
    "training": "training",
    "data": "tables",
}


def lines(trial: Trial) -> list[str]:
    """One line a check, with its facts; below a warning or a failure, what to do."""
    told = [f"Trial of site {trial.site} in {trial.federation}", ""]
    for finding in trial.findings:
        facts = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in finding.facts.items())
        told.append(f"  {MARKS[finding.state]:<9}{TITLES[finding.name]:<21}{facts}".rstrip())
        if finding.code is not None:
            told.append(f"           {finding.code}: {finding.advice}")
    told.append("")
    failures = sum(finding.state == "failed" for finding in trial.findings)
    warnings = sum(finding.state == "warning" for finding in trial.findings)
    if trial.passed:
        told.append("Ready to take part.")
    elif failures:
        told.append(f"Not ready: {failures} failed.")
    else:
        told.append(f"Not ready: {', '.join(TITLES[name] for name in trial.untried)} not tried.")
    if warnings:
        judge = "1 warning: judge it" if warnings == 1 else f"{warnings} warnings: judge them"
        told.append(f"{judge} before the first study.")
    told.append(f"Sent to {', '.join(trial.sent)}." if trial.sent else "Sent to nobody.")
    return told
