"""The benchmark's process: `python -m cohortium_connector.training.attacks`. The command line starts it.

As the training process does, it isolates itself before it imports anything but the standard library. One job comes in
on standard input; answers go out on standard output, one JSON line each (`privacy_report`). Standard error is for
whoever started it.
"""

import argparse
import os
import sys
import traceback
from typing import BinaryIO

from cohortium_connector.training.isolation import CannotIsolate, cut_network, drop_rights, scrub_environment


def main() -> None:
    """Isolate, do the one job, end. Exit code 0 also where the job was refused."""
    arguments = _arguments()
    try:
        cut_network()
    except CannotIsolate as error:
        if arguments.isolation == "require":
            raise SystemExit(f"the benchmark cannot give up its network: {error}") from None
        sys.stderr.write(f"WARNING: the benchmark runs with a network: {error}\n")
    drop_rights(arguments.parent)
    scrub_environment(arguments.threads)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not come between the answers
    _serve(sys.stdin.buffer, answers, arguments.threads)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cohortium_connector.training.attacks")
    parser.add_argument("--isolation", choices=("require", "warn"), default="require")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parent", type=int, default=0)
    return parser.parse_args()


def _serve(jobs: BinaryIO, answers: BinaryIO, threads: int) -> None:
    from cohortium_connector.training.attacks.desk import answer_job
    from cohortium_connector.training.jobs import MAX_LINE_BYTES
    from cohortium_connector.training.privacy_report import Answer, PrivacyLines

    def send(answer: Answer) -> None:
        answers.write(PrivacyLines.answers.dump_json(answer) + b"\n")
        answers.flush()

    job = PrivacyLines.job.validate_json(jobs.readline(MAX_LINE_BYTES))
    try:
        answer = answer_job(job, threads, send)
    except Exception as error:  # noqa: BLE001 - texts of errors may quote a row, so only the place is told
        for frame in traceback.extract_tb(error.__traceback__):
            sys.stderr.write(f"  {frame.filename}:{frame.lineno} in {frame.name}\n")
        raise SystemExit(f"the job failed: {type(error).__name__}") from None
    send(answer)


if __name__ == "__main__":
    main()
