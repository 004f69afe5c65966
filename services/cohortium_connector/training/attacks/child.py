"""The process in which a benchmark or calibration runs: without a network, as a hospital's training does."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import IO, Literal

from cohortium_connector.training.privacy_report import Answer, PrivacyJob, PrivacyLines, Said
from cohortium_kit.errors import CohortiumError

MOST_ANSWER_BYTES = 16 << 20
KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TZ", "PYTHONPATH", "LD_LIBRARY_PATH")
END_TIMEOUT_S = 10.0


class BenchmarkCrashed(CohortiumError):
    """The process ended without a report. What it wrote on standard error says more."""


def run_child(
    job: PrivacyJob, *, threads: int, isolation: Literal["require", "warn"], say: Callable[[str], None]
) -> Answer:
    """Its last answer; `say` gets what it says on the way. Raises `BenchmarkCrashed`.

    The process ends with this call, however that ends: also on Ctrl-C, which it does not see itself.
    """
    command = [sys.executable, "-P", "-m", "cohortium_connector.training.attacks"]
    command += [f"--isolation={isolation}", f"--threads={threads}", f"--parent={os.getpid()}"]
    environment = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
    with tempfile.TemporaryDirectory(prefix="cohortium-privacy-") as scratch:
        child = subprocess.Popen(  # noqa: S603 - our own module, no shell
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment | {"TMPDIR": scratch},
            start_new_session=True,
        )
        try:
            return _last_answer(child, job, say)
        finally:
            _end(child)


def _last_answer(child: "subprocess.Popen[bytes]", job: PrivacyJob, say: Callable[[str], None]) -> Answer:
    assert child.stdin is not None  # noqa: S101 - opened as pipes
    assert child.stdout is not None  # noqa: S101
    with contextlib.suppress(BrokenPipeError):
        child.stdin.write(PrivacyLines.job.dump_json(job) + b"\n")
        child.stdin.close()
    while True:
        answer = _next_answer(child.stdout)
        if answer is None:
            raise BenchmarkCrashed(f"the benchmark's process ended without a report (exit code {child.wait()})")
        if not isinstance(answer, Said):
            return answer
        say(answer.text)


def _next_answer(lines: IO[bytes]) -> Answer | None:
    line = lines.readline(MOST_ANSWER_BYTES)
    return PrivacyLines.answers.validate_json(line) if line.endswith(b"\n") else None


def _end(child: "subprocess.Popen[bytes]") -> None:
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(END_TIMEOUT_S)
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
