"""Private servers on free ports, started as children of the test run and ended with it.

They run in a folder of their own, as any user, and die with their parent even if that one is killed (Linux).
"""

import contextlib
import glob
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cohortium_kit.runtime import set_parent_death_signal

READY_S = 60.0
STOP_S = 20.0
RABBIT_SCRIPTS = "/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server"
RABBIT_SCRIPT = "COHORTIUM_TEST_RABBITMQ"
"""Names, in the environment, the script of another RabbitMQ than the installed one; `.ci/rabbitmq` makes such."""
POSTGRES_TOOLS = "/usr/lib/postgresql/*/bin"


class ServerMissing(Exception):
    """The server's program is not on this machine."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def answers(port: int, *, say: bytes = b"", host: str = "127.0.0.1") -> bool:
    """Whether somebody accepts there and, if `say` is given, has a word to say to it."""
    try:
        with socket.create_connection((host, port), timeout=1.0) as connection:
            connection.settimeout(2.0)
            if say:
                connection.sendall(say)
                return bool(connection.recv(1))
            return True
    except OSError:
        return False


def amqp_answers(port: int, host: str = "127.0.0.1") -> bool:
    return answers(port, say=b"AMQP\x00\x00\x09\x01", host=host)


class _Child:
    """One child process, its log, and its end."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(
        self, command: Sequence[str], ready: Callable[[], bool], env: Mapping[str, str], user: str | None = None
    ) -> None:
        """Start and wait until it is ready; raises `RuntimeError` with the end of its log if it is not in time."""
        parent = os.getpid()
        with (self.folder / f"{self.name}.out").open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                command,
                cwd=self.folder,
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=user,
                preexec_fn=lambda: set_parent_death_signal(signal.SIGKILL, parent=parent),
            )
        deadline = time.monotonic() + READY_S
        while not ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.end(signal.SIGKILL)
                said = (self.folder / f"{self.name}.out").read_text("utf-8", "replace")[-2000:]
                raise RuntimeError(f"{self.name} did not start: {said}")
            time.sleep(0.05)

    @property
    def pid(self) -> int:
        """Of the process. Raises `RuntimeError` where it was not started, or has been ended."""
        if self._process is None:
            raise RuntimeError(f"{self.name} does not run; start it first")
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        """To the process, if it runs: SIGSTOP makes a server that is there and does nothing, until SIGCONT."""
        if self._process is not None:
            self._process.send_signal(number)

    def end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_S)


class PrivateRabbit:
    """A RabbitMQ of our own: `start`, `stop` (orderly), `kill` (-9); its data outlive both until `remove`.

    `settings` are lines for its rabbitmq.conf, `advanced` is its advanced.config, `plugins` the names of those that it
    shall run. With `tls_port`, which the settings must open, there is no port in plain text.
    """

    def __init__(
        self,
        folder: Path,
        *,
        settings: Sequence[str] = (),
        plugins: Sequence[str] = (),
        tls_port: int | None = None,
        advanced: str = "[].",
    ) -> None:
        self._folder = folder
        self._folder.mkdir(parents=True, exist_ok=True)
        self.port, self._dist_port, self._epmd_port = free_port(), free_port(), free_port()
        self._tls_port = tls_port
        self._node = f"c{secrets.token_hex(4)}@localhost"
        self._cookie = secrets.token_hex(16)
        self._epmd = _Child("epmd", folder)
        self._server = _Child("rabbitmq", folder)
        self._config = folder / "rabbitmq.conf"
        lines = ["log.file.level = warning", "vm_memory_high_watermark.absolute = 1GB", *settings]
        self._config.write_text("".join(f"{line}\n" for line in lines))
        (folder / "advanced.config").write_text(f"{advanced}\n")
        (folder / "enabled_plugins").write_text(f"[{','.join(plugins)}].\n")

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def pid(self) -> int:
        """Of the server, while it runs."""
        return self._server.pid

    def start(self) -> None:
        """Return when it answers; twice is once. Raises `ServerMissing`."""
        script = os.environ.get(RABBIT_SCRIPT) or _newest(RABBIT_SCRIPTS)
        epmd = shutil.which("epmd")
        if script is None or epmd is None:
            raise ServerMissing("rabbitmq-server is not installed")
        if self._server._process is not None:
            return
        # Erlang would start an epmd that stays behind; our own one ends with us.
        if self._epmd._process is None:
            port = str(self._epmd_port)
            self._epmd.start([epmd, "-address", "127.0.0.1", "-port", port], lambda: answers(self._epmd_port), {})
        self._server.start([script], self._ready, self._environment())

    def _ready(self) -> bool:
        return amqp_answers(self.port) if self._tls_port is None else answers(self._tls_port)

    def stop(self) -> None:
        self._server.end(signal.SIGTERM)

    def kill(self) -> None:
        """As by `kill -9`. A quorum queue declared less than 3 s ago does not survive it on RabbitMQ 3.10."""
        self._server.end(signal.SIGKILL)

    def freeze(self) -> None:
        """Connections stay open, and nothing answers, until `thaw`."""
        self._server.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self._server.send(signal.SIGCONT)

    def remove(self) -> None:
        self.kill()
        self._epmd.end(signal.SIGKILL)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _environment(self) -> dict[str, str]:
        folder = str(self._folder)
        plain = {"RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1", "RABBITMQ_NODE_PORT": str(self.port)}
        return {
            **(plain if self._tls_port is None else {}),
            "HOME": folder,
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_MNESIA_BASE": f"{folder}/mnesia",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_CONFIG_FILE": str(self._config),
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{folder}/advanced.config",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"-setcookie {self._cookie}",
            # The script then becomes the server instead of starting it as a child, which would outlive us.
            "RUNNING_UNDER_SYSTEMD": "1",
        }


class PrivatePostgres:
    """A PostgreSQL of our own: for tests, which may `kill` and `start` it again. What was committed survives that, but
    not a failure of the machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = free_port()
        self._server = _Child("postgres", folder)

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        tools = _newest(POSTGRES_TOOLS)
        if tools is None:
            raise ServerMissing("PostgreSQL is not installed")
        self._folder.mkdir(parents=True, exist_ok=True)
        data = self._folder / "data"
        user = _unprivileged_user()
        if user is not None:
            shutil.chown(self._folder, user)
        if not data.exists():
            make = [f"{tools}/initdb", "-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
            subprocess.run(make, check=True, stdout=subprocess.DEVNULL, cwd=self._folder, user=user)  # noqa: S603
        command = [f"{tools}/postgres", "-D", str(data), "-F", "-h", "127.0.0.1", "-p", str(self.port)]
        # It accepts before it serves, with word that it is starting up: its own tool tells the two apart.
        ready = [f"{tools}/pg_isready", "-q", "-t", "2", "-h", "127.0.0.1", "-p", str(self.port)]
        self._server.start(
            [*command, "-k", str(self._folder)],
            lambda: subprocess.run(ready, check=False, cwd="/").returncode == 0,  # noqa: S603
            {},
            user,
        )

    def kill(self) -> None:
        """End at once, with all connections, in the middle of whatever they do; the next start recovers from the log.
        (SIGKILL would leave its children, and their shared memory, behind.)"""
        self._server.end(signal.SIGQUIT)

    def stop(self) -> None:
        """An orderly end: transactions are rolled back, connections are told, what is in memory is written."""
        self._server.end(signal.SIGINT)

    def freeze(self) -> None:
        """Connections stay open, and nothing answers, until `thaw`."""
        self._server.send(signal.SIGSTOP)
        self._send_to_children(signal.SIGSTOP)

    def thaw(self) -> None:
        self._send_to_children(signal.SIGCONT)
        self._server.send(signal.SIGCONT)

    def _send_to_children(self, number: signal.Signals) -> None:
        """To the processes of open connections, which are in groups of their own (Linux)."""
        for child in Path(f"/proc/{self._server.pid}/task/{self._server.pid}/children").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), number)

    def remove(self) -> None:
        self._server.end(signal.SIGINT)
        shutil.rmtree(self._folder, ignore_errors=True)


class PrivateRedis:
    """A Redis of our own, in memory only; with `keeps` it writes its data down when it is stopped, to read it again."""

    def __init__(self, folder: Path, *, keeps: bool = False) -> None:
        self._folder = folder
        self._save = "3600 1" if keeps else ""
        self.port = free_port()
        self._server = _Child("redis", folder)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        if program is None:
            raise ServerMissing("redis-server is not installed")
        self._folder.mkdir(parents=True, exist_ok=True)
        command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--appendonly", "no"]
        command += ["--save", self._save, "--dir", str(self._folder)]
        self._server.start(command, lambda: answers(self.port, say=b"PING\r\n"), {})

    def stop(self) -> None:
        """An orderly end, as by SHUTDOWN."""
        self._server.end(signal.SIGTERM)

    def kill(self) -> None:
        self._server.end(signal.SIGKILL)

    def freeze(self) -> None:
        self._server.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self._server.send(signal.SIGCONT)

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


def _newest(pattern: str) -> str | None:
    return max(glob.glob(pattern), default=None)


def _unprivileged_user() -> str | None:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"
