"""Where the real servers of the tests come from.

For each server, in this order: an address in the environment; a server on its standard port; its program, started on a
free port; a container. A test that finds none of them is skipped and says why, or fails with COHORTIUM_REQUIRE_REAL=1.
Every test uses a namespace or schema of its own and deletes it.
"""

import contextlib
import gc
import os
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pytest
from hypothesis import settings

from cohortium_kit.testing.servers import (
    RABBIT_SCRIPT,
    PrivatePostgres,
    PrivateRabbit,
    PrivateRedis,
    ServerMissing,
    amqp_answers,
    answers,
)
from examples import examples

os.environ.pop("COLUMNS", None)  # what a command prints must not depend on the width of the window that tests run in

settings.register_profile("cohortium", settings(), max_examples=examples(100), deadline=None)
settings.load_profile("cohortium")

Start = Callable[[contextlib.ExitStack, Path], str]
Server = TypeVar("Server", PrivateRabbit, PrivatePostgres, PrivateRedis)


# Files that start a RabbitMQ of their own, which takes longer than most tests: each group is for one process.
TOGETHER: tuple[tuple[str, ...], ...] = (
    ("tests/integration/broker/",),
    (
        "tests/contract/test_rabbit_outages.py",
        "tests/integration/simulation/test_killed_parts.py",
        "tests/integration/simulation/test_three_of_each.py",
    ),
)


def pytest_collection_finish() -> None:
    """What was loaded for all tests stays: the garbage collector need not look through it again and again, which was
    half of what a storm's federation cost."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """A library says at the end what of it was not let go of."""
    gc.unfreeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadfile`, with these groups; None leaves any other way to distribute as it is."""
    from xdist.scheduler import LoadFileScheduling

    class ByServer(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((group[0] for group in TOGETHER if nodeid.startswith(group)), super()._split_scope(nodeid))

    return ByServer(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def amqp_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A RabbitMQ that other tests use too."""
    with contextlib.ExitStack() as stack:
        yield _first_rung(
            stack,
            env="COHORTIUM_TEST_AMQP_URL",
            standard=lambda: (
                "amqp://guest:guest@127.0.0.1:5672/" if amqp_answers(5672) and RABBIT_SCRIPT not in os.environ else None
            ),
            rungs=[_start_rabbit, _contain_rabbit],
            folder=tmp_path_factory.mktemp("rabbitmq"),
        )


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL database that other tests use too: make a schema of your own in it."""
    with contextlib.ExitStack() as stack:
        yield _first_rung(
            stack,
            env="COHORTIUM_TEST_DATABASE_URL",
            standard=lambda: "postgresql://postgres@127.0.0.1:5432/postgres" if answers(5432) else None,
            rungs=[_start_postgres, _contain_postgres],
            folder=tmp_path_factory.mktemp("postgres"),
        )


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis that other tests use too."""
    with contextlib.ExitStack() as stack:
        yield _first_rung(
            stack,
            env="COHORTIUM_TEST_REDIS_URL",
            standard=lambda: "redis://127.0.0.1:6379/0" if answers(6379, say=b"PING\r\n") else None,
            rungs=[_start_redis, _contain_redis],
            folder=tmp_path_factory.mktemp("redis"),
        )


@pytest.fixture(scope="session")
def _private_rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRabbit]:
    yield from _private(PrivateRabbit(tmp_path_factory.mktemp("private_rabbit")))


@pytest.fixture(scope="module")
def private_rabbit(_private_rabbit: PrivateRabbit) -> PrivateRabbit:
    """A RabbitMQ of this session alone, which a test may kill and start again. It runs when a module begins.

    A server that a test started in a worker thread ends with that thread, for the kernel watches the thread: so it is
    looked at again before each module.
    """
    if not amqp_answers(_private_rabbit.port):
        _private_rabbit.kill()
        _private_rabbit.start()
    return _private_rabbit


@pytest.fixture
def private_redis(short_folder: Path) -> Iterator[PrivateRedis]:
    """A Redis of this test alone, which it may kill and start again."""
    yield from _private(PrivateRedis(short_folder))


@pytest.fixture
def private_postgres(short_folder: Path) -> Iterator[PrivatePostgres]:
    """A PostgreSQL of this test alone."""
    yield from _private(PrivatePostgres(short_folder))


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder outside pytest's own ones, which are closed to the user that PostgreSQL runs as."""
    folder = Path("/tmp") / f"cohortium-{secrets.token_hex(4)}"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def namespace() -> str:
    """A name that no other test uses: for exchanges, queues, schemas and keys."""
    return f"t{secrets.token_hex(6)}"


def _private(server: Server) -> Iterator[Server]:
    try:
        server.start()
    except ServerMissing as missing:
        _give_up(str(missing))
    yield server
    server.remove()


def _first_rung(
    stack: contextlib.ExitStack, *, env: str, standard: Callable[[], str | None], rungs: list[Start], folder: Path
) -> str:
    url = os.environ.get(env) or standard()
    if url is not None:
        return url
    reasons = [f"{env} is not set", "nothing on the standard port"]
    for rung in rungs:
        try:
            return rung(stack, folder)
        except ServerMissing as missing:
            reasons.append(str(missing))
    return _give_up("; ".join(reasons))


@pytest.fixture(scope="session")
def give_up() -> Callable[[str], NoReturn]:
    """What to call where a test's server is missing: skips it, or fails it where real servers are required."""
    return _give_up


def _give_up(reason: str) -> NoReturn:
    if os.environ.get("COHORTIUM_REQUIRE_REAL") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def _start_rabbit(stack: contextlib.ExitStack, folder: Path) -> str:
    server = PrivateRabbit(folder / "server")
    stack.callback(server.remove)
    server.start()
    return server.url


def _start_postgres(stack: contextlib.ExitStack, folder: Path) -> str:
    # Another user runs it: the temporary folder of pytest is closed to it.
    server = PrivatePostgres(Path("/tmp") / f"cohortium-pg-{secrets.token_hex(4)}")
    stack.callback(server.remove)
    server.start()
    return server.url


def _start_redis(stack: contextlib.ExitStack, folder: Path) -> str:
    server = PrivateRedis(folder / "server")
    stack.callback(server.remove)
    server.start()
    return server.url


def _contain_rabbit(stack: contextlib.ExitStack, folder: Path) -> str:
    _require_docker()
    from testcontainers.community.rabbitmq import RabbitMqContainer

    box = stack.enter_context(RabbitMqContainer("rabbitmq:4.3-alpine"))
    return f"amqp://guest:guest@{box.get_container_host_ip()}:{box.get_exposed_port(5672)}/"


def _contain_postgres(stack: contextlib.ExitStack, folder: Path) -> str:
    _require_docker()
    from testcontainers.community.postgres import PostgresContainer

    box = stack.enter_context(PostgresContainer("postgres:16-alpine", driver=None))
    return str(box.get_connection_url())


def _contain_redis(stack: contextlib.ExitStack, folder: Path) -> str:
    _require_docker()
    from testcontainers.community.redis import RedisContainer

    box = stack.enter_context(RedisContainer("redis:7-alpine"))
    return f"redis://{box.get_container_host_ip()}:{box.get_exposed_port(6379)}/0"


def _require_docker() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "info"], capture_output=True, timeout=20).returncode != 0:
        raise ServerMissing("no container engine answers")
