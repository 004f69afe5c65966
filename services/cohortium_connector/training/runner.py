"""Runs training jobs in a child process that has no network. Asyncio; imports no training library."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Literal, overload

import structlog

from cohortium_connector.training.jobs import (
    MAX_LINE_BYTES,
    BaselinesDone,
    CohortTaken,
    ComputeRefinement,
    ComputeStatistics,
    CountDone,
    CountPatients,
    Evaluate,
    EvaluateDone,
    Failure,
    Job,
    Lines,
    Ping,
    Pong,
    PrepareDone,
    PrepareTrees,
    Refusal,
    StartRefused,
    StatisticsDone,
    Stopped,
    TakeCohort,
    TrainBaselines,
    TrainDone,
    TrainLocally,
    TrainTrees,
    TreesDone,
)
from cohortium_kit.errors import CohortiumError

Isolation = Literal["require", "warn"]
Done = (
    Pong | StatisticsDone | CountDone | CohortTaken | TrainDone | PrepareDone | TreesDone | EvaluateDone | BaselinesDone
)

_ISOLATION_REMEDY = (
    "Allow unprivileged user namespaces, or give the connector the right to make network namespaces; or set "
    "isolation to warn and cut its network by other means."
)
START_TIMEOUT_S = 60.0
KILL_TIMEOUT_S = 10.0
LOCAL_LINES = 200
KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TZ", "PYTHONPATH", "LD_LIBRARY_PATH")


class TrainingRefused(CohortiumError):
    """The table or model does not fit the study. `code`, `column` and `count` may be reported; nothing else is here."""

    def __init__(self, code: str, column: str, count: int) -> None:
        where = f" in column {column}" if column else ""
        super().__init__(f"{code}{where}, {count} times; the site's own log has the rows")
        self.code = code
        self.column = column
        self.count = count


class TrainingStopped(CohortiumError):
    """The connector ended a live job with STOP. `rounds` stand in the journal."""

    def __init__(self, code: str, rounds: int) -> None:
        super().__init__(f"{code}: the session ended after {rounds} rounds; it can be gone on with")
        self.code = code
        self.rounds = rounds


class TrainingFailed(CohortiumError):
    """The training process met an error of its own. It still runs. The site's own log has the details."""


class TrainerCrashed(CohortiumError):
    """The training process ended without an answer. The job may be given again; the process starts anew by itself."""

    def __init__(self, returncode: int | None) -> None:
        super().__init__(f"the training process ended without an answer ({_how_it_ended(returncode)})")
        self.returncode = returncode


class TrainerTimeout(CohortiumError):
    """The job took longer than it may. The process was killed, and starts anew with the next job."""


class IsolationUnavailable(CohortiumError):
    """This machine does not let the training process give up its network.

    Allow unprivileged user namespaces, or start the connector with the right to make network namespaces, or set
    `isolation: warn` and cut the network by other means.
    """


class TrainingRunner:
    """One persistent child process, started with the first job and again after it ended; one job at a time.

    `work_dir` is made when it is missing, and is where libraries of the child put temporary files. Use one runner in
    one event loop, in the thread that lives longest: the child dies with the thread that started it.

    A live job (`TrainTrees`) is given one end of `live_wire.LiveBridge.pair`; it is closed when the job is over,
    however it ends, which the other end sees.

    `say` gets each line that the child writes for the site's own log (row numbers may be in it: never send it on).
    `artificial_delay_s` makes each training, or what comes before it, that much slower, for `simulate --slow`.
    """

    def __init__(
        self,
        *,
        work_dir: Path,
        python: str = sys.executable,
        isolation: Isolation = "require",
        nice: int = 5,
        threads: int = 1,
        artificial_delay_s: float = 0.0,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._work_dir = work_dir
        self._command = [python, "-P", "-m", "cohortium_connector.training.worker"]
        self._command += [f"--isolation={isolation}", f"--nice={nice}", f"--threads={threads}"]
        self._delay_s = artificial_delay_s
        self._say = say or _log_line
        self._lock = asyncio.Lock()
        self._child: asyncio.subprocess.Process | None = None
        self._lines: socket.socket | None = None
        self._reader: asyncio.Task[None] | None = None
        self.local_lines: deque[str] = deque(maxlen=LOCAL_LINES)
        """The newest lines of the child for the site's own log."""

    @property
    def pid(self) -> int | None:
        """The child's process id, or None while there is none."""
        return self._child.pid if self._child is not None and self._child.returncode is None else None

    @overload
    async def run(self, job: Ping, *, timeout_s: float = ...) -> Pong: ...
    @overload
    async def run(self, job: ComputeStatistics, *, timeout_s: float = ...) -> StatisticsDone: ...
    @overload
    async def run(self, job: ComputeRefinement, *, timeout_s: float = ...) -> StatisticsDone: ...
    @overload
    async def run(self, job: CountPatients, *, timeout_s: float = ...) -> CountDone: ...
    @overload
    async def run(self, job: TakeCohort, *, timeout_s: float = ...) -> CohortTaken: ...
    @overload
    async def run(self, job: PrepareTrees, *, timeout_s: float = ...) -> PrepareDone: ...
    @overload
    async def run(self, job: TrainTrees, *, timeout_s: float = ..., bridge: socket.socket) -> TreesDone: ...
    @overload
    async def run(self, job: TrainLocally, *, timeout_s: float = ...) -> TrainDone: ...
    @overload
    async def run(self, job: Evaluate, *, timeout_s: float = ...) -> EvaluateDone: ...
    @overload
    async def run(self, job: TrainBaselines, *, timeout_s: float = ...) -> BaselinesDone: ...

    async def run(self, job: Job, *, timeout_s: float = 3600.0, bridge: socket.socket | None = None) -> Done:
        """Do one job. Jobs given meanwhile wait. `bridge` is for `TrainTrees`, belongs to this call from now on, and is
        closed by it.

        Raises `TrainingRefused`, `TrainingFailed`, `TrainingStopped`, `TrainerCrashed`, `TrainerTimeout`,
        `IsolationUnavailable`. A cancelled or late job is killed with its process; files it was writing are left
        incomplete and get no name.
        """
        with contextlib.ExitStack() as ours:
            if bridge is not None:
                ours.enter_context(bridge)
            async with self._lock:
                return await self._run_alone(job, timeout_s, bridge)

    async def aclose(self) -> None:
        """End the child. The runner can be used again afterwards."""
        async with self._lock:
            await self._kill()

    async def __aenter__(self) -> "TrainingRunner":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _run_alone(self, job: Job, timeout_s: float, bridge: socket.socket | None) -> Done:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._run(job, bridge)
        except TimeoutError:
            await self._kill()
            raise TrainerTimeout(f"the {job.job} job took longer than {timeout_s:g} s") from None
        except BaseException as error:
            if not isinstance(error, TrainingRefused | TrainingFailed | TrainingStopped):
                await self._kill()
            raise

    async def _run(self, job: Job, bridge: socket.socket | None) -> Done:
        if self._delay_s and isinstance(job, TrainLocally | PrepareTrees):
            await asyncio.sleep(self._delay_s)
        child = await self._started()
        assert child.stdin is not None  # noqa: S101 - opened as a pipe
        if bridge is not None:
            self._hand_over(bridge)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            child.stdin.write(Lines.jobs.dump_json(job) + b"\n")
            await child.stdin.drain()
        answer = Lines.answers.validate_json(await self._line(child))
        match answer:
            case Refusal():
                raise TrainingRefused(answer.code, answer.column, answer.count)
            case Stopped():
                raise TrainingStopped(answer.code, answer.rounds)
            case Failure():
                raise TrainingFailed(f"{answer.error}; the site's own log has the details")
        return answer

    def _hand_over(self, bridge: socket.socket) -> None:
        """The child gets a descriptor of its own; ours is closed, so that the line ends when the child's does."""
        assert self._lines is not None  # noqa: S101 - made with the child
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            socket.send_fds(self._lines, [b"."], [bridge.fileno()])
        bridge.close()

    async def _started(self) -> asyncio.subprocess.Process:
        if self._child is not None and self._child.returncode is None:
            return self._child
        await self._kill()
        self._work_dir.mkdir(parents=True, exist_ok=True)
        self._lines, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            self._child = child = await asyncio.create_subprocess_exec(
                *self._command,
                f"--parent={os.getpid()}",
                f"--lines={theirs.fileno()}",
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=self._environment(),
                start_new_session=True,
                limit=MAX_LINE_BYTES,
            )
        self._reader = asyncio.create_task(self._keep_local_lines(child))
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                first = Lines.first.validate_json(await self._line(child))
        except TimeoutError:
            raise TrainerTimeout(f"the training process did not start within {START_TIMEOUT_S:g} s") from None
        if isinstance(first, StartRefused):
            raise IsolationUnavailable(f"{first.reason}. {_ISOLATION_REMEDY}")
        return child

    def _environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
        return kept | {"TMPDIR": str(self._work_dir.resolve())}

    async def _line(self, child: asyncio.subprocess.Process) -> bytes:
        assert child.stdout is not None  # noqa: S101 - opened as a pipe
        try:
            return await child.stdout.readuntil(b"\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionResetError):
            await self._kill()
            raise TrainerCrashed(child.returncode) from None

    async def _keep_local_lines(self, child: asyncio.subprocess.Process) -> None:
        assert child.stderr is not None  # noqa: S101 - opened as a pipe
        while piece := await child.stderr.read(1 << 16):
            for line in piece.decode(errors="replace").splitlines():
                self.local_lines.append(line)
                self._say(line)

    async def _kill(self) -> None:
        child, self._child = self._child, None
        reader, self._reader = self._reader, None
        lines, self._lines = self._lines, None
        if lines is not None:
            lines.close()
        if child is None:
            return
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KILL_TIMEOUT_S):
                await child.wait()
                if reader is not None:
                    await reader
        if child.stdin is not None:
            child.stdin.close()


def _how_it_ended(returncode: int | None) -> str:
    if returncode is not None and returncode < 0:
        return f"signal {signal.Signals(-returncode).name}"
    return f"exit code {returncode}"


def _log_line(line: str) -> None:
    structlog.get_logger().info("trainer_said", line=line)
