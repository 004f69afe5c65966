"""Hospitals' tables, a hub that adds like a session would, and LightGBM's own sockets beside it."""

import asyncio
import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cohortium_connector.training.jobs import (
    ComputeRefinement,
    ComputeStatistics,
    DataSource,
    PrepareTrees,
    TrainTrees,
    TreesDone,
)
from cohortium_connector.training.live_wire import AGREE, RELAY, SUM, LiveBridge, Request, relay_reply
from cohortium_connector.training.runner import TrainingRunner
from cohortium_messages.secure_sum import ModelRef, StrictSpec
from cohortium_messages.study import Study
from cohortium_protocol.strict.steps import Kind, next_chain
from cohortium_protocol.trees.binning import binning_from_sums, needs_refinement, refined
from cohortium_protocol.trees.bins import Binning
from cohortium_protocol.trees.text import header_of, render, tree_blocks

Columns = Mapping[str, NDArray[Any]]
START = bytes(32)
ANSWER_S = 60.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """Sites that are ready for a session."""

    study: Study
    tables: tuple[Path, ...]
    binning: Binning
    binning_path: Path
    rows: tuple[int, ...]
    digests: tuple[bytes, ...]
    folder: Path


@dataclass(slots=True)
class Session:
    """What was seen of a session from outside. `questions`: for each step, what every site asked. `chains`: the chain
    after each round."""

    header: str = ""
    rounds: list[str] = field(default_factory=list)
    chain: bytes = START
    chains: list[bytes] = field(default_factory=list)
    end: dict[str, int] | None = None
    questions: list[tuple[Request, ...]] = field(default_factory=list)
    results: list[TreesDone | BaseException] = field(default_factory=list)

    @property
    def kinds(self) -> list[int]:
        return [asked[0].kind for asked in self.questions]


class World:
    """Training processes that stay for all tests of a module, and as many machines with sockets."""

    def __init__(self, folder: Path, sites: int) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self._loop = asyncio.Runner()
        self.runners = [
            TrainingRunner(work_dir=folder / f"work {site}", isolation="warn", say=self.lines.append)
            for site in range(sites)
        ]
        self._machines: list[subprocess.Popen[str]] = []
        self._count = 0

    def close(self) -> None:
        self._loop.run(self._close())
        self._loop.close()
        for machine in self._machines:
            assert machine.stdin is not None
            assert machine.stdout is not None
            machine.kill()
            machine.wait(30)
            machine.stdin.close()
            machine.stdout.close()

    async def _close(self) -> None:
        for runner in self.runners:
            await runner.aclose()

    def prepare(self, study: Study, sites: Sequence[Columns]) -> Prepared:
        """Tables written, bins from their sums, every site ready."""
        self._count += 1
        folder = self.folder / f"case {self._count}"
        folder.mkdir()
        tables = tuple(_write(folder / f"site {place}.csv", columns) for place, columns in enumerate(sites))
        return self._loop.run(self._prepare(study, tables, folder))

    def prepare_files(self, study: Study, tables: Sequence[Path]) -> Prepared:
        """The same with tables that are there."""
        self._count += 1
        folder = self.folder / f"case {self._count}"
        folder.mkdir()
        return self._loop.run(self._prepare(study, tuple(tables), folder))

    async def _prepare(self, study: Study, tables: tuple[Path, ...], folder: Path) -> Prepared:
        sums = await self._vectors(
            tables, folder, lambda source, path: ComputeStatistics(study=study, source=source, vector_path=path)
        )
        binning = binning_from_sums(study, sums, len(tables))
        path = folder / "binning.json"
        path.write_bytes(binning.canonical())
        if needs_refinement(binning):
            sums = await self._vectors(
                tables,
                folder,
                lambda source, out: ComputeRefinement(
                    study=study, source=source, preprocessing_path=str(path), vector_path=out
                ),
            )
            binning = refined(binning, sums)
            path.write_bytes(binning.canonical())
        answers = [
            await runner.run(PrepareTrees(study=study, source=_source(table), preprocessing_path=str(path)))
            for runner, table in zip(self.runners, tables, strict=False)
        ]
        rows = tuple(answer.rows for answer in answers)
        return Prepared(study, tables, binning, path, rows, tuple(answer.data_digest for answer in answers), folder)

    async def _vectors(
        self,
        tables: tuple[Path, ...],
        folder: Path,
        job: Callable[[DataSource, str], ComputeStatistics | ComputeRefinement],
    ) -> NDArray[np.int64]:
        path = folder / "vector.i64"
        vectors = []
        for runner, table in zip(self.runners, tables, strict=False):
            await runner.run(job(_source(table), str(path)))
            vectors.append(np.fromfile(path, dtype="<i8"))
        return np.sum(vectors, axis=0)

    def train(self, prepared: Prepared, **how: Any) -> Session:
        """A whole session, or one that ends early; see `_train`."""
        return self._loop.run(self._train(prepared, **how))

    async def _train(
        self,
        prepared: Prepared,
        *,
        trees_done: int = 0,
        chain: bytes = START,
        base: Path | None = None,
        stop: Callable[[Session], bool] = lambda _: False,
        lose: Callable[[Session], bool] = lambda _: False,
        hang_up: Callable[[Session], bool] = lambda _: False,
        lie: Callable[[Session, int, bytes], bytes] = lambda _session, _site, answer: answer,
        sites: Sequence[int] | None = None,
        total_rows: int | None = None,
    ) -> Session:
        """`stop`: end the session before the step that is about to be answered; `lose`: after its result stands,
        without telling it; `hang_up`: without a word. `lie`: change one site's answer. `sites`: those that take part,
        all of them by default. `total_rows`: another number than the true one."""
        chosen = list(range(len(prepared.tables)) if sites is None else sites)
        spec = StrictSpec(
            step_s=30,
            rounds=prepared.study.boosting_rounds,
            trees_done=trees_done,
            chain=chain,
            from_model=None if base is None else ModelRef(version=1, model_hash=bytes(32)),
            total_rows=total_rows or sum(prepared.rows),
        )
        session = Session(chain=chain)
        pairs = [LiveBridge.pair() for _ in chosen]
        tasks = []
        for place, site in enumerate(chosen):
            job = _job(prepared, site, spec, None if base is None else str(base), (len(chosen), place + 1))
            tasks.append(asyncio.create_task(self.runners[site].run(job, bridge=pairs[place][1])))
        bridges = [bridge for bridge, _ in pairs]
        try:
            await _play(bridges, session, (stop, lose, hang_up), lie)
        finally:
            for bridge in bridges:
                bridge.close()
            session.results = list(await asyncio.gather(*tasks, return_exceptions=True))
        return session

    def over_sockets(self, prepared: Prepared, **extra: object) -> list[str]:
        """Every machine's model text from LightGBM's own distributed training. `extra`: more parameters."""
        while len(self._machines) < len(prepared.tables):
            self._machines.append(_machine())
        ports = _free_ports(len(prepared.tables))
        for rank, table in enumerate(prepared.tables):
            job = {
                "study": prepared.study.model_dump(mode="json"),
                "binning": str(prepared.binning_path),
                "table": str(table),
                "ports": ports,
                "rank": rank,
                "extra": extra,
            }
            stdin = self._machines[rank].stdin
            assert stdin is not None
            stdin.write(json.dumps(job) + "\n")
            stdin.flush()
        return [_answer(machine) for machine in self._machines[: len(prepared.tables)]]


def _job(prepared: Prepared, site: int, spec: StrictSpec, base: str | None, place: tuple[int, int]) -> TrainTrees:
    return TrainTrees(
        study=prepared.study,
        source=_source(prepared.tables[site]),
        preprocessing_path=str(prepared.binning_path),
        base_model_path=base,
        journal_path=str(prepared.folder / f"journal {site}"),
        strict=spec,
        sites=place[0],
        index=place[1],
        data_digest=prepared.digests[site],
        timeout_s=ANSWER_S,
    )


async def _play(
    bridges: list[LiveBridge],
    session: Session,
    ends: tuple[Callable[[Session], bool], ...],
    lie: Callable[[Session, int, bytes], bytes],
) -> None:
    """Answer until the sites hang up. As a strict session does it, without masks."""
    stop, lose, hang_up = ends
    while True:
        async with asyncio.timeout(ANSWER_S):
            heard = [await bridge.recv() for bridge in bridges]
        asked = tuple(request for request in heard if request is not None)
        if len(asked) < len(heard):
            return
        assert len({request.kind for request in asked}) == 1, "sites are at different places"
        session.questions.append(asked)
        if hang_up(session):
            return
        answer = b"" if (stopped := stop(session)) else _answer_to(session, asked)
        if stopped or lose(session):
            for bridge in bridges:
                await bridge.stop("SITE_SILENT")
            continue
        for site, bridge in enumerate(bridges):
            await bridge.reply(asked[0].kind, lie(session, site, answer))


def _answer_to(session: Session, asked: tuple[Request, ...]) -> bytes:
    match asked[0].kind:
        case int(kind) if kind == SUM:
            words = [np.frombuffer(request.payload, dtype="<i8") for request in asked]
            result = np.sum(words, axis=0).astype("<i8").tobytes()
            session.chain = next_chain(session.chain, len(session.questions) - 1, Kind.SUM, result)
            return result
        case int(kind) if kind == RELAY:
            result = relay_reply(tuple(request.payload for request in asked))
            session.chain = next_chain(session.chain, len(session.questions) - 1, Kind.RELAY, result)
            return result
        case int(kind) if kind == AGREE:
            assert len({request.payload for request in asked}) == 1, "sites disagree"
            return _agreed(session, asked[0].payload)
        case other:
            raise AssertionError(f"kind {other}")


def _agreed(session: Session, content: bytes) -> bytes:
    body = content[1:].decode("ascii")
    match content[:1]:
        case b"H":
            session.header = body
        case b"T":
            session.rounds.append(body)
            session.chains.append(b"")
        case b"E":
            session.end = json.loads(body)
        case other:
            raise AssertionError(f"an agreement on {other!r}")
    digest = hashlib.sha256(content).digest()
    session.chain = next_chain(session.chain, len(session.questions) - 1, Kind.AGREE, digest)
    if session.chains and not session.chains[-1]:
        session.chains[-1] = session.chain
    return session.chain


def model_of(session: Session, before: str = "") -> str:
    """The model text of a session's rounds, after those of a model that it went on from."""
    blocks = [*tree_blocks(before), *(block for text in session.rounds for block in tree_blocks(text))]
    return render(session.header, blocks, {}).decode("ascii")


def trees_of(text: str) -> str:
    """The header and the trees section of a model text, from its first byte to `end of trees`."""
    return header_of(text) + text[text.index("\ntree_sizes=") : text.index("end of trees")]


def _source(table: Path) -> DataSource:
    return DataSource(path=str(table))


def _write(path: Path, columns: Columns) -> Path:
    """Missing values, NaN or an empty text, become empty fields."""
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    lines = [",".join(columns), *(",".join(map(_field, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def _field(value: float | str) -> str:
    return value if isinstance(value, str) else "" if value != value else repr(value)


def _machine() -> subprocess.Popen[str]:
    script = Path(__file__).with_name("socket_site.py")
    return subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"OMP_WAIT_POLICY": "passive"},
    )


def _answer(machine: subprocess.Popen[str]) -> str:
    assert machine.stdout is not None
    text = json.loads(machine.stdout.readline())
    assert isinstance(text, str)
    return text


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [listener.getsockname()[1] for listener in listeners]


def worlds(folder: Path, sites: int) -> Iterator[World]:
    """For a fixture: a world, closed afterwards."""
    world = World(folder, sites)
    try:
        yield world
    finally:
        world.close()
