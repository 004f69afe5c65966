"""`cohortium` in a process that has it loaded and forks for each command: loading takes two seconds of a processor, a
command a tenth of one. A line of JSON asks; the answer is the command's exit code. No test itself.
"""

import json
import os
import sys
import traceback
from typing import NoReturn

from cohortium_cli.__main__ import main


def run(words: list[str], output: str, errors: str) -> NoReturn:
    """The command, as if its program had just been started: with its own arguments, files and end."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in ((1, output), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    sys.argv = ["cohortium", *words]
    code = 1
    try:
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 - whatever it is, this process must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


for line in iter(sys.stdin.readline, ""):
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        run(**asked)
    sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
    sys.stdout.flush()
