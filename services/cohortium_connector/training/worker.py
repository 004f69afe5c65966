"""The training process: `python -m cohortium_connector.training.worker`. Started by `runner`, never by hand.

It isolates itself before it imports anything but the standard library, then reads jobs from its standard input and
answers on its standard output, one JSON line each (`jobs`). Standard error is for the site's own log: row numbers may
be there, values never. The process ends when its input does.
"""

import argparse
import os
import sys
from io import BufferedWriter

from cohortium_connector.training.isolation import CannotIsolate, cut_network, drop_rights, scrub_environment


def main() -> None:
    """Isolate, say so in the first line, work until the input ends."""
    arguments = _arguments()
    network = ""
    try:
        cut_network()
    except CannotIsolate as error:
        network = str(error)
    os.nice(arguments.nice)
    drop_rights(arguments.parent, keep=arguments.lines)
    scrub_environment(arguments.threads)
    answers = _take_standard_output()
    if network and arguments.isolation == "require":
        _refuse_start(answers, network)
    if network:
        sys.stderr.write(f"WARNING: training runs with a network: {network}\n")
    from cohortium_connector.training.work import serve

    serve(sys.stdin.buffer, answers, network=network, threads=arguments.threads, lines=arguments.lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cohortium_connector.training.worker")
    parser.add_argument("--isolation", choices=("require", "warn"), default="require")
    parser.add_argument("--nice", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parent", type=int, default=0)
    parser.add_argument("--lines", type=int, help="the descriptor over which live lines are handed in")
    return parser.parse_args()


def _take_standard_output() -> BufferedWriter:
    """Answers get a descriptor of their own, and whatever a library prints goes to the local log."""
    own = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(own, "wb")


def _refuse_start(answers: BufferedWriter, reason: str) -> None:
    from cohortium_connector.training.jobs import StartRefused

    text = f"the training process cannot give up its network: {reason}"
    answers.write(StartRefused(reason=text).model_dump_json().encode() + b"\n")
    answers.flush()
    raise SystemExit(78)


if __name__ == "__main__":
    main()
