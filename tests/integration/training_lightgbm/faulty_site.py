"""One site that trains beside two of its doubles, with a fault: `python faulty_site.py FAULT ...`.

Each runs in a process of its own, so that a crash in C++ would be seen as what it is: in a fork, so that it starts at
once. Prints for each fault, as JSON, how its process ended, what came of the training, what was asked until the fault,
and how many relayed splits held more than a split.
"""

import json
import os
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from lightgbm_cases import binary_sites, study_of

from cohortium_connector.training import collectives, course, splits, trees_work
from cohortium_connector.training.jobs import DataSource, TrainTrees
from cohortium_connector.training.live_wire import AGREE, HEAD, RELAY, STOP, SUM, ChildBridge, relay_reply
from cohortium_messages.secure_sum import StrictSpec
from cohortium_protocol.statistics import Rows
from cohortium_protocol.strict.steps import Kind, agreed_bytes, next_chain
from cohortium_protocol.trees.binning import binning_from_sums
from cohortium_protocol.trees.grid import tree_statistics_vector

SITES = 3
FAULTY_STEP = 12
"""A sum inside the first tree."""

study = study_of({"type": "binary"}, rounds=4)
(columns,) = binary_sites([600])
labels = columns.pop("y").astype(np.uint8)
del columns["part"]
train = Rows(columns, labels)
binning = binning_from_sums(study, SITES * tree_statistics_vector(study, train, train.take(np.zeros(600, bool))), SITES)
fault = ""
asked: list[int] = []
relayed: list[bytes] = []


def read(line: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (piece := line.recv(size - len(data))):
            raise EOFError
        data += piece
    return data


def answer(line: socket.socket) -> None:
    """As if all sites held the same. Ends, or goes silent, where the fault wants it."""
    chain = bytes(32)
    try:
        while True:
            kind, length = HEAD.unpack(read(line, HEAD.size))
            payload = read(line, length)
            asked.append(kind)
            step = len(asked) - 1
            if step == FAULTY_STEP and not happen(line):
                return
            if kind == SUM:
                payload = (SITES * np.frombuffer(payload, dtype="<i8")).tobytes()
                chain = next_chain(chain, step, Kind.SUM, payload)
            elif kind == RELAY:
                relayed.append(payload)
                payload = relay_reply(SITES * (payload,))
                chain = next_chain(chain, step, Kind.RELAY, payload)
            elif kind == AGREE:
                payload = chain = next_chain(chain, step, Kind.AGREE, agreed_bytes(payload))
            line.sendall(HEAD.pack(kind, len(payload)) + payload)
    except (EOFError, ConnectionError):
        return


def happen(line: socket.socket) -> bool:
    """What goes wrong on the other side. False: no answer comes any more."""
    match fault:
        case "closed":
            line.close()
        case "silent":
            time.sleep(3)
        case "interrupted waiting":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(3)
        case "half an answer":
            line.sendall(HEAD.pack(SUM, 1000) + bytes(10))
            line.close()
        case "wrong kind":
            line.sendall(HEAD.pack(AGREE, 0))
        case "too long":
            line.sendall(HEAD.pack(asked[-1], (32 << 20) + 1))
        case "too few words":
            line.sendall(HEAD.pack(asked[-1], 8) + bytes(8))
        case "stopped":
            line.sendall(HEAD.pack(STOP, 11) + b"SITE_SILENT")
        case _:
            return True
    return fault in ("stopped", "wrong kind", "too long", "too few words")


def raising(error: BaseException) -> Callable[..., None]:
    def work(*_: object, **__: object) -> None:
        raise error

    return work


def prepare() -> None:
    """What goes wrong on this side."""
    original = collectives.Collectives._gathered
    match fault:
        case "memory":
            trees_work.Session.histogram = raising(MemoryError())  # type: ignore[method-assign, assignment]
        case "layout":
            collectives._ROOT = struct.Struct("<4xidd")
        case "unknown size":
            course.ROOT_BYTES = 32
        case "left out":
            course.Course._step = lambda self, place, size: place  # type: ignore[method-assign]
        case "unwiped":
            splits.Splits.wiped = lambda self, pair: pair  # type: ignore[method-assign]
        case "interrupted in C++":

            def gathered(self: collectives.Collectives, mine: bytes) -> list[bytes]:
                if len(asked) >= FAULTY_STEP:
                    os.kill(os.getpid(), signal.SIGINT)
                return original(self, mine)

            collectives.Collectives._gathered = gathered  # type: ignore[method-assign]
        case "out of bounds":
            trees_work.row_weights = lambda *_: np.full(600, np.float32(1e4))  # type: ignore[assignment]


def run(folder: Path) -> str:
    own, other = socket.socketpair()
    threading.Thread(target=answer, args=(other,), daemon=True).start()
    job = TrainTrees(
        study=study,
        source=DataSource(path="/nowhere"),
        preprocessing_path="/nowhere",
        journal_path=str(folder / "journal"),
        strict=StrictSpec(step_s=30, rounds=4, trees_done=0, chain=bytes(32), total_rows=SITES * 600),
        sites=SITES,
        index=2,
        data_digest=trees_work.data_digest(train),
    )
    with trees_work.interrupts() as interrupted:
        bridge = ChildBridge(own, timeout_s=1.0, interrupted=interrupted)
        played = trees_work.train_trees(job, binning, train, bridge, threads=1)
    return f"rounds={played.rounds}"


def play() -> tuple[str, int, int]:
    prepare()
    with tempfile.TemporaryDirectory() as name:
        try:
            outcome = run(Path(name))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is printed
            local = getattr(error, "local", "")
            outcome = f"{type(error).__name__} {local or error}"
    # Of each record the part after 8 categories, which no split of a number has.
    waste = sum((pair[126:222] + pair[348:]).strip(b"\0") != b"" for pair in relayed)
    return outcome, len(asked), waste


for named in sys.argv[1:]:
    fault = named
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        with os.fdopen(writer, "w") as told:
            json.dump(play(), told)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        text = told.read()
    _, status = os.waitpid(process, 0)
    sys.stdout.write(json.dumps([os.waitstatus_to_exitcode(status), *(json.loads(text) if text else ())]) + "\n")
